"""Finds photos among files and folders, for training, measuring and colouring alike.

Each real folder is searched once, however many links lead to it. Files that are named like photos and are not photos
are reported with the reason; pictures of other kinds are counted. Imports no Pillow: the command line lists data
without it.
"""

import importlib.util
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from Project7.errors import UsageError
from Project7.training_config import IMAGE_SUFFIXES

# Pictures that a person may have expected to be found, and zips that hold some.
_OTHERS = {
    **{name: name.upper() for name in ("gif", "heic", "avif", "jxl", "jp2", "psd", "svg", "pdf")},
    **dict.fromkeys(("heif", "hif"), "HEIC"),
    **{name: name.upper() for name in ("cr2", "cr3", "nef", "arw", "dng", "orf", "rw2", "raf", "pef", "srw")},
    **{name: name for name in ("zip", "tar", "rar", "7z")},
}
# Folders that servers, desktops and file systems keep for themselves: thumbnails and deleted files.
_NOBODYS = {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information"}


@dataclass
class LeftOut:
    """What a search left out."""

    skipped: list[tuple[Path, str]] = field(default_factory=list)  # named like a photo or a folder, with the reason
    kinds: Counter[str] = field(default_factory=Counter)  # pictures of other kinds, and zips

    def lines(self, most: int = 3) -> list[str]:
        """In words: a line for the kinds, and one for each of the first `most` files."""
        lines = []
        if self.kinds:
            lines.append("left out: " + ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common()))
        for path, reason in self.skipped[:most]:
            lines.append(f"left out: {shown(path)} ({reason})")
        if len(self.skipped) > most:
            lines.append(f"left out: {len(self.skipped) - most:,} more files or folders that could not be read")
        return lines


def is_photo_name(name: str) -> bool:
    """Whether a file of this name counts as a photo, by its suffix in upper or lower case."""
    return name.lower().endswith(photo_suffixes()) and is_visible(name.rsplit("/", 1)[-1])


@cache
def photo_suffixes() -> tuple[str, ...]:
    """The suffixes of the photos that Pillow always reads, and of AVIF and HEIC if this installation reads them."""
    heic = (".heic", ".heif", ".hif") if importlib.util.find_spec("pillow_heif") else ()
    avif = (".avif",) if importlib.util.find_spec("PIL._avif") else ()
    return (*IMAGE_SUFFIXES, *avif, *heic)


def is_visible(name: str) -> bool:
    """Whether a file or folder is one that a person put there."""
    return not name.startswith(".") and name.lower() not in _NOBODYS


def count_others(name: str, left_out: LeftOut) -> None:
    """Counts a file that is not a photo if a person may have expected it to be used."""
    kind = _OTHERS.get(name.rsplit(".", 1)[-1].lower())
    if kind and is_visible(name.rsplit("/", 1)[-1]):
        left_out.kinds[kind] += 1


def find_photos(paths: Iterable[Path], *, left_out: LeftOut, output: Path | None = None) -> list[tuple[Path, Path]]:
    """The photos among files and folders, which are searched recursively: sorted (file, path within the folder given).

    A file that is named directly counts whatever its suffix is; `open_photo` checks its content. output: a folder that
    is not searched even if it lies below one of the folders, because it holds earlier results. Raises UsageError if a
    path does not exist.
    """
    found: set[tuple[Path, Path]] = set()
    for path in map(Path, paths):
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError) as error:
            if not isinstance(error, PermissionError) and not os.path.lexists(path):
                raise UsageError(f"{shown(path)} does not exist; give a photo or a folder of them.") from None
            left_out.skipped.append((path, unreadable(error)))
            continue
        if stat.S_ISDIR(mode):
            found.update((file, file.relative_to(path)) for file in photos_below(path, left_out, output))
        elif stat.S_ISREG(mode):
            found.add((path, Path(path.name)))
        else:
            left_out.skipped.append((path, unlike_file(mode)))
    return sorted(found)


def photos_below(root: Path, left_out: LeftOut, output: Path | None = None) -> Iterator[Path]:
    """The photos in a folder and in all folders below it, each real folder once. Links are followed last, so that a
    folder is found at its real place. output: see find_photos."""
    folders: list[Path] = [root]
    linked: list[Path] = []
    seen = {_identity(output)} if output and _identity(output) != _identity(root) else set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop()
        try:
            identity = _identity(folder)
            if identity in seen:
                if output is None or identity != _identity(output):
                    left_out.skipped.append((folder, "a link to a folder that was searched already"))
                continue
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            left_out.skipped.append((folder, unreadable(error)))
            continue
        seen.add(identity)
        for entry in filter(lambda entry: is_visible(entry.name), entries):
            path = folder / entry.name
            named_so = is_photo_name(entry.name)
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                if named_so:
                    left_out.skipped.append((path, unreadable(error)))
                continue
            if named_so and stat.S_ISREG(mode):
                yield path
            elif named_so:
                left_out.skipped.append((path, unlike_file(mode)))
            elif stat.S_ISDIR(mode):
                (linked if entry.is_symlink() else folders).append(path)
            else:
                count_others(entry.name, left_out)


def _identity(folder: Path) -> tuple[int, int] | None:
    """A folder's device and inode number, which do not depend on its name; None if it does not exist."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def unlike_file(mode: int) -> str:
    """The kind of something in a file system that is not a file."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def unreadable(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to a file that is gone"
    return f"not readable: {getattr(error, 'strerror', None) or error}"


def shown(path: Path | str) -> str:
    """A path for a message: on one line, and printable even if the name is not valid text."""
    text = str(path)
    return text if text.isprintable() else repr(text)[1:-1]
