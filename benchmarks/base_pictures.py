#!/usr/bin/env python
"""The pictures of a model card: photos that the model has never seen, coloured by it, and chosen only by their order.

    python benchmarks/base_pictures.py MODEL_FOLDER --tiny TINY_IMAGENET --photos PHOTOS --large LARGE [--to FOLDER]

validation.jpg: the first 32 of the validation photos that `project7 evaluate` measures on, gray | colour | truth.
photos.jpg: the first 24 validation photos of PHOTOS, at full size, gray | colour | truth.
old.jpg: the next twelve, blurred, faded, grainy and compressed like old ones, aged | colour | truth.
large.jpg: the first eight of the photos that a run on LARGE keeps for validation, at full size, gray | colour | truth.
seeds.jpg: eight validation photos of PHOTOS, gray | four seeds | with ten true colours as hints | truth.

Every colour is the first answer, with the defaults of `project7 colorize`.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from PIL import Image

from benchmarks.old_photos import aged, coloured
from Project7 import color, program
from Project7.answer_config import EvaluateConfig
from Project7.answer_options import model_options
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.evaluate import colour, generator
from Project7.image_set import ImageSet
from Project7.photo import open_photo
from Project7.photo_source import hold_out, scan
from Project7.sheet import sheet, side_by_side
from Project7.training_config import DataConfig

GAP = 12  # pixels between the blocks of a page
QUALITY = 85
BATCH = 16


def blocks(columns: list[np.ndarray], count: int, *, smallest: int) -> np.ndarray:
    """A sheet of gray | ... | truth, with its photos in `count` blocks side by side."""
    parts = np.array_split(np.arange(len(columns[0])), count)
    sheets = [sheet([column[part] for column in columns], smallest=smallest) for part in parts]
    gap = np.full((sheets[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([piece for one in sheets for piece in (gap, one)][1:], axis=1)


def answers(colorizer: Colorizer, photos: ImageSet, seed: int, *, hints: int = 0) -> np.ndarray:
    """(N, S, S, 3) uint8, as `project7 evaluate` colours them by default."""
    settings = EvaluateConfig(seed=seed, hints=hints)
    rgb, names = color.channels_first(np.array(photos.images)), list(photos.names)
    parts = [slice(start, start + BATCH) for start in range(0, len(names), BATCH)]
    options = model_options(colorizer.model, settings, 1)
    return np.concatenate(
        [
            colour(colorizer, rgb[part], [generator(seed, 0, n) for n in names[part]], names[part], settings, options)
            for part in parts
        ]
    )


def gray_of(rgb: np.ndarray) -> np.ndarray:
    return color.channels_last(color.gray(color.channels_first(rgb)))


def small_photos(colorizer: Colorizer, data: str, to: Path) -> None:
    photos = open_photos(data, size=64, split="val", limit=32)
    truth = np.array(photos.images)
    save(to / "validation.jpg", blocks([gray_of(truth), answers(colorizer, photos, 0), truth], 4, smallest=64))


def middle_photos(colorizer: Colorizer, data: str, to: Path) -> None:
    photos = open_photos(data, size=140, split="val", limit=36)
    truth = np.array(photos.images)
    shown = answers(colorizer, photos, 0)
    columns = [part[:24] for part in (gray_of(truth), shown, truth)]
    save(to / "photos.jpg", blocks(columns, 3, smallest=128))
    seeds = [shown, *(answers(colorizer, photos, seed) for seed in (1, 2, 3))]
    told = [answers(colorizer, photos, 0, hints=10)] if colorizer.takes_hints else []
    save(to / "seeds.jpg", sheet([part[:8] for part in (gray_of(truth), *seeds, *told, truth)], smallest=128))
    old_photos(colorizer, truth[24:], to)


def old_photos(colorizer: Colorizer, truth: np.ndarray, to: Path) -> None:
    pictures = aged(truth)
    save(to / "old.jpg", blocks([pictures, coloured(colorizer, pictures), truth], 3, smallest=128))


def large_photos(colorizer: Colorizer, data: str, to: Path) -> None:
    source = scan(data)
    _, held_out = hold_out(source, DataConfig().val_fraction, seed=0)
    rows = []
    for photo in held_out[:8]:
        opened = open_photo(source.storage.read(photo))
        rows.append(side_by_side([gray_of(opened.rgb[None])[0], np.asarray(colorizer.colorize(opened)), opened.rgb]))
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
    parser.add_argument("--photos", required=True)
    parser.add_argument("--large", required=True)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    to = arguments.to or arguments.model
    to.mkdir(parents=True, exist_ok=True)
    colorizer = Colorizer.load(arguments.model)
    small_photos(colorizer, arguments.tiny, to)
    middle_photos(colorizer, arguments.photos, to)
    large_photos(colorizer, arguments.large, to)


if __name__ == "__main__":
    sys.exit(program.run(main))
