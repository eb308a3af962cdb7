#!/usr/bin/env python
"""The pictures of a model card: what a model makes of photos that it has never seen, chosen by their order alone.

    python benchmarks/base_pictures.py MODEL_FOLDER --tiny TINY_IMAGENET --large PHOTOS [--to MODEL_FOLDER]

validation.jpg: the first 32 of the validation photos that `project7 evaluate` measures on, gray | colour | truth.
large.jpg: the first eight of the photos that a run on PHOTOS keeps for validation, at full size, gray | colour | truth.
seeds.jpg: the first eight validation photos, gray | five seeds | told ten true colours | truth.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from Project7 import color, errors
from Project7.answer_config import EvaluateConfig
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.evaluate import draw_hints, generator
from Project7.photo import open_photo
from Project7.photo_source import hold_out, read_bytes, scan
from Project7.sheet import sheet, side_by_side
from Project7.training_config import DataConfig

GAP = 12  # pixels between the blocks of a page
QUALITY = 88


def blocks(columns: list[np.ndarray], count: int, *, smallest: int) -> np.ndarray:
    """A sheet of gray | ... | truth, its photos in `count` blocks beside each other."""
    parts = np.array_split(np.arange(len(columns[0])), count)
    sheets = [sheet([column[part] for column in columns], smallest=smallest) for part in parts]
    gap = np.full((sheets[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([piece for one in sheets for piece in (gap, one)][1:], axis=1)


@torch.no_grad()
def answers(colorizer: Colorizer, truth: np.ndarray, names: list[str], seed: int, hints: int = 0) -> np.ndarray:
    """(N, S, S, 3) uint8, coloured as `project7 evaluate` does with its default sampler."""
    model = colorizer.model
    L, ab = color.split(color.channels_first(truth), model.ab_mean, model.ab_std)
    options = {"hints": draw_hints(ab, EvaluateConfig(hints=hints), names)} if hints else {}
    found = model.colorize(L, generator=[generator(seed, 0, name) for name in names], **options)
    return color.channels_last(color.show(color.join(L, found, model.ab_mean, model.ab_std)))


def small_photos(colorizer: Colorizer, data: str, to: Path) -> None:
    photos = open_photos(data, size=64, split="val", limit=32)
    truth, names = np.array(photos.images), list(photos.names)
    gray = color.channels_last(color.gray(color.channels_first(truth)))
    save(to / "validation.jpg", blocks([gray, answers(colorizer, truth, names, 0), truth], 4, smallest=64))
    first, told = (truth[:8], names[:8]), []
    if getattr(colorizer.config.model, "hints", False):
        told = [answers(colorizer, *first, 0, hints=10)]
    seeds = [answers(colorizer, *first, seed) for seed in range(5)]
    save(to / "seeds.jpg", sheet([gray[:8], *seeds, *told, truth[:8]], smallest=128))


def large_photos(colorizer: Colorizer, data: str, to: Path) -> None:
    source = scan(data)
    _, held_out = hold_out(source, DataConfig().val_fraction, seed=0)
    rows = []
    for photo in held_out[:8]:
        opened = open_photo(read_bytes(source.root, source.is_zip, photo.name))
        gray = color.channels_last(color.gray(color.channels_first(opened.rgb)[None]))[0]
        rows.append(side_by_side([gray, np.asarray(colorizer.colorize(opened)), opened.rgb]))
    height = [max(row.shape[0] for row in rows[i : i + 2]) for i in range(0, 8, 2)]
    width = max(row.shape[1] for row in rows)
    page = np.full((sum(height) + GAP * 3, 2 * width + GAP, 3), 255, np.uint8)
    for place, row in enumerate(rows):
        line, column = divmod(place, 2)
        top, left = sum(height[:line]) + GAP * line, (width + GAP) * column
        page[top : top + row.shape[0], left : left + row.shape[1]] = row
    save(to / "large.jpg", page)


def save(path: Path, page: np.ndarray) -> None:
    Image.fromarray(page).save(path, quality=QUALITY, subsampling=0)
    print(f"{path}: {page.shape[1]} x {page.shape[0]}, {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    to = arguments.to or arguments.model
    to.mkdir(parents=True, exist_ok=True)
    colorizer = Colorizer.load(arguments.model)
    small_photos(colorizer, arguments.tiny, to)
    large_photos(colorizer, arguments.large, to)


if __name__ == "__main__":
    sys.exit(errors.run(main))
