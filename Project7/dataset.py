"""Opens Tiny ImageNet, any folder, zip or tars of images, or the built-in photos, as uint8 RGB squares for training,
validation and measuring.

It does not import torch, so that the command line can list and check data quickly.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Project7.cache_folder import default_cache_dir, free_bytes
from Project7.counting import Counting, counted, sized
from Project7.errors import ProjectError, UsageError
from Project7.image_cache import Part, is_cached, open_part
from Project7.image_set import ImageSet, mixed
from Project7.photo_source import SAMPLES, hold_out, scan, shuffled
from Project7.squares import short_side
from Project7.training_config import DataConfig

_SAMPLE_CROPS = 200  # squares per built-in photo: five centre squares would be too few to learn from
_FULL = 0.95  # largest share of the free disk to fill
_MEASURED = 32  # photos of a source whose sizes are looked at
_MORE = 1.2  # times the side that the network sees, from which on a larger one for the encoder is worth its room
_FOR_VIEWS = 0.25  # largest share of the free disk that views may take
_CROPPED = 0.7  # mean side of a random square (squares.py), as a share of a photo's short side


@dataclass(frozen=True)
class Divided:
    """The training and the validation part of a source, before any photo is decoded."""

    training: Part
    validation: Part
    notes: tuple[str, ...]  # what was found but is not used

    def open(self, cache_dir: Path, progress: Counting | None, *, on_the_fly: bool) -> tuple[ImageSet, ImageSet]:
        """The training and the validation images. Validation images are read every epoch, so they are always cached."""
        training = open_part(self.training, cache_dir, progress, on_the_fly=on_the_fly)
        validation = open_part(self.validation, cache_dir, progress)
        if self.notes:
            training = training.reported(warning="; ".join(self.notes))
        if self.training.photos == self.validation.photos:
            validation = validation.reported(warning="the only photo is used for training and for validation")
        return training, validation


def open_dataset(
    config: DataConfig,
    *,
    seed: int,
    cache_dir: Path | None = None,
    progress: Counting | None = None,
    say: Callable[[str], object] | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images. Decodes those that are not in the cache yet, or leaves this to training,
    as --decode says.

    say: called before anything is decoded, with the size of the decoded images and their folder. Raises UsageError if
    there is no image, ProjectError if more than 5 % are broken or the disk has no room.
    """
    where = cache_dir or default_cache_dir()
    sources = divided_sources(config, seed=seed, cache_dir=where)
    on_the_fly = choose_decoding(sources, config.decode, where, say)
    opened = [
        source.open(where, progress, on_the_fly=on_the_fly and not kept(source.training, config.decode, where))
        for source in sources
    ]
    if len(opened) == 1:
        return opened[0]
    training, validation = (mixed(config.data, parts, config.shares) for parts in zip(*opened, strict=True))
    return training, validation


def divided_sources(config: DataConfig, *, seed: int, cache_dir: Path) -> list[Divided]:
    crops = config.crops * len(config.data) if len(config.crops) == 1 else config.crops
    pairs = zip(config.data, crops, strict=True)
    return [divide_source(source, count, config, seed=seed, cache_dir=cache_dir) for source, count in pairs]


def divide_source(data: str, crops: int, config: DataConfig, *, seed: int, cache_dir: Path) -> Divided:
    """The parts of a source. crops: number of squares per training photo."""
    source = scan(data, cache_dir)
    crops = _SAMPLE_CROPS if data == SAMPLES and crops == 1 else crops
    training, validation = hold_out(source, config.val_fraction, seed)
    if config.limit or config.min_colorfulness:
        training = shuffled(training, seed)
    how: dict[str, Any] = {
        "size": config.kept_size,
        "crops": crops,
        "seed": seed,
        "min_colorfulness": config.min_colorfulness,
    }
    # If the set has a validation part of its own, its photos are the same for every seed of the run.
    return Divided(
        Part("training", source.storage, training, limit=config.limit, **how),
        Part("validation", source.storage, shuffled(validation, 0), limit=config.val_limit, **how),
        source.notes,
    )


def view_side(config: DataConfig, largest: int, *, seed: int, cache_dir: Path | None = None) -> int | None:
    """The side in pixels at which an encoder is shown the training squares: as many as most of them have, by some
    photos of each source, and at most `largest`. None if that is hardly more than the network sees, or if the decoded
    squares would fill too much of the disk."""
    where = cache_dir or default_cache_dir()
    sources = divided_sources(config, seed=seed, cache_dir=where)
    sides: list[tuple[float, float]] = []  # each with its weight
    for number, source in enumerate(sources):
        part = source.training
        found = [side * (_CROPPED if part.crops > 1 else 1) for side in some_short_sides(part)] or [0.0]
        share = config.shares[number] if config.shares else part.wanted * part.crops
        sides += [(side, share / len(found)) for side in found]
    values, weights = np.array(sorted(sides)).T
    side = min(largest, int(values[np.searchsorted(weights.cumsum(), weights.sum() / 2)]))
    parts = [part for source in sources for part in (source.training, source.validation)]
    need = sum(dataclasses.replace(part, size=side).decoded_bytes for part in parts)
    return side if side >= _MORE * config.image_size and need < _FOR_VIEWS * free_bytes(where) else None


def some_short_sides(part: Part) -> list[int]:
    """The short sides in pixels of some photos that can be read."""
    photos, found = part.photos[: part.wanted], []
    for photo in photos[:: max(1, len(photos) // _MEASURED)][:_MEASURED]:
        with contextlib.suppress(Exception):  # Pillow and zipfile raise a dozen kinds on damaged files
            found.append(short_side(part.storage.read(photo)))
    return found


def kept(part: Part, decode: str, cache_dir: Path) -> bool:
    """Whether a part is already in the cache and is read from it."""
    return decode != "on-the-fly" and is_cached(part, cache_dir)


def choose_decoding(
    sources: Sequence[Divided], decode: str, cache_dir: Path, say: Callable[[str], object] | None
) -> bool:
    """Whether training photos that are not in the cache are decoded on the fly. Raises ProjectError if the disk has no
    room and --decode leaves no choice."""
    training = [source.training for source in sources if not kept(source.training, decode, cache_dir)]
    validation = [source.validation for source in sources if not is_cached(source.validation, cache_dir)]
    parts, free = training + validation, free_bytes(cache_dir)
    need, least = (sum(part.decoded_bytes for part in some) for some in (parts, validation))
    on_the_fly = decode == "on-the-fly" or (decode == "auto" and need > _FULL * free)
    count = counted(sum(part.wanted for part in parts), "photo")
    size = f"{count} take up to {sized(need)} decoded, and {sized(free)} are free in {cache_dir}"
    place = "free some space, choose another folder with --cache-dir"
    if not on_the_fly and need > _FULL * free:
        raise ProjectError(f"The {size}; {place}, or decode them when they are needed with --decode on-the-fly.")
    if on_the_fly and least > _FULL * free:
        raise ProjectError(
            f"The {size}; even the {sized(least)} for validation do not fit there; {place}, or give a lower "
            "--val-limit."
        )
    if say and parts:
        how = "the training photos are decoded on the fly, when they are needed" if on_the_fly else "kept there"
        say(f"{size}: {how}")
    return on_the_fly


def open_photos(
    data: str,
    *,
    size: int,
    split: str | None = None,
    limit: int | None = None,
    cache_dir: Path | None = None,
    progress: Counting | None = None,
) -> ImageSet:
    """The centre squares of photos for measuring, in an order that does not depend on `limit`.

    split: "train" or "val" of a divided set (None: val). A plain folder is used whole. Raises UsageError if a split of
    a plain folder is named.
    """
    where = cache_dir or default_cache_dir()
    source = scan(data, where)
    if source.validation is None and split:
        raise UsageError(f"--data {data} is not divided into train and val; leave out --split to use it whole.")
    photos = source.training if source.validation is None or split == "train" else source.validation
    part = Part("test", source.storage, shuffled(photos, 0), size=size, crops=1, seed=0, limit=limit)
    return open_part(part, where, progress)
