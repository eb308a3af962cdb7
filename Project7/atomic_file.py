"""The one way a file is written: whole or not at all.

A power cut, a full disk or a kill at any instant leaves the old file or the new one, never a mixture. `seal`
adds a SHA-256 of the content to a zip archive (torch's checkpoint format), in the archive's own comment, so
that weights and checksum are replaced in one move.
"""

import errno
import hashlib
import math
import os
import secrets
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from Project7.errors import ProjectError

_TEMPORARY = ".project7-tmp-"
_STALE_SECONDS = 3600
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EBADF)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_SEAL = b"sha256:"
_SEAL_BYTES = len(_SEAL) + 64
_EOCD = b"PK\x05\x06"  # the zip format's end-of-central-directory record: 22 bytes, the last 2 the comment's length


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which becomes `path` in one step when the block ends without an error.

    Raises ProjectError, with the path and the number of bytes written, if the disk is full. If anything ends the block
    early, Ctrl-C included, `path` stays as it was and the temporary file is removed.
    """
    path = Path(path)
    kept = "; the earlier file is kept" if path.exists() else ""
    name = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            fault_point("before-fsync")
            os.fsync(file.fileno())
        fault_point("before-rename")
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        size = os.path.getsize(name) if os.path.exists(name) else 0
        with suppress(OSError):
            os.unlink(name)
        cause = (
            error if isinstance(error, OSError) else error.__context__
        )  # torch.save raises an error of its own instead
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise ProjectError(
                f"{path} could not be written: {cause.strerror} after {size:,} bytes{kept}; "
                "free some space and try again."
            ) from error
        if isinstance(error, OSError) and error.filename == str(name):  # the temporary name says nothing to a person
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def as_json(value: Any) -> Any:
    """The value with None in place of every NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sweep(folder: Path) -> None:
    """Removes temporary files of killed processes. Those younger than an hour may belong to a running process."""
    for stale in Path(folder).glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                stale.unlink()


def seal(file: BinaryIO) -> None:
    """Appends `sha256:<digest>` as the comment of the zip archive in `file`. The digest covers every byte before it."""
    file.seek(-22, os.SEEK_END)
    record = file.read(22)
    if record[:4] != _EOCD or record[20:] != b"\0\0":
        raise ValueError("only a zip archive without a comment can be sealed")
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_BYTES.to_bytes(2, "little"))
    file.seek(0)
    plain: Any = file
    digest = hashlib.file_digest(plain, "sha256").hexdigest()
    file.seek(0, os.SEEK_END)
    file.write(_SEAL + digest.encode())


def seal_holds(file: BinaryIO) -> bool | None:
    """True for an intact sealed archive, False for a damaged one, None if there is no seal. Rewinds `file`."""
    if not is_sealed(file):
        return None
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_BYTES))
    seal_text = file.read()
    file.seek(0)
    digest, left = hashlib.sha256(), max(0, size - _SEAL_BYTES)
    while left:
        block = file.read(min(1 << 20, left))
        digest.update(block)
        left -= len(block)
    file.seek(0)
    return seal_text == _SEAL + digest.hexdigest().encode()


def is_sealed(file: BinaryIO) -> bool:
    """Whether the file has a seal, intact or damaged. Rewinds `file`."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2 * (_SEAL_BYTES + 22)))  # reads a little more: a misplaced seal counts as damaged
    tail = file.read()
    file.seek(0)
    record, seal_text = tail[tail.rfind(_EOCD) :][:22], tail[-_SEAL_BYTES:]
    announced = record[20:] == _SEAL_BYTES.to_bytes(2, "little")
    return announced or seal_text.startswith(_SEAL)  # if only one of the two holds, the seal is damaged


def fault_point(name: str) -> None:
    """A place where tests kill the process: PROJECT7_FAULT=name[:n] does so at the n-th call (by default the first)."""
    wanted, _, count = os.environ.get("PROJECT7_FAULT", "").partition(":")
    if wanted != name:
        return
    left = int(count or 1) - 1
    if left:
        os.environ["PROJECT7_FAULT"] = f"{name}:{left}"
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut. Windows cannot open a folder, and needs no such call.

    Some file systems (CIFS, vboxsf, FUSE) cannot sync a folder. The file is complete and in place by then, so this is
    not an error; a failing disk (EIO) is.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


@contextmanager
def file_lock(path: Path, *, timeout: float = -1) -> Iterator[bool]:
    """Locks `path` until the block or the process ends, however it ends. Yields False, and locks nothing, if the file
    system does not support locks (some network drives). timeout: seconds to wait, -1 for ever. Raises
    filelock.Timeout."""
    from filelock import FileLock

    lock = FileLock(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # without flock, filelock falls back to a lock file
            lock.acquire(timeout=timeout)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def copy_file(source: Path, target: Path) -> None:
    """Copies a file; at every instant `target` is either the old file or the complete copy."""
    with open(source, "rb") as old, replacing(target) as new:
        shutil.copyfileobj(old, new)
