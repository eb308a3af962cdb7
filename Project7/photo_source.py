"""Finds the photos of a data set: Tiny ImageNet, any folder or zip, tars, the hub, or the built-in samples.

Imports no torch: the command line lists and checks data without it.
"""

import importlib.util
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from Project7.errors import ProjectError, UsageError, sentence
from Project7.hub_photos import HUB, scan_hub
from Project7.photo_files import LeftOut, count_others, is_photo_name, is_visible, photo_suffixes, photos_below, shown
from Project7.photo_storage import Folder, SourcePhoto, Storage, Tars, Zip, open_archive
from Project7.remote_file import is_remote
from Project7.tar_index import expand, index_all, is_tar_name, tars_below

SAMPLES = "samples"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_SAMPLE_FILES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


@dataclass(frozen=True)
class Source:
    """The photos of a data set, divided as the set itself is."""

    storage: Storage
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


def scan(data: str, cache_dir: Path | None = None) -> Source:
    """The images of a source, and how they are divided. Raises UsageError, which names the cure, if there are none.

    cache_dir: where the indexes of tars are kept.
    """
    cure = "give a folder, zip or tar of images; `project7 download` gets Tiny ImageNet, --data samples needs nothing"
    path = Path(data)
    if data == SAMPLES and not path.exists():
        files = sample_photos().values()
        folder = next(iter(files)).parent
        return Source(Folder(str(folder)), tuple(_on_disk(f.parent, f.name) for f in files), None)
    if data.startswith(HUB):
        return Source(*scan_hub(data))
    left_out = LeftOut()
    storage: Storage
    if path.is_dir():
        storage, photos = Folder(data), scan_folder(path, left_out)
        if not photos and (tars := tars_below(path)):
            left_out = LeftOut()
            storage, photos = scan_tars(tars, path, left_out, cache_dir)
    elif is_remote(data) or is_tar_name(data):
        storage, photos = scan_tars(expand(data), None, left_out, cache_dir)
    elif path.is_file() and zipfile.is_zipfile(path):
        storage, photos = Zip(data), scan_zip(path, left_out)
    else:
        what = "is neither a folder nor a zip or tar" if path.exists() else "does not exist"
        raise UsageError(f"--data {shown(data)} {what}; {cure}.")
    if not photos:
        others = "".join(f"; {line}" for line in left_out.lines())
        raise UsageError(f"--data {shown(data)} holds no image ({', '.join(photo_suffixes())}){others}; {cure}.")
    source = divide(storage, photos)
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
        members = open_archive(str(path), os.getpid()).infolist()
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


def scan_tars(
    tars: list[str], root: Path | None, left_out: LeftOut, cache_dir: Path | None
) -> tuple[Tars, list[SourcePhoto]]:
    """The images of tars, named as if each tar were unpacked at its place below `root`; if two would then have the same
    name, each tar gets a folder of its own name. A member is identified by its place and by the tar's size and time.

    Raises UsageError if a tar is damaged or cut short.
    """
    found: list[tuple[str, SourcePhoto]] = []
    for number, (tar, (stamp, members)) in enumerate(zip(tars, index_all(tars, cache_dir), strict=True)):
        parent = Path(tar).parent.relative_to(root).as_posix() if root else "."
        inside = "" if parent == "." else f"{parent}/"
        for member in members:
            if not is_photo_name(member.name):
                count_others(member.name, left_out)
            elif member.refused:
                left_out.skipped.append((Path(inside + member.name), member.refused))
            elif all(map(is_visible, member.name.split("/"))):
                place = (number, member.offset, member.size)
                photo = SourcePhoto(inside + member.name, "", f"{stamp}:{member.offset}:{member.size}", place)
                found.append((tar, photo))
    times = Counter(photo.name for _, photo in found)
    if times and max(times.values()) > 1:
        found = [(tar, photo._replace(name=f"{PurePosixPath(tar).stem}/{photo.name}")) for tar, photo in found]
    return Tars(tuple(tars)), sorted(photo for _, photo in found)


def divide(storage: Storage, photos: Sequence[SourcePhoto]) -> Source:
    """Finds the official layout of Tiny ImageNet, or any `train/` and `val/`, at the top or in one common folder."""
    tops = {photo.name.split("/")[0] for photo in photos}
    prefix = f"{tops.pop()}/" if len(tops) == 1 and not tops & {"train", "val"} else ""
    parts: dict[str, list[SourcePhoto]] = {"train": [], "val": []}
    for photo in photos:
        part = photo.name.removeprefix(prefix).split("/")[0]
        if part in parts:
            parts[part].append(photo)
    if not parts["train"] or not parts["val"]:
        return Source(storage, tuple(photos), None)
    labels = _val_labels(storage, f"{prefix}val/val_annotations.txt")
    training = [p._replace(label=_wnid(p.name.removeprefix(prefix))) for p in parts["train"]]
    validation = [p._replace(label=labels.get(PurePosixPath(p.name).name, "")) for p in parts["val"]]
    unused = len(photos) - len(training) - len(validation)
    notes = (f"{unused:,} photos beside train/ and val/ are not used",) if unused else ()
    return Source(storage, tuple(training), tuple(validation), notes)


def _wnid(name: str) -> str:
    """train/n01443537/images/n01443537_0.JPEG -> n01443537"""
    folders = name.split("/")
    return folders[1] if len(folders) > 2 else ""


def _val_labels(storage: Storage, name: str) -> dict[str, str]:
    if not isinstance(storage, Folder | Zip):  # only photos can be read from tars
        return {}
    try:
        text = storage.read(SourcePhoto(name, "", "")).decode()
    except (OSError, KeyError, UnicodeDecodeError, ProjectError):
        return {}
    return {line.split("\t")[0]: line.split("\t")[1] for line in text.splitlines() if "\t" in line}


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
