"""The squares that are trained on: one set or several mixed, their order in an epoch, and their batches.

No torch here: the command line lists and checks data without it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from Project7.errors import ProjectError, sentence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataSummary:
    """What became of the photos of one part of a data set."""

    part: str  # "training" or "validation"
    used: int  # squares
    photos: int  # that they come from
    broken: tuple[tuple[str, str], ...]  # names and reasons
    gray: int  # photos left out by min_colorfulness
    seconds: float  # of decoding, when the cache was built
    built: bool = False  # now, rather than opened
    warning: str = ""

    def lines(self) -> list[str]:
        squares = f" ({self.used:,} squares)" if self.used != self.photos else ""
        how = f"decoded in {self.seconds:.0f} s" if self.built else "from the cache"
        lines = [f"{self.part}: {self.photos:,} images{squares}, {how}"]
        if self.gray:
            lines.append(f"  {self.gray:,} left out: not colourful enough (--min-colorfulness)")
        if self.broken:
            names = ", ".join(f"{name} ({reason})" for name, reason in self.broken[:3])
            lines.append(f"  {len(self.broken):,} broken, left out: {names}{' ...' * (len(self.broken) > 3)}")
        return lines + [f"  {self.warning}"] * bool(self.warning)


class MixedPictures:
    """Several arrays (N_k, S, S, 3) read as one of all their pictures, without a copy."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: "slice | np.ndarray") -> np.ndarray:
        numbers = np.arange(len(self))[which]
        found = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        part = np.searchsorted(self.starts, numbers, side="right") - 1
        for k, pictures in enumerate(self.parts):
            found[part == k] = np.asarray(pictures)[numbers[part == k] - self.starts[k]]
        return found


@dataclass(frozen=True)
class ImageSet:
    images: np.ndarray | MixedPictures  # (N, S, S, 3) uint8, memory-mapped, read-only
    names: tuple[str, ...]  # N names inside the source
    labels: tuple[str, ...]  # N classes (wnids) of Tiny ImageNet, "" elsewhere
    fingerprint: str  # of the pixels and their order: the same data elsewhere is the same
    summary: "DataSummary | MixedSummary | None"
    sizes: tuple[int, ...] = ()  # of several sources: how many of the N pictures each has
    shares: tuple[float, ...] = ()  # and how often each is trained on, in all 1

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The numbers of the N pictures that are trained on in an epoch, in their order."""
        if not self.sizes:
            return epoch_order(seed, epoch, len(self.images))
        return mixed_order(seed, epoch, self.sizes, self.shares)


@dataclass(frozen=True)
class MixedSummary:
    """What became of the photos of several sources."""

    parts: tuple[tuple[str, DataSummary], ...]  # the source, and its part

    def lines(self) -> list[str]:
        return [f"{line}  ({source})" for source, summary in self.parts for line in summary.lines()]


def mixed(sources: Sequence[str], parts: Sequence[ImageSet], shares: Sequence[float] | None) -> ImageSet:
    """Several sets as one; shares: None trains on each picture equally often."""
    sizes = tuple(len(part.images) for part in parts)
    wanted = shares or sizes
    facts = json.dumps([[part.fingerprint for part in parts], list(wanted)])
    return ImageSet(
        MixedPictures([part.images for part in parts]),
        tuple(name for part in parts for name in part.names),
        tuple(label for part in parts for label in part.labels),
        hashlib.sha256(facts.encode()).hexdigest(),
        MixedSummary(tuple(zip(sources, (part.summary for part in parts), strict=True))),
        sizes,
        tuple(share / sum(wanted) for share in wanted),
    )


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of the images in an epoch: a permutation that depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def mixed_order(seed: int, epoch: int, sizes: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """Several sets, one after the other in one numbering -> the order of an epoch, as long as all together.

    Each set gets its share of the epoch and goes through its pictures pass after pass, across epochs: one that is small
    for its share repeats, one that is large goes on where the last epoch left it.
    """
    total = sum(sizes)
    ends = np.round(np.cumsum([0.0, *shares]) * total).astype(int)
    ends[-1] = total
    chosen, first = [], 0
    for k, (size, count) in enumerate(zip(sizes, np.diff(ends), strict=True)):
        places = np.arange(epoch * count, (epoch + 1) * count)
        passes = {p: np.random.default_rng([seed, int(p), k]).permutation(size) for p in np.unique(places // size)}
        chosen.append(first + np.array([passes[p][n] for p, n in zip(places // size, places % size, strict=True)], int))
        first += size
    return np.concatenate(chosen)[np.random.default_rng([seed, epoch]).permutation(total)]


def load_batches(images: np.ndarray, batches: Sequence[np.ndarray], *, num_workers: int = 0) -> Iterator["Tensor"]:
    """For each index array its pictures, uint8 (B, S, S, 3): one fancy index a batch, whatever the number of workers.

    Raises ProjectError with the hint --num-workers 0 where a worker dies.
    """
    import torch

    if num_workers == 0:
        plain = images if isinstance(images, MixedPictures) else np.asarray(images)
        for indices in batches:
            yield torch.from_numpy(plain[indices])
        return
    loader = torch.utils.data.DataLoader(
        _Pictures(images), batch_size=None, sampler=batches, num_workers=min(num_workers, max(1, len(batches)))
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise ProjectError(f"A process that reads images died ({sentence(error)}); try --num-workers 0.") from error


class _Pictures:
    """What a DataLoader's worker reads from: the memory maps are opened again by their paths, never copied."""

    def __init__(self, images: np.ndarray | MixedPictures):
        self.images = images

    def __getitem__(self, indices: np.ndarray) -> "Tensor":
        import torch

        images = self.images if isinstance(self.images, MixedPictures) else np.asarray(self.images)
        return torch.from_numpy(images[indices])

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self):
        parts = self.images.parts if isinstance(self.images, MixedPictures) else (self.images,)
        return [(str(p.filename), p.shape) if isinstance(p, np.memmap) else p for p in parts]

    def __setstate__(self, state):
        parts = [np.memmap(p[0], np.uint8, "r", shape=p[1]) if isinstance(p, tuple) else p for p in state]
        self.images = parts[0] if len(parts) == 1 else MixedPictures(parts)
