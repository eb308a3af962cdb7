"""Photos as squares of uint8 RGB: decoded once, by several processes, and memory-mapped ever after.

No torch here: the command line lists and checks data without it.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from Project7.counting import Counting
from Project7.errors import ProjectError, sentence
from Project7.image_set import DataSummary, ImageSet
from Project7.metrics import colorfulness
from Project7.photo import MAX_PIXELS, PhotoError, open_photo
from Project7.photo_source import Source, SourcePhoto, read_bytes

_CACHE_VERSION = 1  # raise it when the same settings give other pixels
_CHUNK = 256  # photos that a worker decodes at a time
_ALONE = 512  # fewer photos are decoded without workers
_MOST_BROKEN = 0.05
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_BUILDING = ".building-"


def default_cache_dir() -> Path:
    """$PROJECT7_CACHE, else project7 in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("PROJECT7_CACHE"):
        return Path(os.environ["PROJECT7_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "project7"


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
    """One part from the cache, built first where it is not there. Of two processes, one builds and the other waits.

    how: the size of the squares, and how many of a photo.
    """
    from filelock import FileLock

    how = {**how, "seed": seed if how["crops"] > 1 else 0}
    choice = {"limit": limit, "min_colorfulness": min_colorfulness, "part": part, "version": _CACHE_VERSION}
    key = hashlib.sha256(json.dumps([how, choice, photos]).encode()).hexdigest()[:24]
    folder = cache_dir / key
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            found = open_entry(folder)
            if found:
                return found
            fill_entry(source, photos, how, choice, folder, progress)
    except OSError as error:
        raise ProjectError(
            f"The image cache {folder} could not be written ({sentence(error)}); free some space, or choose another "
            "place with --cache-dir."
        ) from error
    return replace(opened := open_entry(folder), summary=replace(opened.summary, built=True))


def open_entry(folder: Path) -> ImageSet | None:
    """A whole cache entry; None for one that is missing or damaged."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        shape = tuple(info["shape"])
        if (folder / "images.bin").stat().st_size != np.prod(shape):
            return None
        images = np.memmap(folder / "images.bin", np.uint8, "r", shape=shape)
        summary = info["summary"] | {"broken": tuple(map(tuple, info["summary"]["broken"]))}
        return ImageSet(
            images, tuple(info["names"]), tuple(info["labels"]), info["fingerprint"], DataSummary(**summary)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fill_entry(
    source: Source,
    photos: Sequence[SourcePhoto],
    how: dict[str, int],
    choice: dict[str, Any],
    folder: Path,
    progress: Counting | None,
) -> None:
    """Decodes `photos` into a cache entry, which appears whole or not at all."""
    begin = time.monotonic()
    for stale in folder.parent.glob(f"{_BUILDING}{folder.name}*"):  # we hold the lock: their builder is dead
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

    Returns those used, (name, reason) of broken ones, gray ones, and a digest.
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
    return used, broken, gray, digest.hexdigest()


def check(photos, used, broken, gray: int, choice: dict[str, Any]) -> None:
    """Raises ProjectError where too much of a source is broken, or nothing is left."""
    tried = len(used) + len(broken) + gray
    if broken and len(broken) > _MOST_BROKEN * tried:
        names = ", ".join(f"{name} ({reason})" for name, reason in broken[:3])
        raise ProjectError(
            f"{len(broken)} of {tried} images are broken ({len(broken) / tried:.0%}, at most 5 % may be): {names}"
            f"{' ...' * (len(broken) > 3)}; copy the set again, or take the broken ones out."
        )
    if not used:
        raise ProjectError(
            f"None of the {len(photos)} {choice['part']} images reaches --min-colorfulness "
            f"{choice['min_colorfulness']:g}; choose a lower one."
        )


def decode_all(source: Source, photos, how, choice, enough: int | None) -> Iterator[tuple]:
    """(photos, squares, reasons) chunk by chunk, in order, decoded by worker processes where there are many."""
    chunks = [photos[i : i + _CHUNK] for i in range(0, len(photos), _CHUNK)]
    job = (source.root, source.is_zip, how, choice["min_colorfulness"])
    if (enough or len(photos)) * how["crops"] < _ALONE:
        for photo in photos:  # one by one, so that no more are read than are wanted
            yield ([photo], *decode_chunk(job, [photo]))
        return
    workers = min(len(chunks), os.cpu_count() or 1)
    # spawn: a fork of a process whose torch threads run can hang
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_the_parent)
    try:
        ahead = [pool.submit(decode_chunk, job, chunk) for chunk in chunks[: 2 * workers]]
        for number, chunk in enumerate(chunks):
            yield (chunk, *ahead.pop(0).result())
            if number + 2 * workers < len(chunks):
                ahead.append(pool.submit(decode_chunk, job, chunks[number + 2 * workers]))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_the_parent() -> None:
    """In a worker: leaves Ctrl-C to the parent, and ends when the parent is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def decode_chunk(job: tuple, photos: Iterable[SourcePhoto]) -> tuple[list[bytes | None], list[str]]:
    """For each photo its squares, `crops` times size * size * 3 bytes; or None and why not."""
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
    """A photo's squares, (crops, S, S, 3) uint8: the centre one, or `crops` random ones, the same for the same
    seed and name."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.width * image.height > MAX_PIXELS or image.mode not in ("RGB", "L"):
            image = Image.fromarray(open_photo(content).rgb)  # the rare kinds: 16-bit, palette, CMYK, too large ...
        elif crops == 1:
            image.draft("RGB", (2 * size, 2 * size))  # JPEG decodes to a half, a quarter, an eighth for less
        image = ImageOps.exif_transpose(image).convert("RGB")
        boxes = [_centre(image.size)] if crops == 1 else _random_boxes(image.size, size, crops, f"{seed}/{name}")
        return np.stack([_square(image, box, size) for box in boxes])


def _centre(size: tuple[int, int]) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _random_boxes(size: tuple[int, int], smallest: int, crops: int, key: str) -> list[tuple[int, int, int, int]]:
    """Squares of 40 to 100 % of the short side, and no smaller than they will be where the photo allows it."""
    random = np.random.default_rng(list(hashlib.sha256(key.encode()).digest()))
    short = min(size)
    low = min(short, max(smallest, round(0.4 * short)))
    boxes = []
    for _ in range(crops):
        side = int(random.integers(low, short + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in size)
        boxes.append((left, top, left + side, top + side))
    return boxes


def _square(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """A picture that has the size already is taken as it is, bit for bit."""
    if box == (0, 0, size, size) == (0, 0, *image.size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
