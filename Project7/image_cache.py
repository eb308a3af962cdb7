"""Photos as squares of uint8 RGB: decoded once, by several processes, and memory-mapped from then on.

Imports no torch: the command line lists and checks data without it.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from Project7.atomic_file import file_lock
from Project7.counting import Counting
from Project7.errors import ProjectError, sentence
from Project7.image_set import DataSummary, ImageSet
from Project7.metrics import colorfulness
from Project7.photo import MAX_PIXELS, PhotoError, open_photo, read_small
from Project7.photo_files import shown
from Project7.photo_source import Source, SourcePhoto, read_bytes

_CACHE_VERSION = 2  # to be raised when the same settings give other pixels
_CHUNK = 256  # photos that a worker decodes at a time
_ALONE = 512  # fewer photos are decoded without workers
_MOST_BROKEN = 0.05  # as a share of the photos
_BUILDING = ".building-"
_BLOCK = 1 << 26  # bytes that one checksum covers
_MOST_BLOCKS = 64  # 4 GB, which takes 2 s: at most this much of a set is checked each time it is opened


def default_cache_dir() -> Path:
    """The cache folder: $PROJECT7_CACHE if it is set, else `project7` in $XDG_CACHE_HOME or in ~/.cache."""
    if os.environ.get("PROJECT7_CACHE"):
        return Path(os.environ["PROJECT7_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "project7"
    try:
        return Path.home() / ".cache" / "project7"
    except RuntimeError:  # no HOME, and a user that the system does not know: a container
        return Path(tempfile.gettempdir()) / f"project7-{os.getuid()}"


def open_part(
    source: Source,
    part: str,
    photos: Sequence[SourcePhoto],
    how: dict[str, int],
    min_colorfulness: float,
    limit: int | None,
    seed: int,
    cache_dir: Path,
    progress: Counting | None,
) -> ImageSet:
    """Opens one part of a data set from the cache, and builds it there first if needed. If two processes need the same
    part, one builds it and the other waits.

    how: the size of the squares, and how many squares to take from each photo. Raises ProjectError if too many photos
    are broken, or if the cache cannot be written.
    """
    how = {**how, "seed": seed if how["crops"] > 1 else 0}
    choice = {"limit": limit, "min_colorfulness": min_colorfulness, "part": part, "version": _CACHE_VERSION}
    key = hashlib.sha256(json.dumps([how, choice, photos]).encode()).hexdigest()[:24]
    folder = cache_dir / key
    if found := open_entry(folder):  # needs no permission to write: the cache may belong to another user
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with file_lock(cache_dir / f"{key}.lock"):
            found = open_entry(folder)
            if found:
                return found
            fill_entry(source, photos, how, choice, folder, progress)
            built = open_entry(folder)
            if built is None:
                raise OSError("the files are not as they were written")
            return built.reported(built=True)
    except OSError as error:
        raise ProjectError(
            f"The image cache {folder} could not be written ({sentence(error)}); {remedy(error)}choose another place "
            "with --cache-dir."
        ) from error


def remedy(error: OSError) -> str:
    return "free some space, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""


def open_entry(folder: Path) -> ImageSet | None:
    """A cache entry; None if it is missing or damaged."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
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
    except (OSError, ValueError, KeyError, TypeError):
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


def fill_entry(
    source: Source,
    photos: Sequence[SourcePhoto],
    how: dict[str, int],
    choice: dict[str, Any],
    folder: Path,
    progress: Counting | None,
) -> None:
    """Decodes `photos` into a cache entry, which is complete when it appears."""
    begin = time.monotonic()
    for stale in folder.parent.glob(f"{_BUILDING}{folder.name}*"):  # we hold the lock, so their builder is dead
        shutil.rmtree(stale, ignore_errors=True)
    work = folder.with_name(f"{_BUILDING}{folder.name}-{os.getpid()}")
    work.mkdir()
    try:
        used, broken, gray, digest = write_pixels(source, photos, how, choice, work / "images.bin", progress)
        check(photos, used, broken, gray, choice)
        crops, size = how["crops"], how["size"]
        names = [photo.name for photo in used for _ in range(crops)]
        info = {
            "shape": [len(names), size, size, 3],
            "names": names,
            "labels": [photo.label for photo in used for _ in range(crops)],
            "fingerprint": digest,
            "blocks": list(block_checksums(work / "images.bin")),
            "summary": asdict(
                DataSummary(choice["part"], len(names), len(used), tuple(broken), gray, time.monotonic() - begin)
            ),
        }
        (work / "info.json").write_text(json.dumps(info), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_pixels(source, photos, how, choice, path: Path, progress: Counting | None):
    """Decodes photos until there are enough.

    Returns the photos used, (name, reason) of each broken one, the number of gray ones, and the SHA-256 of the pixels.
    """
    used: list[SourcePhoto] = []
    broken: list[tuple[str, str]] = []
    digest, gray, seen = hashlib.sha256(), 0, 0
    wanted = choice["limit"] or len(photos)
    enough = None if choice["min_colorfulness"] else wanted
    with open(path, "wb") as file, closing(decode_all(source, photos, how, choice, enough)) as chunks:
        for chunk, squares, reasons in chunks:
            seen += len(chunk)
            for photo, square, reason in zip(chunk, squares, reasons, strict=True):
                if square is None:
                    gray += reason == "gray"
                    broken += [(photo.name, reason)] * (reason != "gray")
                elif len(used) < wanted:
                    used.append(photo)
                    file.write(square)
                    digest.update(square)
            if progress:
                progress(
                    f"decoding {choice['part']} images", min(seen, len(photos)), max(wanted, min(seen, len(photos)))
                )
            if len(used) >= wanted:
                break
        file.flush()
        os.fsync(file.fileno())
    return used, broken, gray, digest.hexdigest()


def check(photos, used, broken, gray: int, choice: dict[str, Any]) -> None:
    """Raises ProjectError if too many photos of a source are broken, or if none is left."""
    tried = len(used) + len(broken) + gray
    if broken and len(broken) > _MOST_BROKEN * tried:
        names = ", ".join(f"{shown(name)} ({reason})" for name, reason in broken[:3])
        raise ProjectError(
            f"{len(broken)} of {tried} images are broken, and at most {int(_MOST_BROKEN * tried)} (5 %) may be: {names}"
            f"{' ...' if len(broken) > 3 else ''}; copy the set again, or take the broken ones out."
        )
    if not used:
        raise ProjectError(
            f"None of the {len(photos)} {choice['part']} images reaches --min-colorfulness "
            f"{choice['min_colorfulness']:g}; choose a lower one."
        )


def decode_all(source: Source, photos, how, choice, enough: int | None) -> Generator[tuple, None, None]:
    """(photos, squares, reasons) chunk by chunk, in order. Many photos are decoded by worker processes."""
    chunks = [photos[i : i + _CHUNK] for i in range(0, len(photos), _CHUNK)]
    job = (source.root, source.is_zip, how, choice["min_colorfulness"])
    if (enough or len(photos)) * how["crops"] < _ALONE:
        for photo in photos:  # one by one, so that no more are read than needed
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
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cpus() -> int:
    """The processors that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow_the_parent() -> None:
    """In a worker: leaves Ctrl-C to the parent process, and ends when that has ended, for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        if parent := parent_process():
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def decode_chunk(job: tuple, photos: Iterable[SourcePhoto]) -> tuple[list[bytes | None], list[str]]:
    """For each photo, its squares as `crops` * size * size * 3 bytes, or None with the reason."""
    root, is_zip, how, min_colorfulness = job
    squares: list[bytes | None] = []
    reasons: list[str] = []
    for photo in photos:
        pixels, reason = None, ""
        try:
            pixels = decode(read_bytes(root, is_zip, photo.name), photo.name, **how)  # (crops, S, S, 3)
            if min_colorfulness and colorfulness(pixels).mean() < min_colorfulness:
                pixels, reason = None, "gray"
        except PhotoError as error:
            reason = str(error).removeprefix("the picture ").split(";")[0]
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            reason = sentence(error)[:80]
        squares.append(None if pixels is None else pixels.tobytes())
        reasons.append(reason)
    return squares, reasons


def decode(content: bytes, name: str, *, size: int, crops: int, seed: int) -> np.ndarray:
    """The squares of a photo, (crops, S, S, 3) uint8: the centre square, or `crops` random squares that depend only on
    the seed and the name."""
    image = read_small(content, 2 * size if crops == 1 else MAX_PIXELS)
    if image is None:
        image = Image.fromarray(open_photo(content).rgb)
    image = ImageOps.exif_transpose(image).convert("RGB")
    boxes = [_centre(image.size)] if crops == 1 else _random_boxes(image.size, size, crops, f"{seed}/{name}")
    return np.stack([_square(image, box, size) for box in boxes])


def _centre(size: tuple[int, int]) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _random_boxes(size: tuple[int, int], smallest: int, crops: int, key: str) -> list[tuple[int, int, int, int]]:
    """Squares with 40 to 100 % of the short side, and with at least `smallest` pixels if the photo is large enough."""
    random = np.random.default_rng(list(hashlib.sha256(os.fsencode(key)).digest()))
    short = min(size)
    low = min(short, max(smallest, round(0.4 * short)))
    boxes = []
    for _ in range(crops):
        side = int(random.integers(low, short + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in size)
        boxes.append((left, top, left + side, top + side))
    return boxes


def _square(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """One square at its final size. A picture that already has this size is returned unchanged, bit for bit."""
    if box == (0, 0, size, size) == (0, 0, *image.size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
