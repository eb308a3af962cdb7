"""Tiny ImageNet, any folder or zip of images, built-in photos -> uint8 RGB squares: found, split, decoded once,
memory-mapped.

No torch at import: the command line lists and checks data without it.
"""

from dataclasses import replace
from pathlib import Path

from Project7.counting import Counting
from Project7.errors import UsageError
from Project7.image_cache import default_cache_dir, open_part
from Project7.image_set import ImageSet, mixed
from Project7.photo_source import SAMPLES, hold_out, scan, shuffled
from Project7.training_config import DataConfig

_SAMPLE_CROPS = 200  # squares of each built-in photo: five centre squares would teach nothing


def open_dataset(
    config: DataConfig, *, seed: int, cache_dir: Path | None = None, progress: Counting | None = None
) -> tuple[ImageSet, ImageSet]:
    """Training and validation images. Decodes what is not in the cache yet.

    Raises UsageError where there is no image, ProjectError where more than 5 % are broken or the disk is full.
    """
    crops = config.crops * len(config.data) if len(config.crops) == 1 else config.crops
    opened = [
        open_source(source, count, config, seed=seed, cache_dir=cache_dir, progress=progress)
        for source, count in zip(config.data, crops, strict=True)
    ]
    if len(opened) == 1:
        return opened[0]
    training, validation = (mixed(config.data, parts, config.shares) for parts in zip(*opened, strict=True))
    return training, validation


def open_source(
    data: str, crops: int, config: DataConfig, *, seed: int, cache_dir: Path | None, progress: Counting | None
) -> tuple[ImageSet, ImageSet]:
    source = scan(data)
    how = {"size": config.image_size, "crops": _SAMPLE_CROPS if data == SAMPLES and crops == 1 else crops}
    training, validation = hold_out(source, config.val_fraction, seed)
    if config.limit or config.min_colorfulness:
        training = shuffled(training, seed)
    warning = "the only photo is used for training and for validation" if training == validation else ""
    where = cache_dir or default_cache_dir()
    least = config.min_colorfulness
    parts = [
        open_part(source, "training", training, how, least, config.limit, seed, where, progress),
        # Validation photos are the same for every seed of the run, where the set has its own part.
        open_part(source, "validation", shuffled(validation, 0), how, least, config.val_limit, seed, where, progress),
    ]
    if warning:
        parts[1] = replace(parts[1], summary=replace(parts[1].summary, warning=warning))
    return parts[0], parts[1]


def open_photos(
    data: str,
    *,
    size: int,
    split: str | None = None,
    limit: int | None = None,
    cache_dir: Path | None = None,
    progress: Counting | None = None,
) -> ImageSet:
    """The centre squares of photos to measure with, in an order of their own that does not depend on `limit`.

    split: "train" or "val" of a set that is divided (None: val); a plain folder is used whole, and has no split.
    Raises UsageError where that is asked for all the same.
    """
    source = scan(data)
    if source.validation is None and split:
        raise UsageError(f"--data {data} is not divided into train and val; leave --split out, it is used whole.")
    photos = source.training if source.validation is None or split == "train" else source.validation
    how = {"size": size, "crops": 1}
    return open_part(
        source, "test", shuffled(photos, 0), how, 0.0, limit, 0, cache_dir or default_cache_dir(), progress
    )
