"""Tiny ImageNet, any folder or zip of images, built-in photos -> uint8 RGB squares: found, split, decoded once,
memory-mapped.

No torch at import: the command line lists and checks data without it.
"""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from Project7.errors import ProjectError, UsageError, sentence
from Project7.metrics import colorfulness
from Project7.photo import MAX_PIXELS, PhotoError, open_photo
from Project7.training_config import IMAGE_SUFFIXES, DataConfig

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = "samples"
_SAMPLE_FILES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_SAMPLE_CROPS = 200  # squares of each built-in photo: five centre squares would teach nothing
_CACHE_VERSION = 1  # raise it when the same settings give other pixels
_CHUNK = 256  # photos that a worker decodes at a time
_ALONE = 512  # fewer photos are decoded without workers
_MOST_BROKEN = 0.05
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_BUILDING = ".building-"

Counter = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


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


class Photo(NamedTuple):
    """A file of a source: its name inside it, its class, and what changes when its content does."""

    name: str
    label: str
    identity: str


@dataclass(frozen=True)
class Source:
    root: str  # the folder, or the zip file
    is_zip: bool
    training: tuple[Photo, ...]
    validation: tuple[Photo, ...] | None  # None: the set has no such part


def open_dataset(
    config: DataConfig, *, seed: int, cache_dir: Path | None = None, progress: Counter | None = None
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
    data: str, crops: int, config: DataConfig, *, seed: int, cache_dir: Path | None, progress: Counter | None
) -> tuple[ImageSet, ImageSet]:
    source = scan(data)
    how = {"size": config.image_size, "crops": _SAMPLE_CROPS if data == SAMPLES and crops == 1 else crops}
    training, validation = split(source, config.val_fraction, seed)
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


def open_photos(
    data: str,
    *,
    size: int,
    split: str | None = None,
    limit: int | None = None,
    cache_dir: Path | None = None,
    progress: Counter | None = None,
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


def default_cache_dir() -> Path:
    """$PROJECT7_CACHE, else project7 in $XDG_CACHE_HOME or ~/.cache."""
    if os.environ.get("PROJECT7_CACHE"):
        return Path(os.environ["PROJECT7_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "project7"


def sample_photos() -> dict[str, Path]:
    """The real colour photos that scikit-image's package carries, found without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ProjectError(
            "The built-in photos come with scikit-image, which is not installed: pip install scikit-image."
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return {Path(name).stem: folder / name for name in _SAMPLE_FILES if (folder / name).exists()}


# -- finding ---------------------------------------------------------------------------------------------------------


def scan(data: str) -> Source:
    """What images a source holds, and how they are divided. Raises UsageError with the cure where there are none."""
    cure = "give a folder or zip of images; `project7 download` gets Tiny ImageNet, --data samples needs nothing"
    path = Path(data)
    if data == SAMPLES and not path.exists():
        files = sample_photos().values()
        return Source(str(next(iter(files)).parent), False, tuple(_on_disk(f.parent, f.name) for f in files), None)
    if path.is_dir():
        photos = scan_folder(path)
    elif zipfile.is_zipfile(path):
        photos = scan_zip(path)
    else:
        what = "is neither a folder nor a zip" if path.exists() else "does not exist"
        raise UsageError(f"--data {data} {what}; {cure}.")
    if not photos:
        raise UsageError(f"--data {data} holds no image ({', '.join(IMAGE_SUFFIXES)}); {cure}.")
    return divide(str(path), not path.is_dir(), photos)


def scan_folder(root: Path) -> list[Photo]:
    names = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if _visible(name)]
        inside = Path(folder).relative_to(root)
        names += [(inside / name).as_posix() for name in files if _is_image(name)]
    return [_on_disk(root, name) for name in sorted(names)]


def _on_disk(root: Path, name: str) -> Photo:
    try:
        status = (root / name).stat()
    except OSError:  # a dangling link: reading it will say so
        return Photo(name, "", "unreadable")
    return Photo(name, "", f"{status.st_size}:{status.st_mtime_ns}")


def scan_zip(path: Path) -> list[Photo]:
    """Members are known by their checksums: a zip that was moved or touched is still the same."""
    try:
        members = _archive(str(path)).infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UsageError(f"--data {path} is a damaged zip ({sentence(error)}); copy or download it again.") from None
    photos = [
        Photo(m.filename, "", f"{m.file_size}:{m.CRC}")
        for m in members
        if _is_image(m.filename) and all(map(_visible, m.filename.split("/")))
    ]
    return sorted(photos)


@cache
def _archive(path: str) -> zipfile.ZipFile:
    """One open archive a process: a ZipFile must not be shared by processes."""
    return zipfile.ZipFile(path)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and _visible(name.rsplit("/", 1)[-1])


def divide(root: str, is_zip: bool, photos: Sequence[Photo]) -> Source:
    """Finds the official layout of Tiny ImageNet, or any `train/` and `val/`, below at most one common folder."""
    tops = {photo.name.split("/")[0] for photo in photos}
    prefix = f"{tops.pop()}/" if len(tops) == 1 and not tops & {"train", "val"} else ""
    parts: dict[str, list[Photo]] = {"train": [], "val": []}
    for photo in photos:
        part = photo.name.removeprefix(prefix).split("/")[0]
        if part in parts:
            parts[part].append(photo)
    if not parts["train"] or not parts["val"]:
        return Source(root, is_zip, tuple(photos), None)
    labels = _val_labels(root, is_zip, f"{prefix}val/val_annotations.txt")
    training = [p._replace(label=_wnid(p.name.removeprefix(prefix))) for p in parts["train"]]
    validation = [p._replace(label=labels.get(PurePosixPath(p.name).name, "")) for p in parts["val"]]
    return Source(root, is_zip, tuple(training), tuple(validation))


def _wnid(name: str) -> str:
    """train/n01443537/images/n01443537_0.JPEG -> n01443537"""
    folders = name.split("/")
    return folders[1] if len(folders) > 2 else ""


def _val_labels(root: str, is_zip: bool, name: str) -> dict[str, str]:
    try:
        text = read(root, is_zip, name).decode()
    except (OSError, KeyError, UnicodeDecodeError):
        return {}
    return {line.split("\t")[0]: line.split("\t")[1] for line in text.splitlines() if "\t" in line}


def read(root: str, is_zip: bool, name: str) -> bytes:
    return _archive(root).read(name) if is_zip else (Path(root) / name).read_bytes()


# -- dividing --------------------------------------------------------------------------------------------------------


def split(source: Source, fraction: float, seed: int) -> tuple[tuple[Photo, ...], tuple[Photo, ...]]:
    """Training and validation photos.

    Where the set is not divided, a seeded share is kept for validation, photo by photo.
    """
    if source.validation:
        return source.training, source.validation
    order = shuffled(source.training, seed)
    if len(order) == 1:
        return order, order
    kept = max(1, round(fraction * len(order)))
    return tuple(sorted(order[kept:])), order[:kept]


def shuffled(photos: Sequence[Photo], seed: int) -> tuple[Photo, ...]:
    """A seeded order in which any first N are spread over the whole set."""
    order = np.random.default_rng(seed).permutation(len(photos))
    return tuple(photos[i] for i in order)


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


# -- the cache -------------------------------------------------------------------------------------------------------


def open_part(
    source: Source,
    part: str,
    photos: Sequence[Photo],
    how: dict[str, int],
    min_colorfulness: float,
    limit: int | None,
    seed: int,
    cache_dir: Path,
    progress: Counter | None,
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
            found = load(folder)
            if found:
                return found
            build(source, photos, how, choice, folder, progress)
    except OSError as error:
        raise ProjectError(
            f"The image cache {folder} could not be written ({sentence(error)}); free some space, or choose another "
            "place with --cache-dir."
        ) from error
    return replace(opened := load(folder), summary=replace(opened.summary, built=True))


def load(folder: Path) -> ImageSet | None:
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


def build(
    source: Source,
    photos: Sequence[Photo],
    how: dict[str, int],
    choice: dict[str, Any],
    folder: Path,
    progress: Counter | None,
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


def write_pixels(source, photos, how, choice, path: Path, progress: Counter | None):
    """Decodes photos until there are enough.

    Returns those used, (name, reason) of broken ones, gray ones, and a digest.
    """
    used: list[Photo] = []
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


# -- decoding --------------------------------------------------------------------------------------------------------


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


def decode_chunk(job: tuple, photos: Iterable[Photo]) -> tuple[list[bytes | None], list[str]]:
    """For each photo its squares, `crops` times size * size * 3 bytes; or None and why not."""
    root, is_zip, how, min_colorfulness = job
    squares: list[bytes | None] = []
    reasons: list[str] = []
    for photo in photos:
        pixels, reason = None, ""
        try:
            pixels = decode(read(root, is_zip, photo.name), photo.name, **how)  # (crops, S, S, 3)
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


# -- loading ---------------------------------------------------------------------------------------------------------


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
