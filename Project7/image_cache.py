"""Photos as squares of uint8 RGB: decoded once, by several processes, and memory-mapped from then on.

Imports no torch: the command line lists and checks data without it.
"""

import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing import current_process, get_context, parent_process
from pathlib import Path

import numpy as np

from Project7.atomic_file import file_lock
from Project7.cache_folder import remedy
from Project7.counting import Counting
from Project7.errors import ProjectError, sentence
from Project7.image_set import DataSummary, ImageSet
from Project7.metrics import colorfulness
from Project7.on_the_fly import OnTheFly
from Project7.photo import PhotoError
from Project7.photo_files import shown
from Project7.photo_storage import SourcePhoto, Storage
from Project7.processes import leave_signals_to_the_parent, usable_cpus
from Project7.squares import decode

_CACHE_VERSION = 2  # to be raised when the same settings give other pixels
_CHUNK = 256  # photos that a worker decodes at a time
_ALONE = 512  # fewer photos are decoded without workers
_MOST_BROKEN = 0.05  # as a share of the photos
_BUILDING = ".building-"
_BLOCK = 1 << 26  # bytes that one checksum covers
_MOST_BLOCKS = 64  # 4 GB, which takes 2 s: at most this much of a set is checked each time it is opened


@dataclass(frozen=True)
class Part:
    """One part of a data set: its photos, and how they become squares."""

    name: str  # "training", "validation" or "test"
    storage: Storage
    photos: tuple[SourcePhoto, ...]
    size: int  # side of the squares in pixels
    crops: int  # squares taken from each photo
    seed: int  # random seed of the squares
    limit: int | None = None  # largest number of photos
    min_colorfulness: float = 0.0

    @property
    def how(self) -> dict[str, int]:
        """The arguments of `decode`."""
        return {"size": self.size, "crops": self.crops, "seed": self.seed if self.crops > 1 else 0}

    @property
    def wanted(self) -> int:
        """The largest number of photos that are used."""
        return min(self.limit or len(self.photos), len(self.photos))

    @property
    def decoded_bytes(self) -> int:
        """The largest number of bytes that its squares take in the cache."""
        return self.wanted * self.crops * self.size * self.size * 3

    @cached_property
    def key(self) -> str:
        """The name of its entry in the cache."""
        choice = {
            "limit": self.limit, "min_colorfulness": self.min_colorfulness, "part": self.name, "version": _CACHE_VERSION
        }  # fmt: skip
        photos = [photo[:3] for photo in self.photos]
        return hashlib.sha256(json.dumps([self.how, choice, photos]).encode()).hexdigest()[:24]


def open_part(part: Part, cache_dir: Path, progress: Counting | None, *, on_the_fly: bool = False) -> ImageSet:
    """Opens one part of a data set from the cache, and builds it there first if needed. If two processes need the same
    part, one builds it and the other waits.

    on_the_fly: the photos are checked in the same way, but only the list of the usable ones is kept.
    Raises ProjectError if too many photos are broken, the cache cannot be written, or a worker process has died.
    """
    folder = cache_dir / (f"{part.key}-list" if on_the_fly else part.key)
    if found := open_entry(folder, part):  # needs no permission to write: the cache may belong to another user
        return found
    if getattr(current_process(), "_inheriting", False):  # a worker, which imports a script without __name__ check
        raise SystemExit(1)  # it would wait for ever for its parent's lock; `decode_all` says what is wrong
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with file_lock(cache_dir / f"{folder.name}.lock"):
            found = open_entry(folder, part)
            if found:
                return found
            fill_entry(part, folder, progress, keep=not on_the_fly)
            built = open_entry(folder, part)
            if built is None:
                raise OSError("the files are not as they were written")
            return built.reported(built=True)
    except OSError as error:
        raise ProjectError(
            f"The image cache {folder} could not be written ({sentence(error)}); {remedy(error)}choose another place "
            "with --cache-dir."
        ) from error


def is_cached(part: Part, cache_dir: Path) -> bool:
    """Whether the decoded squares are in the cache, as far as can be seen without reading them."""
    return (cache_dir / part.key / "info.json").exists()


def open_entry(folder: Path, part: Part) -> ImageSet | None:
    """A cache entry; None if it is missing or damaged."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        images: np.ndarray | OnTheFly
        if "listed" in info:
            images = OnTheFly(part.storage, [part.photos[number] for number in info["listed"]], part.how)
        else:
            shape = tuple(info["shape"])
            if (folder / "images.bin").stat().st_size != np.prod(shape):
                return None
            if not intact(folder / "images.bin", info["blocks"]):
                return None
            images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
        summary = info["summary"] | {"broken": tuple(map(tuple, info["summary"]["broken"]))}
        return ImageSet(
            images, tuple(info["names"]), tuple(info["labels"]), info["fingerprint"], DataSummary(**summary)
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def block_checksums(path: Path, blocks: Iterable[int] | None = None) -> Iterator[int]:
    """The CRC-32 of each block of a file whose number is in `blocks`, in that order; of all blocks if it is None."""
    count = -(-path.stat().st_size // _BLOCK)
    with open(path, "rb") as file:
        for block in range(count) if blocks is None else blocks:
            file.seek(block * _BLOCK)
            yield zlib.crc32(file.read(_BLOCK))


def intact(path: Path, known: Sequence[int]) -> bool:
    """Whether the pixels are those that were written. In a very large set, only a random part is checked each time."""
    some = list(range(len(known)))
    if len(known) > _MOST_BLOCKS:
        some = sorted(np.random.default_rng().choice(len(known), _MOST_BLOCKS, replace=False).tolist())
    return all(found == known[block] for block, found in zip(some, block_checksums(path, some), strict=True))


def fill_entry(part: Part, folder: Path, progress: Counting | None, *, keep: bool) -> None:
    """Decodes the photos into a cache entry, which is complete when it appears. keep: whether to keep the pixels, or
    only the list of the usable photos."""
    begin = time.monotonic()
    for stale in folder.parent.glob(f"{_BUILDING}{folder.name}-[0-9]*"):  # we hold the lock, so their builder is dead
        shutil.rmtree(stale, ignore_errors=True)
    work = folder.with_name(f"{_BUILDING}{folder.name}-{os.getpid()}")
    work.mkdir()
    pixels = work / "images.bin" if keep else None
    try:
        numbers, broken, gray, digest = write_pixels(part, pixels, progress)
        check(part, len(numbers), broken, gray)
        used = [part.photos[number] for number in numbers]
        names = [photo.name for photo in used for _ in range(part.crops)]
        seconds = time.monotonic() - begin
        info = {
            "names": names,
            "labels": [photo.label for photo in used for _ in range(part.crops)],
            "fingerprint": digest,
            "summary": asdict(
                DataSummary(part.name, len(names), len(used), tuple(broken), gray, seconds, on_the_fly=not keep)
            ),
        }
        if pixels:
            info |= {"shape": [len(names), part.size, part.size, 3], "blocks": list(block_checksums(pixels))}
        else:
            info |= {"listed": numbers}
        (work / "info.json").write_text(json.dumps(info), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_pixels(part: Part, path: Path | None, progress: Counting | None):
    """Decodes photos until there are enough. path: None keeps no pixels.

    Returns the indices of the photos used, (name, reason) of each broken one, the number of gray ones, and the SHA-256
    of the pixels.
    """
    used: list[int] = []
    broken: list[tuple[str, str]] = []
    digest, gray, seen, count = hashlib.sha256(), 0, 0, len(part.photos)
    enough = None if part.min_colorfulness else part.wanted
    what = f"{'decoding' if path else 'looking through'} {part.name} images"
    with open(path, "wb") if path else nullcontext() as file, closing(decode_all(part, enough)) as chunks:
        for chunk, squares, reasons in chunks:
            for number, (photo, square, reason) in enumerate(zip(chunk, squares, reasons, strict=True), start=seen):
                if square is None:
                    gray += reason == "gray"
                    broken += [(photo.name, reason)] * (reason != "gray")
                elif len(used) < part.wanted:
                    used.append(number)
                    digest.update(square)
                    if file:
                        file.write(square)
            seen += len(chunk)
            if progress:
                progress(what, min(seen, count), max(part.wanted, min(seen, count)))
            if len(used) >= part.wanted:
                break
        if file:
            file.flush()
            os.fsync(file.fileno())
    return used, broken, gray, digest.hexdigest()


def check(part: Part, used: int, broken: list[tuple[str, str]], gray: int) -> None:
    """Raises ProjectError if too many photos of a source are broken, or if none is left."""
    tried = used + len(broken) + gray
    if broken and len(broken) > _MOST_BROKEN * tried:
        names = ", ".join(f"{shown(name)} ({reason})" for name, reason in broken[:3])
        raise ProjectError(
            f"{len(broken)} of {tried} images are broken, and at most {int(_MOST_BROKEN * tried)} (5 %) may be: {names}"
            f"{' ...' if len(broken) > 3 else ''}; copy the set again, or take the broken ones out."
        )
    if not used:
        raise ProjectError(
            f"None of the {len(part.photos)} {part.name} images reaches --min-colorfulness "
            f"{part.min_colorfulness:g}; choose a lower one."
        )


def decode_all(part: Part, enough: int | None) -> Generator[tuple, None, None]:
    """(photos, squares, reasons) chunk by chunk, in order. Many photos are decoded by worker processes."""
    chunks = [part.photos[i : i + _CHUNK] for i in range(0, len(part.photos), _CHUNK)]
    job = (part.storage, part.how, part.min_colorfulness)
    if (enough or len(part.photos)) * part.crops < _ALONE:
        for photo in part.photos:  # one by one, so that no more are read than needed
            yield ([photo], *decode_chunk(job, [photo]))
        return
    workers = min(len(chunks), usable_cpus(), 61)  # Windows waits for at most 61 processes
    # spawn, because a fork of a process with running torch threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_the_parent)
    try:
        ahead = [pool.submit(decode_chunk, job, chunk) for chunk in chunks[: 2 * workers]]
        for number, chunk in enumerate(chunks):
            yield (chunk, *ahead.pop(0).result())
            if number + 2 * workers < len(chunks):
                ahead.append(pool.submit(decode_chunk, job, chunks[number + 2 * workers]))
    except BrokenProcessPool as error:
        raise ProjectError(
            "A process that decodes photos has ended too early. If memory is short, end other programs and start "
            'again; in a script of your own, put what it does under `if __name__ == "__main__":`, because these '
            "processes import the script."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_the_parent() -> None:
    """In a worker: leaves signals to the parent process, and ends when that has ended, for whatever reason."""
    leave_signals_to_the_parent()

    def wait() -> None:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def decode_chunk(job: tuple, photos: Iterable[SourcePhoto]) -> tuple[list[bytes | None], list[str]]:
    """For each photo, its squares as `crops` * size * size * 3 bytes, or None with the reason."""
    storage, how, min_colorfulness = job
    squares: list[bytes | None] = []
    reasons: list[str] = []
    for photo in photos:
        pixels, reason = None, ""
        try:
            pixels = decode(storage.read(photo), photo.name, **how)  # (crops, S, S, 3)
            if min_colorfulness and colorfulness(pixels).mean() < min_colorfulness:
                pixels, reason = None, "gray"
        except PhotoError as error:
            reason = str(error).removeprefix("the picture ").split(";")[0]
        except ProjectError:  # of a server that does not answer: the photo is not broken
            raise
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            reason = sentence(error)[:80]
        squares.append(None if pixels is None else pixels.tobytes())
        reasons.append(reason)
    return squares, reasons
