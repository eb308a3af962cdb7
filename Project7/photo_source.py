"""Finds the photos of a data set: Tiny ImageNet, any folder or zip, or the built-in samples.

Imports no torch: the command line lists and checks data without it.
"""

import importlib.util
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from Project7.errors import ProjectError, UsageError, sentence
from Project7.photo_files import LeftOut, count_others, is_photo_name, is_visible, photo_suffixes, photos_below, shown

SAMPLES = "samples"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_SAMPLE_FILES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


class SourcePhoto(NamedTuple):
    """One image file of a source."""

    name: str  # inside the folder or zip
    label: str  # the class in Tiny ImageNet, "" elsewhere
    identity: str  # changes when the content of the file changes


@dataclass(frozen=True)
class Source:
    """The photos of a data set, divided as the set itself is."""

    root: str  # the folder, or the zip file
    is_zip: bool
    training: tuple[SourcePhoto, ...]
    validation: tuple[SourcePhoto, ...] | None  # None: the set is not divided
    notes: tuple[str, ...] = ()  # what was found but is not used, in words


def sample_photos() -> dict[str, Path]:
    """The colour photos that come with scikit-image, by their names; found without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ProjectError(
            "The built-in photos come with scikit-image, which is not installed: pip install scikit-image."
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return {Path(name).stem: folder / name for name in _SAMPLE_FILES if (folder / name).exists()}


def scan(data: str) -> Source:
    """The images of a source, and how they are divided. Raises UsageError, which names the cure, if there are none."""
    cure = "give a folder or zip of images; `project7 download` gets Tiny ImageNet, --data samples needs nothing"
    path = Path(data)
    if data == SAMPLES and not path.exists():
        files = sample_photos().values()
        return Source(str(next(iter(files)).parent), False, tuple(_on_disk(f.parent, f.name) for f in files), None)
    left_out = LeftOut()
    if path.is_dir():
        photos = scan_folder(path, left_out)
    elif path.is_file() and zipfile.is_zipfile(path):
        photos = scan_zip(path, left_out)
    else:
        what = "is neither a folder nor a zip" if path.exists() else "does not exist"
        raise UsageError(f"--data {shown(data)} {what}; {cure}.")
    if not photos:
        others = "".join(f"; {line}" for line in left_out.lines())
        raise UsageError(f"--data {shown(data)} holds no image ({', '.join(photo_suffixes())}){others}; {cure}.")
    source = divide(str(path), not path.is_dir(), photos)
    return replace(source, notes=(*source.notes, *left_out.lines()))


def scan_folder(root: Path, left_out: LeftOut) -> list[SourcePhoto]:
    names = sorted(file.relative_to(root).as_posix() for file in photos_below(root, left_out))
    return [_on_disk(root, name) for name in names]


def _on_disk(root: Path, name: str) -> SourcePhoto:
    try:
        status = (root / name).stat()
    except OSError:  # a broken link: reading it later gives the reason
        return SourcePhoto(name, "", "unreadable")
    return SourcePhoto(name, "", f"{status.st_size}:{status.st_mtime_ns}")


def scan_zip(path: Path, left_out: LeftOut) -> list[SourcePhoto]:
    """The images of a zip, identified by their checksums, so that a zip that was moved or touched is still the same.

    Raises UsageError if the zip is damaged, encrypted, or compressed by a method that Python cannot read.
    """
    try:
        members = _archive(str(path)).infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UsageError(
            f"--data {shown(path)} is a damaged zip ({sentence(error)}); copy or download it again."
        ) from None
    members = [m for m in members if not m.is_dir() and all(map(is_visible, m.filename.split("/")))]
    photos = [m for m in members if is_photo_name(m.filename)]
    for member in members:
        if not is_photo_name(member.filename):
            count_others(member.filename, left_out)
    if any(member.flag_bits & 1 for member in photos):
        raise UsageError(f"--data {shown(path)} is encrypted; unpack it with its password, and give the folder.")
    if foreign := {member.compress_type for member in photos} - set(_COMPRESSIONS):
        raise UsageError(
            f"--data {shown(path)} is compressed by method {min(foreign)} of the zip format, which is not read; "
            "unpack it, and give the folder."
        )
    return sorted(SourcePhoto(m.filename, "", f"{m.file_size}:{m.CRC}") for m in photos)


@cache
def _archive(path: str) -> zipfile.ZipFile:
    """One open archive per process: a ZipFile must not be shared by processes."""
    return zipfile.ZipFile(path)


def divide(root: str, is_zip: bool, photos: Sequence[SourcePhoto]) -> Source:
    """Finds the official layout of Tiny ImageNet, or any `train/` and `val/`, at the top or in one common folder."""
    tops = {photo.name.split("/")[0] for photo in photos}
    prefix = f"{tops.pop()}/" if len(tops) == 1 and not tops & {"train", "val"} else ""
    parts: dict[str, list[SourcePhoto]] = {"train": [], "val": []}
    for photo in photos:
        part = photo.name.removeprefix(prefix).split("/")[0]
        if part in parts:
            parts[part].append(photo)
    if not parts["train"] or not parts["val"]:
        return Source(root, is_zip, tuple(photos), None)
    labels = _val_labels(root, is_zip, f"{prefix}val/val_annotations.txt")
    training = [p._replace(label=_wnid(p.name.removeprefix(prefix))) for p in parts["train"]]
    validation = [p._replace(label=labels.get(PurePosixPath(p.name).name, "")) for p in parts["val"]]
    unused = len(photos) - len(training) - len(validation)
    notes = (f"{unused:,} photos beside train/ and val/ are not used",) if unused else ()
    return Source(root, is_zip, tuple(training), tuple(validation), notes)


def _wnid(name: str) -> str:
    """train/n01443537/images/n01443537_0.JPEG -> n01443537"""
    folders = name.split("/")
    return folders[1] if len(folders) > 2 else ""


def _val_labels(root: str, is_zip: bool, name: str) -> dict[str, str]:
    try:
        text = read_bytes(root, is_zip, name).decode()
    except (OSError, KeyError, UnicodeDecodeError, ProjectError):
        return {}
    return {line.split("\t")[0]: line.split("\t")[1] for line in text.splitlines() if "\t" in line}


def read_bytes(root: str, is_zip: bool, name: str) -> bytes:
    """The bytes of a photo's file. Raises PhotoError if it is too large; in a zip, before anything is unpacked."""
    from Project7.photo import MAX_BYTES, PhotoError, file_content

    if not is_zip:
        return file_content(Path(root) / name)
    archive = _archive(root)
    size = archive.getinfo(name).file_size
    if size > MAX_BYTES:
        raise PhotoError(
            f"{shown(name)} takes {size >> 20:,} MiB unpacked, and at most {MAX_BYTES >> 20:,} are read; leave it out."
        )
    return archive.read(name)


def hold_out(source: Source, fraction: float, seed: int) -> tuple[tuple[SourcePhoto, ...], tuple[SourcePhoto, ...]]:
    """The training and the validation photos. A set that is not divided gives a random `fraction` of its photos to
    validation, chosen by `seed`."""
    if source.validation:
        return source.training, source.validation
    order = shuffled(source.training, seed)
    if len(order) == 1:
        return order, order
    kept = max(1, round(fraction * len(order)))
    return tuple(sorted(order[kept:])), order[:kept]


def shuffled(photos: Sequence[SourcePhoto], seed: int) -> tuple[SourcePhoto, ...]:
    """The photos in a random order, so that the first N are spread over the whole set."""
    order = np.random.default_rng(seed).permutation(len(photos))
    return tuple(photos[i] for i in order)
