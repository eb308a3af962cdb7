"""PSNR after a number of hints: at the places that `best_click` names, and at random ones.

    python benchmarks/clicks.py --model base --data data/tiny-imagenet-200 --limit 100 --sizes 64 128

Each hint gives the true colour of its pixel. If the data set is divided, its validation photos are used. The intervals
are 95 % bootstrap intervals over photos; the gain of the best click over random ones is paired, photo by photo.
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

RESAMPLES = 10_000  # bootstrap resamples


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    off = np.square(picture.astype(float) - truth).mean()
    return float(10 * np.log10(255**2 / max(off, 1e-3)))


def told(truth: np.ndarray, x: int, y: int) -> tuple[int, int, str]:
    return x, y, "#" + "".join(f"{value:02x}" for value in truth[y, x].tolist())


def curve(opened: OpenPhoto, truth: np.ndarray, place, counts: list[int]) -> list[float]:
    """The PSNR after each number of hints in `counts`; place(opened) gives the next pixel."""
    found = []
    for count in range(max(counts) + 1):
        if count in counts:
            found.append(psnr(opened.picture(), truth))
        if count < max(counts):
            opened.hint(*told(truth, *place(opened)))
    return found


def at_random(key: str):
    generator = keyed_generator(key)

    def place(opened: OpenPhoto) -> tuple[int, int]:
        height, width = opened.size
        y, x = (int(torch.randint(side, (), generator=generator)) for side in (height, width))
        return x, y

    return place


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values (photos, counts) -> the ends of the 95 % interval of their means by the bootstrap (Efron 1979)."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), [2.5, 97.5], axis=0)
    return low, high


def curves(colorizer: Colorizer, images, counts: list[int]) -> dict[str, np.ndarray]:
    """The PSNR (photos, counts) for both ways of choosing the places."""
    found: dict[str, list[list[float]]] = {"best click": [], "random": []}
    for number, truth in enumerate(images):
        gray = color.channels_last(color.gray(color.channels_first(np.ascontiguousarray(truth))[None]))[0]
        for name, place in {"best click": OpenPhoto.best_click, "random": at_random(f"clicks/{number}")}.items():
            found[name].append(curve(colorizer.open(from_array(gray)), truth, place, counts))
        print(f"{number + 1} of {len(images)} photos", file=sys.stderr)
    return {name: np.array(rows) for name, rows in found.items()}


def table(found: dict[str, np.ndarray], counts: list[int]) -> list[str]:
    rows = found | {"gain": found["best click"] - found["random"]}
    lines = [f"| hints | {' | '.join(map(str, counts))} |", f"| --- |{' --- |' * len(counts)}"]
    for name, values in rows.items():
        sign = "+" if name == "gain" else ""
        cells = [
            f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"
            for mean, low, high in zip(values.mean(axis=0), *interval(values), strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--data", default="samples")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--sizes", type=int, nargs="+", help="sides of the squares (that of the model's training)")
    parser.add_argument("--counts", type=int, nargs="+", default=[0, 1, 2, 5, 10, 50], help="numbers of hints")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    counts = sorted(set(given.counts))
    colorizer = Colorizer.load(given.model, device=given.device)
    for size in given.sizes or [colorizer.config.data.image_size]:
        images = open_photos(given.data, size=size, limit=given.limit).images
        found = curves(colorizer, images, counts)
        print(f"\nPSNR in dB, {given.model}, {len(images)} photos of {given.data} at {size} px, 95 % intervals\n")
        print("\n".join(table(found, counts)))
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
