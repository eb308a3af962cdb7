#!/usr/bin/env python
"""Measures how models colour photos that look old: the same photos as they are, and aged (augment.py).

    python benchmarks/old_photos.py MODEL [MODEL ...] --data PATH [--photos 200] [--size 140] [--denoise 0]

An aged photo has the L of `--old-photos` in training: each of blur, gamma, fading, grain and JPEG compression with a
random strength, or not at all. One answer each, with the defaults of `project7 colorize`; ab is compared with the true
ab of the photo, whose L has nothing to do with it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import color, metrics, program
from Project7.augment import age
from Project7.batch import BatchRandom
from Project7.colorize import Colorizer
from Project7.dataset import open_photos


def aged(rgb: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8: the photos in gray, looking old."""
    L = color.lightness(color.channels_first(rgb))
    return color.channels_last(color.without_chroma(age(L, 1.0, BatchRandom(0, 0, 0, len(L), len(L)))))


def coloured(colorizer: Colorizer, pictures: np.ndarray, denoise: float = 0.0) -> np.ndarray:
    return np.stack([np.asarray(colorizer.colorize(picture, denoise=denoise)) for picture in pictures])


def ab(rgb: np.ndarray) -> torch.Tensor:
    return color.rgb_to_lab(color.channels_first(rgb))[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data", required=True, help="photos with their colours")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", type=int, default=140)
    parser.add_argument("--denoise", type=float, default=0.0)
    arguments = parser.parse_args()
    truth = np.array(open_photos(arguments.data, size=arguments.size, split="val", limit=arguments.photos).images)
    gray = color.channels_last(color.gray(color.channels_first(truth)))
    print(f"{len(truth)} photos, truth: colorfulness {metrics.colorfulness(truth).mean():.1f}")
    print(f"{'':40} ab RMSE  colorfulness")
    for name, pictures in (("gray", gray), ("old", aged(truth))):
        print(f"{name:40} {metrics.ab_rmse(ab(pictures).numpy(), ab(truth).numpy()):7.2f}")
        for model in arguments.models:
            colorizer = Colorizer.load(model, device="cpu")
            shown = coloured(colorizer, pictures, arguments.denoise)
            error = metrics.ab_rmse(ab(shown).numpy(), ab(truth).numpy())
            print(
                f"{name + ', coloured by ' + Path(model).name:40} {error:7.2f}  "
                f"{metrics.colorfulness(shown).mean():12.1f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(program.run(main))
