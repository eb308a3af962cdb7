"""PSNR after a number of hints: at the places that `best_click` names, and at random ones.

    python benchmarks/clicks.py --model base --data data/tiny-imagenet-200 --limit 100 --sizes 64 128 --log clicks.jsonl

Each hint gives the true colour of its pixel. If the data set is divided, its validation photos are used. The intervals
are 95 % bootstrap intervals over photos; the gain of the best click over random ones is paired, photo by photo. Each
photo adds a line to the log: the same command goes on from there, and with --limit 0 it only prints the table of what
is done.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import color, program
from Project7.answer_config import FAST_STEPS
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


def both(
    colorizer: Colorizer, truth: np.ndarray, number: int, counts: list[int], options: dict[str, int]
) -> dict[str, list[float]]:
    """The PSNR of a photo at each of the counts, by both ways to choose the places. options: of Colorizer.open."""
    gray = color.channels_last(color.gray(color.channels_first(np.ascontiguousarray(truth))[None]))[0]
    ways = {"best click": OpenPhoto.best_click, "random": at_random(f"clicks/{number}")}
    photo = from_array(gray)
    return {name: curve(colorizer.open(photo, **options), truth, place, counts) for name, place in ways.items()}


def done(log: Path, protocol: dict[str, Any]) -> dict[int, dict[str, list[float]]]:
    """What a log has of this protocol, by the number of the photo."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    found = [json.loads(line) for line in lines]
    return {one["photo"]: one["psnr"] for one in found if one["protocol"] == protocol}


def measure(given: argparse.Namespace, colorizer: Colorizer, size: int, counts: list[int]) -> dict[str, np.ndarray]:
    """The PSNR (photos, counts) of both ways, of the photos in the log and of those up to the limit."""
    options = {"steps": FAST_STEPS, "candidates": 1} if given.fast else {}
    protocol = {"model": colorizer.sha256, "data": Path(given.data).name, "size": size, "counts": counts, **options}
    found = done(given.log, protocol)
    images = open_photos(given.data, size=size, limit=given.limit).images if given.limit else []
    for number, truth in enumerate(images):
        if number not in found:
            found[number] = both(colorizer, truth, number, counts, options)
            with given.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"protocol": protocol, "photo": number, "psnr": found[number]}) + "\n")
        print(f"{number + 1} of {len(images)} photos", file=sys.stderr)
    return {way: np.array([one[way] for one in found.values()]) for way in ("best click", "random")}


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
    parser.add_argument("--log", type=Path, default=Path("clicks.jsonl"), help="one line per photo and size")
    parser.add_argument("--fast", action="store_true", help="answers as those of colorize --fast")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    counts = sorted(set(given.counts))
    colorizer = Colorizer.load(given.model, device=given.device)
    for size in given.sizes or [colorizer.config.data.image_size]:
        found = measure(given, colorizer, size, counts)
        count = len(found["random"])
        print(f"\nPSNR in dB, {given.model}, {count} photos of {given.data} at {size} px, 95 % intervals\n")
        print("\n".join(table(found, counts)))
    return 0


if __name__ == "__main__":
    sys.exit(program.run(main))
