"""An index of the members of a tar, so that its photos can be read in any order without unpacking it.

A tar has no table of contents, so its headers are read once, one after the other, and their content is kept in the
cache folder. No content of a member is read, and no link is followed. Imports no torch.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

from Project7.atomic_file import replacing
from Project7.cache_folder import default_cache_dir
from Project7.errors import ProjectError, UsageError, sentence
from Project7.photo_files import is_visible, shown
from Project7.remote_file import AHEAD, RemoteFile, describe, is_remote

_VERSION = 1  # to be raised when the same tar gives another index
_LONGEST_HEADER = 1 << 20  # bytes: names and times take a few hundred
_TOGETHER = 8  # number of tars whose headers are read at the same time
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
_ADVICE = "copy or download it again"


class Member(NamedTuple):
    """An entry of a tar that is not a folder."""

    name: str
    offset: int  # of its first byte in the tar
    size: int  # bytes
    modified: int  # seconds since 1970, as the tar says
    refused: str  # why it is not read: "a link", ...; "" for a plain file


def is_tar_name(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))


def expand(address: str) -> list[str]:
    """shards/{000..099}.tar -> shards/000.tar, ..., shards/099.tar, in the notation of WebDataset and bash. Raises
    UsageError if a range counts downwards."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", address)
    ranges = []
    for first, last in zip(pieces[1::3], pieces[2::3], strict=True):
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        ranges.append([f"{number:0{width}}" for number in range(int(first), int(last) + 1)])
    if any(not numbers for numbers in ranges):
        raise UsageError(f"--data {shown(address)} counts downwards; write the lower number first.")
    texts = pieces[::3]
    return ["".join(sum(zip(texts, (*numbers, ""), strict=True), ())) for numbers in product(*ranges)]


def tars_below(folder: Path) -> list[str]:
    """The tars in a folder and in all folders below it, sorted."""
    found = (path for path in folder.rglob("*") if is_tar_name(path.name) and path.is_file())
    return sorted(str(path) for path in found if all(map(is_visible, path.relative_to(folder).parts)))


def index_all(tars: list[str], cache_dir: Path | None = None) -> list[tuple[str, list[Member]]]:
    """For each tar, a stamp that changes with its content, and its members.

    Raises UsageError, which names the tar, if one is missing, damaged, cut short or compressed, and ProjectError if an
    address cannot be read.
    """
    with ThreadPoolExecutor(_TOGETHER) as pool:
        return list(pool.map(lambda tar: _index(tar, cache_dir or default_cache_dir()), tars))


def _index(tar: str, cache_dir: Path) -> tuple[str, list[Member]]:
    try:
        size, stamp = _describe(tar)
        place = tar if is_remote(tar) else os.path.abspath(tar)
        key = hashlib.sha256(json.dumps([_VERSION, place, stamp]).encode()).hexdigest()[:24]
        kept = cache_dir / "tars" / f"{key}.json"
        with suppress(OSError, ValueError, TypeError):
            return stamp, [Member(*member) for member in json.loads(kept.read_text(encoding="utf-8"))]
        with io.BufferedReader(RemoteFile(tar, size), AHEAD) if is_remote(tar) else open(tar, "rb") as file:
            members = list(read_members(file, size))
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UsageError(f"--data {shown(tar)} {fault(error)}.") from None
    with suppress(OSError, ProjectError):  # the stored index only saves time
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as file:
            file.write(json.dumps(members).encode())
    return stamp, members


def _describe(tar: str) -> tuple[int, str]:
    """Its size in bytes, and what changes when its content does."""
    if is_remote(tar):
        return describe(tar)
    status = os.stat(tar)
    return status.st_size, f"{status.st_size}:{status.st_mtime_ns}"


def fault(error: Exception) -> str:
    """What is wrong with a tar, and the cure."""
    if isinstance(error, FileNotFoundError):
        return "does not exist; check the path, and the numbers in braces"
    if isinstance(error, OSError):
        return f"could not be read ({sentence(error)}); check its permissions, or {_ADVICE}"
    text = str(error)
    if text == "unexpected end of data":
        return f"is cut short: it ends in the middle of a member; {_ADVICE}"
    return text if text.startswith("is ") else f"is a damaged tar ({text}); {_ADVICE}"


def read_members(file: BinaryIO, size: int) -> Iterator[Member]:
    """The members of an open tar of `size` bytes. Raises tarfile.TarError if it is damaged or cut short."""
    head = file.read(6)
    if kind := next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None):
        raise tarfile.ReadError(f"is compressed with {kind}, so that photos cannot be read out of order; unpack it")
    file.seek(0)
    end = 0
    with tarfile.open(fileobj=Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
        while member := tar.next():
            tar.members.clear()  # it would keep all of them in memory
            if tar.offset <= end or member.size < 0:
                raise tarfile.ReadError(f"the header after byte {end:,} leads back")
            end = tar.offset
            if member.offset_data + member.size > size:
                raise tarfile.ReadError("unexpected end of data")
            if not member.isdir():
                name = member.name.removeprefix("./")
                yield Member(name, member.offset_data, member.size, int(member.mtime), refused(member))
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    if not rest:
        raise tarfile.ReadError("is cut short: the mark of its end is missing; " + _ADVICE)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):  # tarfile stops there silently
        raise tarfile.ReadError(f"no header at byte {end:,}")


def refused(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link in a tar"
    if member.issparse():
        return "a sparse file in a tar"
    if not member.isreg():
        return "a device or FIFO in a tar"
    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
        return "a name that leads out of the tar"
    return ""


class Headers:
    """A tar's file as tarfile reads it; headers that claim to be too long are refused."""

    def __init__(self, file: BinaryIO):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)
