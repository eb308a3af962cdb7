"""PSNR after so many hints: at the places that `best_click` names, and at random ones.

    python benchmarks/clicks.py --model base --data data/tiny-imagenet-200 --limit 50

Each hint tells the true colour of its pixel. The differences are of the same photos, with 95 % intervals.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import color, program
from Project7.batch import keyed_generator
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.opened import OpenPhoto
from Project7.photo import from_array


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    off = np.square(picture.astype(float) - truth).mean()
    return float(10 * np.log10(255**2 / max(off, 1e-3)))


def told(truth: np.ndarray, x: int, y: int) -> tuple[int, int, str]:
    return x, y, "#" + "".join(f"{value:02x}" for value in truth[y, x].tolist())


def curve(opened: OpenPhoto, truth: np.ndarray, place, counts: list[int]) -> list[float]:
    """PSNR at each of the counts; place(opened) names the next pixel."""
    found = []
    for count in range(max(counts) + 1):
        if count in counts:
            found.append(psnr(opened.picture(), truth))
        opened.hint(*told(truth, *place(opened)))
    return found


def at_random(key: str):
    generator = keyed_generator(key)

    def place(opened: OpenPhoto) -> tuple[int, int]:
        height, width = opened.size
        y, x = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
        return x, y

    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--data", default="samples")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--size", type=int, help="side of the squares (that of the model's training)")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 2, 5, 10, 50], help="hints")
    given = parser.parse_args()
    counts = sorted(given.counts)
    colorizer = Colorizer.load(given.model)
    photos = open_photos(given.data, size=given.size or colorizer.config.data.image_size, limit=given.limit)
    rows = {"best click": [], "random": []}
    for number, truth in enumerate(photos.images):
        gray = color.channels_last(color.gray(color.channels_first(np.ascontiguousarray(truth))[None]))[0]
        for name, place in {"best click": OpenPhoto.best_click, "random": at_random(f"clicks/{number}")}.items():
            rows[name].append(curve(colorizer.open(from_array(gray)), truth, place, counts))
    print(f"{'hints':>12} " + " ".join(f"{count:>7}" for count in counts))
    for name, values in rows.items():
        print(f"{name:>12} " + " ".join(f"{value:7.2f}" for value in np.mean(values, axis=0)))
    gain = np.subtract(rows["best click"], rows["random"])
    half = 1.96 * gain.std(axis=0, ddof=1) / np.sqrt(len(gain))
    print(f"{'difference':>12} " + " ".join(f"{value:7.2f}" for value in gain.mean(axis=0)))
    print(f"{'95 % +-':>12} " + " ".join(f"{value:7.2f}" for value in half))
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
