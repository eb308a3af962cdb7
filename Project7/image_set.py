"""The squares that are trained on: one set or several mixed, their order in an epoch, and their batches.

Imports no torch: the command line lists and checks data without it.
"""

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from Project7.errors import ProjectError, sentence
from Project7.on_the_fly import OnTheFly
from Project7.photo_files import shown
from Project7.processes import leave_signals_to_the_parent, own_cpus

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DataSummary:
    """What became of the photos in one part of a data set."""

    part: str  # "training" or "validation"
    used: int  # squares
    photos: int  # that the squares come from
    broken: tuple[tuple[str, str], ...]  # name and reason of each photo that could not be read
    gray: int  # photos left out because of min_colorfulness
    seconds: float  # that decoding took when the cache was built
    built: bool = False  # whether it was decoded just now, rather than opened from the cache
    warning: str = ""
    on_the_fly: bool = False  # the squares are decoded whenever they are needed

    def lines(self) -> list[str]:
        squares = f" ({self.used:,} squares)" if self.used != self.photos else ""
        how = f"decoded in {self.seconds:.0f} s" if self.built else "from the cache"
        if self.on_the_fly:
            how = "decoded on the fly" + (f" (looked through in {self.seconds:.0f} s)" if self.built else "")
        lines = [f"{self.part}: {self.photos:,} images{squares}, {how}"]
        if self.gray:
            lines.append(f"  {self.gray:,} left out: not colourful enough (--min-colorfulness)")
        if self.broken:
            names = ", ".join(f"{shown(name)} ({reason})" for name, reason in self.broken[:3])
            lines.append(f"  {len(self.broken):,} broken, left out: {names}{' ...' if len(self.broken) > 3 else ''}")
        if self.warning:
            lines.append(f"  {self.warning}")
        return lines


class MixedPictures:
    """Several arrays (N_k, S, S, 3), read without a copy as if they were one."""

    def __init__(self, parts: "Sequence[Pictures]"):
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.shape: tuple[int, ...] = (int(self.starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: "slice | np.ndarray") -> np.ndarray:
        numbers = np.arange(len(self))[which]
        found = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        part = np.searchsorted(self.starts, numbers, side="right") - 1
        for k, pictures in enumerate(self.parts):
            found[part == k] = plain(pictures)[numbers[part == k] - self.starts[k]]
        return found


Pictures = np.ndarray | MixedPictures | OnTheFly


def plain(pictures: Pictures) -> Pictures:
    """A memory map as an ordinary array, which is indexed twice as fast."""
    return np.asarray(pictures) if isinstance(pictures, np.ndarray) else pictures


def needs_workers(pictures: Pictures) -> bool:
    """Whether batches of these pictures take so long that worker processes should prepare them."""
    if isinstance(pictures, MixedPictures):
        return any(map(needs_workers, pictures.parts))
    return isinstance(pictures, OnTheFly)


@dataclass(frozen=True)
class MixedSummary:
    """What became of the photos of several sources."""

    parts: "tuple[tuple[str, DataSummary | MixedSummary], ...]"  # each source with its summary

    def lines(self) -> list[str]:
        return [f"{line}  ({source})" for source, summary in self.parts for line in summary.lines()]


@dataclass(frozen=True)
class ImageSet:
    """N pictures to train on, to validate with or to measure with."""

    images: Pictures  # (N, S, S, 3) uint8, memory-mapped and read-only, or decoded on the fly
    names: tuple[str, ...]  # N names inside the source
    labels: tuple[str, ...]  # N classes (WordNet IDs) of Tiny ImageNet, "" elsewhere
    fingerprint: str  # digest of the pixels and their order; a copy of the data elsewhere has the same one
    summary: DataSummary | MixedSummary
    sizes: tuple[int, ...] = ()  # with several sources: how many of the N pictures each one has
    shares: tuple[float, ...] = ()  # with several sources: how often each one is trained on; their sum is 1

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The indices of the pictures to train on in an epoch, (N,), in order."""
        if not self.sizes:
            return epoch_order(seed, epoch, len(self.images))
        return mixed_order(seed, epoch, self.sizes, self.shares)

    def reported(self, **changes: Any) -> "ImageSet":
        """The same set of one source, with changes to its summary."""
        assert isinstance(self.summary, DataSummary)
        return replace(self, summary=replace(self.summary, **changes))


def mixed(sources: Sequence[str], parts: Sequence[ImageSet], shares: Sequence[float] | None) -> ImageSet:
    """Combines several sets into one. shares: how often each set is trained on; None trains on each picture equally
    often."""
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
    """The order of the n images in an epoch: a permutation that depends only on the seed, the epoch and n."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def mixed_order(seed: int, epoch: int, sizes: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """The order of an epoch over several sets, whose pictures are numbered one set after the other.

    The epoch is as long as all sets together, and each set gets its share of it. The passes through a set continue
    across epochs: a set that is small for its share repeats its pictures within an epoch, and a large one continues
    where the last epoch stopped.
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


def load_batches(
    images: Pictures, batches: Sequence[np.ndarray], *, num_workers: int | None = None
) -> Generator["Tensor"]:
    """Yields the pictures of each array of indices, uint8 (B, S, S, 3), with or without worker processes.

    num_workers: None means one per processor if pictures are decoded on the fly, else none.
    Raises ProjectError if a photo can no longer be decoded, or, with the advice --num-workers 0, if a worker dies.
    """
    import torch

    if num_workers is None:
        num_workers = own_cpus() if needs_workers(images) else 0
    if num_workers == 0:
        direct = plain(images)
        for indices in batches:
            yield torch.from_numpy(direct[indices])
        return
    pictures: Any = _WorkersPictures(images)  # a torch Dataset by its methods: torch is not imported at the top
    loader: Any = torch.utils.data.DataLoader(
        pictures,
        batch_size=None,
        sampler=batches,
        num_workers=min(num_workers, max(1, len(batches))),
        worker_init_fn=leave_signals_to_the_parent,
    )
    try:
        for batch in loader:
            if isinstance(batch, ProjectError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise ProjectError(f"A process that reads images died ({sentence(error)}); try --num-workers 0.") from error


class _WorkersPictures:
    """The dataset of a DataLoader's worker, which opens the memory maps by their paths, so that nothing is copied."""

    def __init__(self, images: Pictures):
        self.images = images

    def __getitem__(self, indices: np.ndarray) -> "Tensor | ProjectError":
        import torch

        try:
            return torch.from_numpy(plain(self.images)[indices])
        except ProjectError as error:  # raised in the main process: the DataLoader would add a traceback to its text
            return error

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self):
        parts = self.images.parts if isinstance(self.images, MixedPictures) else (self.images,)
        return [(str(p.filename), p.shape) if isinstance(p, np.memmap) else p for p in parts]

    def __setstate__(self, state):
        parts: list[Pictures] = [
            np.memmap(p[0], np.uint8, "r", shape=p[1]) if isinstance(p, tuple) else p for p in state
        ]
        self.images = parts[0] if len(parts) == 1 else MixedPictures(parts)
