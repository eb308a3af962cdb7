#!/usr/bin/env python
"""Measures whether another working size acts like another seed: the distance of a photo's colours at two sizes.

    python benchmarks/sizes_agree.py MODEL --data PATH [--photos 20] [--sizes 64 96 128]

Prints root mean square distances to the answer at the first size, in Lab units of ab averaged over 8 x 8 parts of the
photo; beside them the distance to another seed at the first size, and both with noise drawn separately for each size.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import diffusion_model, program
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.painting import full_lightness, photo_noise
from Project7.photo import from_array


def coarse(colorizer: Colorizer, photo, size: int, seed: int = 0) -> torch.Tensor:
    _, ab = colorizer.chroma([full_lightness(photo.rgb)], photo_noise(photo, [seed]), working_size=size)
    return F.adaptive_avg_pool2d(ab, 8) * colorizer.model.ab_std[:, None, None]


def plain_noise(shape, generators) -> torch.Tensor:
    return torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])


def distances(colorizer: Colorizer, photos, sizes: list[int]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for photo in photos:
        first = coarse(colorizer, photo, sizes[0])
        others = {f"{size} px": coarse(colorizer, photo, size) for size in sizes[1:]}
        for name, other in (others | {"another seed": coarse(colorizer, photo, sizes[0], 1)}).items():
            found.setdefault(name, []).append(float((other - first).square().mean().sqrt()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder, or a .pth file")
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    arguments = parser.parse_args()
    colorizer = Colorizer.load(arguments.model, device="cpu")
    photos = [from_array(np.array(rgb)) for rgb in open_photos(arguments.data, size=140, limit=arguments.photos).images]
    for name in ("scalable noise", "plain noise"):
        row = distances(colorizer, photos, arguments.sizes)
        print(f"{name:16}", "  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
        diffusion_model.scalable_noise = plain_noise


if __name__ == "__main__":
    sys.exit(program.run(main))
