"""The feature maps of a frozen encoder for the photos of a data set, computed once and kept on disk as float16.

On a CPU the encoder takes a third to two thirds of a training step (benchmarks/RESULTS.md), and its output never
changes. A row holds the maps of one photo, one after the other. Mirrored photos have rows of their own, in a second
file: their maps are not the mirrored maps, because the kernels of a trained network are not symmetric (at stride 8 the
two agree no better than the maps of two different photos).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from Project7 import color
from Project7.atomic_file import file_lock
from Project7.cache_folder import default_cache_dir, free_bytes
from Project7.config import RunConfig
from Project7.counting import Counting, sized
from Project7.encoder import Encoder, Maps
from Project7.errors import ProjectError, UsageError, sentence
from Project7.image_set import ImageSet
from Project7.settings import parse_settings

_VERSION = 1  # to be raised when the same photos and encoder give other numbers
_TOGETHER = 16  # photos at a time: with more, the maps no longer fit into the processor's cache
_CHUNK = 64  # rows written at a time
_EPOCHS = 2  # epochs that take the encoder as long as the cache does, with mirrored photos


class FeatureCache:
    """The maps of every photo of a set, and of every mirrored photo if training mirrors photos."""

    def __init__(self, rows: Sequence[np.ndarray], shapes: tuple[tuple[int, ...], ...]):
        self.rows = rows  # (N, D) float16: of the photos, and of the mirrored photos
        self.shapes = shapes  # (C, h, w) of each map

    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """The rows of B photos, (B, D) float16. indices: (B,); mirrored: (B,) bool."""
        found = np.empty((len(indices), self.rows[0].shape[1]), np.float16)
        for rows, places in zip(self.rows, (~mirrored, mirrored), strict=False):
            found[places] = np.asarray(rows)[indices[places]]
        return torch.from_numpy(found)

    def maps(self, rows: Tensor) -> Maps:
        """Rows (B, D) -> float32 maps (B, C_k, h_k, w_k), as the encoder gives them."""
        parts = rows.float().split([int(np.prod(shape)) for shape in self.shapes], dim=1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True))


def open_features(
    encoder: Encoder,
    images: ImageSet,
    *,
    mirror: bool = True,
    cache_dir: Path | None = None,
    progress: Counting | None = None,
) -> FeatureCache:
    """The features of a set from the cache. Missing features are computed first, and an interrupted computation
    continues. mirror: whether the features of mirrored photos are needed too.

    Raises ProjectError if the disk has no room for them.
    """
    shapes = map_shapes(encoder, images)
    width, count = sum(int(np.prod(shape)) for shape in shapes), len(images.images)
    facts = [_VERSION, images.fingerprint, count, encoder.name, encoder.size, encoder.fingerprint()]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    folder = cache_dir or default_cache_dir()
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f"{key}.lock"):
            for mirrored in (False, True) if mirror else (False,):
                path = folder / f"{key}{'-mirrored' if mirrored else ''}.features"
                if not path.exists() or path.stat().st_size != 2 * count * width:
                    part = path.with_suffix(".features-part")
                    compute(encoder, images, part, width, mirrored, progress)
                    os.replace(part, path)
                rows.append(np.memmap(path, np.float16, "r", shape=(count, width)))
    except (OSError, ValueError) as error:
        raise ProjectError(
            f"The features of the photos could not be kept in {folder} ({sentence(error)}); free some space, choose "
            "another folder with --cache-dir, or leave out --cache-features."
        ) from error
    return FeatureCache(rows, shapes)


def advice(
    config: RunConfig, images: ImageSet, device: torch.device, cache_dir: Path | None = None, *, done: int = 0
) -> str:
    """A sentence if training on these photos would be faster with `--cache-features`, else "". done: epochs so far."""
    settings = config.training
    short = settings.epochs - done <= _EPOCHS
    if not config.model.encoder or settings.cache_features or device.type != "cpu" or short:
        return ""
    cached = settings.model_copy(update={"cache_features": True})
    try:
        parse_settings(RunConfig, dict(config) | {"training": dict(cached)})
    except UsageError:  # the photos change at every step
        return ""
    shapes = map_shapes(Encoder(config.model.encoder, config.model.encoder_size), images)
    need = 2 * sum(int(np.prod(shape)) for shape in shapes) * len(images.images) * (2 if settings.mirror else 1)
    if need > free_bytes(cache_dir or default_cache_dir()) / 2:
        return ""
    return (
        "The encoder is a large part of every step on this processor: --cache-features keeps what it sees "
        f"({sized(need)} on the disk), which pays after {_EPOCHS} epochs; it may also be given with --resume."
    )


def map_shapes(encoder: Encoder, images: ImageSet) -> tuple[tuple[int, ...], ...]:
    """(C, h, w) of each map that the encoder gives for these photos."""
    with torch.no_grad():
        maps = encoder(encoder.view(torch.zeros(1, 1, *images.images.shape[1:3])))
    return tuple(tuple(part.shape[1:]) for part in maps)


def compute(
    encoder: Encoder, images: ImageSet, part: Path, width: int, mirrored: bool, progress: Counting | None
) -> None:
    """Appends rows to the file `part`, so that an interrupted computation continues after the last whole row."""
    row_bytes, count = 2 * width, len(images.images)
    done = part.stat().st_size // row_bytes if part.exists() else 0
    need, free = (count - done) * row_bytes, shutil.disk_usage(part.parent).free
    if need > 0.95 * free:
        raise ProjectError(
            f"The features of {count:,} photos take {need / 1e9:.1f} GB in {part.parent}, and {free / 1e9:.1f} GB are "
            "free; free some space, choose another folder with --cache-dir, or leave out --cache-features."
        )
    with open(part, "ab") as file:
        file.truncate(done * row_bytes)
        for start in range(done, count, _CHUNK):
            rgb = color.channels_first(np.array(images.images[start : start + _CHUNK]))
            rgb = rgb.flip(-1) if mirrored else rgb
            file.write(np.concatenate([look(encoder, some) for some in rgb.split(_TOGETHER)]).tobytes())
            if progress:
                progress("looking at the photos", min(start + _CHUNK, count), count)
        file.flush()
        os.fsync(file.fileno())


def look(encoder: Encoder, rgb: Tensor) -> np.ndarray:
    """rgb (B, 3, S, S) uint8 -> rows (B, D) float16."""
    maps = encoder(encoder.view(color.lightness(rgb)))
    return torch.cat([part.flatten(1) for part in maps], dim=1).half().numpy()
