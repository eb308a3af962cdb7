"""atomic_file.py: after any accident either the old file or the new one is there, and no rubbish beside it."""

import errno
import fcntl
import io
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from Project7.atomic_file import file_lock, replacing, seal, seal_holds, sweep, write_text

ROOT = Path(__file__).resolve().parent.parent
OLD, NEW = b"the old file", b"the new one" * 5000
TWO_HOURS = 7200


def python(code: str, *arguments: Path | str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh interpreter that can import Project7."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def target(tmp_path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(OLD)
    return path


# -- replacing -------------------------------------------------------------------------------------------------------


def test_the_new_content_appears_when_the_block_ends(target):
    with replacing(target) as file:
        file.write(NEW)
        file.flush()
        assert target.read_bytes() == OLD
    assert target.read_bytes() == NEW
    assert names(target.parent) == ["model.pth"]


def test_a_file_that_was_not_there_is_made(tmp_path):
    write_text(tmp_path / "config.json", "Straße\n")
    assert (tmp_path / "config.json").read_bytes() == "Straße\n".encode()
    assert names(tmp_path) == ["config.json"]


WRITE_TWICE = """
import sys
from pathlib import Path
from Project7.atomic_file import write_text
for text in ("first", "second"):
    write_text(Path(sys.argv[1]), text)
"""


@pytest.mark.parametrize(
    ("fault", "content"),
    [("before-fsync", OLD), ("before-rename", OLD), ("before-fsync:2", b"first"), ("before-rename:2", b"first")],
)
def test_a_kill_leaves_the_old_file_and_its_rubbish_is_swept_later(target, fault, content):
    assert python(WRITE_TWICE, target, PROJECT7_FAULT=fault).returncode == -signal.SIGKILL
    assert target.read_bytes() == content

    (rubbish,) = set(names(target.parent)) - {"model.pth"}
    sweep(target.parent)
    assert names(target.parent) == sorted(["model.pth", rubbish]), "a young file may belong to a living process"
    os.utime(target.parent / rubbish, (0, 0))
    sweep(target.parent)
    assert names(target.parent) == ["model.pth"]


def test_without_the_fault_the_same_program_ends_well(target):
    assert python(WRITE_TWICE, target).returncode == 0
    assert target.read_bytes() == b"second"


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from Project7.atomic_file import replacing
from Project7.program import run
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def main():
    with replacing(Path(sys.argv[1])) as file:
        for _ in range(int(sys.argv[2])):
            file.write(b"x" * 1000)
sys.exit(run(main))
"""


@pytest.mark.parametrize("blocks", [5, 100])  # 5 blocks are still in the buffer when the `with` block ends
def test_a_full_disk_is_said_with_path_and_bytes(target, blocks):
    result = python(FILL_THE_DISK, target, blocks)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert str(target) in result.stderr
    assert "4,096 bytes" in result.stderr
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["model.pth"]


@pytest.mark.parametrize("accident", [KeyboardInterrupt, SystemExit, ValueError, OSError])
def test_whatever_ends_the_block_early_leaves_the_old_file(target, accident):
    def main():
        with replacing(target) as file:
            file.write(NEW)
            raise accident

    with pytest.raises(accident):
        main()
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["model.pth"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_ctrl_c_inside_the_save_itself_leaves_the_old_file(target, monkeypatch, call):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(target, "new")
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["model.pth"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_is_respected(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "f", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == mode


def test_a_sweep_during_a_save_takes_only_the_old_rubbish(target):
    other = target.parent / "notes.txt"
    other.write_text("mine")
    os.utime(other, (0, 0))
    with replacing(target) as file:
        (living,) = set(names(target.parent)) - {"model.pth", "notes.txt"}
        stale = target.parent / f"{living}-of-a-killed-process"
        stale.touch()
        os.utime(stale, (stale.stat().st_mtime - TWO_HOURS,) * 2)
        sweep(target.parent)
        assert names(target.parent) == sorted([living, "model.pth", "notes.txt"])
        file.write(NEW)
    assert target.read_bytes() == NEW


# -- seal ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive() -> bytes:
    """A small checkpoint written by torch, not sealed."""
    file = io.BytesIO()
    torch.save({"weights": torch.arange(6.0), "epoch": 3}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def sealed(archive) -> bytes:
    file = io.BytesIO(archive)
    seal(file)
    return file.getvalue()


def noticed(content: bytes) -> bool:
    """Whether the checksum does not match or, if no seal is found any more, torch cannot read the file."""
    file = io.BytesIO(content)
    holds = seal_holds(file)
    if holds is not None:
        return not holds
    try:
        torch.load(file, weights_only=True)
    except Exception:
        return True
    return False


def test_an_intact_seal_holds_and_torch_still_reads_the_file(sealed):
    file = io.BytesIO(sealed)
    file.seek(7)
    assert seal_holds(file) is True
    assert file.tell() == 0, "rewound, ready for torch.load"
    assert torch.load(file, weights_only=True)["weights"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("content", [b"", b"x", b"text" * 100, b"sha256", b"PK\x05\x06" + bytes(18)])
def test_a_file_without_a_seal_is_neither_whole_nor_damaged(archive, content):
    assert seal_holds(io.BytesIO(archive)) is None
    assert seal_holds(io.BytesIO(content)) is None


def test_every_flipped_byte_is_noticed(sealed):
    end = len(sealed) - 100
    flips = [(at, 0x01) for at in range(end)] + [(at, 1 << bit) for at in range(end, len(sealed)) for bit in range(8)]
    missed = []
    for at, mask in flips:
        damaged = bytearray(sealed)
        damaged[at] ^= mask
        if not noticed(bytes(damaged)):
            missed.append((at - len(sealed), mask))
    assert not missed, "(position from the end, mask)"


def test_every_cut_of_the_end_is_noticed(sealed):
    missed = [left_out for left_out in range(1, 200) if not noticed(sealed[:-left_out])]
    assert not missed, "bytes cut from the end of a sealed file, without anyone noticing"


def test_added_bytes_are_noticed(sealed):
    assert noticed(sealed + b"\0")
    assert noticed(b"\0" + sealed)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("content", [b"sha256:0123", b"PK\x05\x06" + bytes(16) + b"\x47\0"], ids=["text", "record"])
def test_a_file_shorter_than_a_seal_that_looks_like_one_is_damaged(content):
    assert seal_holds(io.BytesIO(content)) is False


def test_only_an_unsealed_zip_archive_can_be_sealed(sealed):
    for content in (sealed, b"no archive, and long enough to hold the record"):
        with pytest.raises(ValueError, match="zip archive"):
            seal(io.BytesIO(content))


def no_folder_sync(number):
    """os.fsync of a file system that does not support it for folders, such as CIFS and vboxsf."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_folder_that_cannot_be_synced_is_no_error(target, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", no_folder_sync(number))
    with replacing(target) as file:
        file.write(NEW)
    assert target.read_bytes() == NEW
    assert names(target.parent) == ["model.pth"]


def test_a_disk_that_fails_is_one(target, monkeypatch):
    monkeypatch.setattr(os, "fsync", no_folder_sync(errno.EIO))
    with pytest.raises(OSError, match="error"), replacing(target) as file:
        file.write(NEW)


def test_without_locks_in_the_file_system_work_goes_on(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    with file_lock(tmp_path / "a", timeout=0) as locked:
        assert locked
    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(tmp_path / "b", timeout=0) as locked:
        assert not locked
