"""tar_index.py: the members of tars are found; nothing leads out of a tar, and a damaged one is refused with a
message."""

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_dataset import folder_of, opened, picture, tiny_imagenet
from test_photo_source import encoded

from Project7 import photo, tar_index
from Project7.errors import UsageError
from Project7.image_cache import decode_chunk
from Project7.photo_source import scan
from Project7.tar_index import expand


def tarred(path: Path, members: dict[str, bytes], **fields) -> Path:
    """Writes a tar. fields: attributes of every header, such as type and linkname."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards_of(folder: Path, target: Path, each=8) -> str:
    """Packs the files of a folder into WebDataset shards, and returns their address."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for number, start in enumerate(range(0, len(files), each)):
        some = files[start : start + each]
        tarred(target / f"{number:03}.tar", {p.relative_to(folder).as_posix(): p.read_bytes() for p in some})
    return f"{target}/{{000..{number:03}}}.tar"


def names(source):
    return [p.name for p in source.training]


def scanned(data, tmp_path):
    return scan(str(data), tmp_path / "cache")


@pytest.mark.parametrize("way", ["braces", "folder", "one tar"])
def test_tars_hold_the_same_data_as_the_folder(tmp_path, way):
    """The data has the official layout; it is divided and decoded alike, and each photo has the same pixels and place
    in the order."""
    root = tiny_imagenet(tmp_path / "set")
    address = shards_of(root.parent, tmp_path / "shards", each=1000 if way == "one tar" else 10)
    data = tmp_path / "shards" if way == "folder" else tmp_path / "shards" / "000.tar" if way == "one tar" else address
    folder, tars = opened(root.parent, tmp_path / "cache"), opened(data, tmp_path / "cache")
    assert [part.fingerprint for part in tars] == [part.fingerprint for part in folder]
    assert tars[0].names == folder[0].names
    assert tars[0].labels == folder[0].labels


def test_tars_in_folders_are_read_as_if_unpacked_there(tmp_path):
    tarred(tmp_path / "train" / "0.tar", {"./a.png": encoded(), "a.json": b"{}"})
    tarred(tmp_path / "val" / "0.tar", {"b.png": encoded()})
    source = scanned(tmp_path, tmp_path)
    assert names(source) == ["train/a.png"]
    assert [p.name for p in source.validation] == ["val/b.png"]


def test_photos_of_one_name_stay_apart(tmp_path):
    for number in range(2):
        picture(number).save(tmp_path / "a.png")
        tarred(tmp_path / "s" / f"{number}.tar", {"a.png": (tmp_path / "a.png").read_bytes()})
    source = scanned(tmp_path / "s", tmp_path)
    assert names(source) == ["0/a.png", "1/a.png"]
    first, second = decode_chunk((source.storage, {"size": 16, "crops": 1, "seed": 0}, 0.0), source.training)[0]
    assert np.array_equal(np.frombuffer(first, np.uint8).reshape(16, 16, 3), np.asarray(picture(0)))
    assert first != second


def test_braces_count_as_bash_does():
    assert expand("s/{08..10}.tar") == ["s/08.tar", "s/09.tar", "s/10.tar"]
    assert expand("{8..10}.tar") == ["8.tar", "9.tar", "10.tar"]
    assert expand("{0..1}-{a}-{00..01}") == ["0-{a}-00", "0-{a}-01", "1-{a}-00", "1-{a}-01"]
    with pytest.raises(UsageError, match="counts downwards"):
        expand("{3..1}.tar")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b.png"}, "a link"),
        ({"type": tarfile.FIFOTYPE}, "a device or FIFO"),
        ({"name": "/tmp/a.png"}, "leads out of the tar"),
        ({"name": "x/../../a.png"}, "leads out of the tar"),
    ],
)
def test_what_is_no_plain_file_of_the_tar_is_left_out_and_said(tmp_path, fields, reason):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, changes in (("b.png", {}), ("a.png", fields)):
            info = tarfile.TarInfo(name)
            for field, value in changes.items():
                setattr(info, field, value)
            info.size = len(encoded()) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(encoded()))
    source = scanned(tmp_path / "a.tar", tmp_path)
    assert names(source) == ["b.png"]
    assert reason in source.notes[0]


def test_a_member_is_not_read_beyond_the_limit(tmp_path, monkeypatch):
    source = scanned(tarred(tmp_path / "a.tar", {"a.png": encoded()}), tmp_path)
    monkeypatch.setattr(photo, "MAX_BYTES", 10)
    (tmp_path / "a.tar").unlink()  # nothing of it is read
    squares, reasons = decode_chunk((source.storage, {"size": 8, "crops": 1, "seed": 0}, 0.0), source.training)
    assert squares == [None]
    assert "MiB unpacked" in reasons[0]


def test_a_damaged_member_is_a_broken_photo(tmp_path):
    folder = folder_of(tmp_path / "photos", 40)
    (folder / "039.png").write_bytes(b"no picture")
    training, validation = opened(shards_of(folder, tmp_path / "shards"), tmp_path / "cache")
    assert [n for part in (training, validation) for n, _ in part.summary.broken] == ["039.png"]


def damaged(content: bytes, how: str) -> bytes:
    middle = 3 * 512  # in the header of the second member: a header, a block of content, a header
    return {
        "in a member": content[: 2 * 512 + 512 + 100],
        "after a member": content[: 2 * 512],
        "a header": content[: 2 * 512] + b"x" * 512 + content[middle:],
        "empty": b"",
        "text": b"no tar at all",
        "gzip": b"\x1f\x8b" + content,
        "a long header": tarfile.TarInfo("x" * 2000).tobuf(tarfile.PAX_FORMAT) + bytes(1024),
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("in a member", r"is cut short: it ends in the middle of a member; copy or download it again\."),
        ("after a member", r"is cut short: the mark of its end is missing; copy"),
        ("a header", r"is a damaged tar \(no header at byte 1,024\); copy"),
        ("empty", r"is a damaged tar \(.*empty.*\); copy"),
        ("text", r"is a damaged tar"),
        ("gzip", r"is compressed with gzip, .* unpack it\."),
        ("a long header", r"is a damaged tar \(a header of"),
    ],
)
def test_a_damaged_tar_ends_in_one_sentence(tmp_path, monkeypatch, how, said):
    monkeypatch.setattr(tar_index, "_LONGEST_HEADER", 1536)
    path = tarred(tmp_path / "a.tar", {"a.txt": b"1", "b.txt": b"2"})
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(UsageError, match=f"^--data {re.escape(str(path))} {said}") as caught:
        scanned(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_missing_is_named(tmp_path):
    tarred(tmp_path / "0.tar", {"a.png": encoded()})
    with pytest.raises(UsageError, match=r"1\.tar does not exist; check the path, and the numbers in braces"):
        scanned(f"{tmp_path}/{{0..1}}.tar", tmp_path)


def test_headers_are_read_once_and_again_when_the_tar_changes(tmp_path, monkeypatch):
    path = tarred(tmp_path / "a.tar", {"a.png": encoded()})
    before = scanned(path, tmp_path)
    with monkeypatch.context() as blocked:
        blocked.setattr(tar_index, "read_members", lambda *_: pytest.fail("read again"))
        assert scanned(path, tmp_path) == before
    tarred(path, {"b.png": encoded()})
    assert names(scanned(path, tmp_path)) == ["b.png"]


def test_where_nothing_can_be_kept_the_tar_is_read_all_the_same(tmp_path):
    (tmp_path / "cache").write_text("a file where the cache should be")
    assert names(scanned(tarred(tmp_path / "a.tar", {"a.png": encoded()}), tmp_path)) == ["a.png"]
