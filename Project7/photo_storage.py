"""Reads the bytes of a data set's photos: from a folder, a zip, tars, or tables of the hub. Imports no torch."""

import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from Project7.photo_files import shown
from Project7.remote_file import is_remote, read_part


class SourcePhoto(NamedTuple):
    """One image file of a source."""

    name: str  # inside the folder, zip, tars or tables
    label: str  # the class in Tiny ImageNet, "" elsewhere
    identity: str  # changes when the content of the file changes
    # In tars: the index of the tar, the offset of the first byte, the number of bytes. In tables: its index, the row.
    place: tuple[int, ...] = ()


@dataclass(frozen=True)
class Folder:
    root: str

    def read(self, photo: SourcePhoto) -> bytes:
        """The bytes of a photo's file. Raises PhotoError if it is too large."""
        from Project7.photo import file_content

        return file_content(Path(self.root) / photo.name)


@dataclass(frozen=True)
class Zip:
    path: str

    def read(self, photo: SourcePhoto) -> bytes:
        """The bytes of a photo's file. Raises PhotoError if it is too large, before anything is unpacked."""
        archive = open_archive(self.path, os.getpid())
        check_size(photo.name, archive.getinfo(photo.name).file_size)
        return archive.read(photo.name)


@dataclass(frozen=True)
class Tars:
    paths: tuple[str, ...]  # or addresses

    def read(self, photo: SourcePhoto) -> bytes:
        """The bytes of a photo's file. Raises PhotoError if it is too large, before anything is read, and ProjectError
        if a server does not send it."""
        number, offset, size = photo.place
        path = self.paths[number]
        check_size(photo.name, size)
        if is_remote(path):
            return read_part(path, offset, size)
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True)
class HubRows:
    tables: tuple[Any, ...]  # of datasets.Dataset: memory maps, which other processes open by their paths
    column: str

    def read(self, photo: SourcePhoto) -> bytes:
        """A photo's file. Raises PhotoError where the row has none, or one outside the library's own cache."""
        from datasets import config

        from Project7.photo import PhotoError, file_content

        number, row = photo.place
        cell = self.tables[number][row][self.column] or {}
        if cell.get("bytes"):
            check_size(photo.name, len(cell["bytes"]))
            return cell["bytes"]
        path = Path(cell.get("path") or "")
        if not path.resolve().is_relative_to(Path(config.HF_CACHE_HOME).expanduser().resolve()):
            raise PhotoError(f"{photo.name} holds no picture; leave it out.")
        return file_content(path)


Storage = Folder | Zip | Tars | HubRows


def check_size(name: str, size: int) -> None:
    from Project7.photo import MAX_BYTES, PhotoError

    if size > MAX_BYTES:
        raise PhotoError(
            f"{shown(name)} takes {size >> 20:,} MiB unpacked, and at most {MAX_BYTES >> 20:,} are read; leave it out."
        )


@cache
def open_archive(path: str, process: int) -> zipfile.ZipFile:
    """One open archive per process, also in a forked process, which would otherwise share the file position."""
    return zipfile.ZipFile(path)
