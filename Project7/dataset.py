"""Opens Tiny ImageNet, any folder or zip of images, or the built-in photos, as uint8 RGB squares for training,
validation and measuring.

It does not import torch, so that the command line can list and check data quickly.
"""

from pathlib import Path

from Project7.counting import Counting
from Project7.errors import UsageError
from Project7.image_cache import default_cache_dir, open_part
from Project7.image_set import ImageSet, mixed
from Project7.photo_source import SAMPLES, hold_out, scan, shuffled
from Project7.training_config import DataConfig

_SAMPLE_CROPS = 200  # squares per built-in photo: five centre squares would be too few to learn from


def open_dataset(
    config: DataConfig, *, seed: int, cache_dir: Path | None = None, progress: Counting | None = None
) -> tuple[ImageSet, ImageSet]:
    """The training and the validation images. Decodes those that are not in the cache yet.

    Raises UsageError if there is no image, ProjectError if more than 5 % are broken or the disk is full.
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
    """The training and the validation images of one source. crops: squares taken from each training photo."""
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
        # If the set has a validation part of its own, its photos are the same for every seed of the run.
        open_part(source, "validation", shuffled(validation, 0), how, least, config.val_limit, seed, where, progress),
    ]
    if source.notes:
        parts[0] = parts[0].reported(warning="; ".join(source.notes))
    if warning:
        parts[1] = parts[1].reported(warning=warning)
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
    """The centre squares of photos for measuring, in an order that does not depend on `limit`.

    split: "train" or "val" of a divided set (None: val). A plain folder is used whole. Raises UsageError if a split of
    a plain folder is named.
    """
    source = scan(data)
    if source.validation is None and split:
        raise UsageError(f"--data {data} is not divided into train and val; leave out --split to use it whole.")
    photos = source.training if source.validation is None or split == "train" else source.validation
    how = {"size": size, "crops": 1}
    return open_part(
        source, "test", shuffled(photos, 0), how, 0.0, limit, 0, cache_dir or default_cache_dir(), progress
    )
