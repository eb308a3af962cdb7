"""photo_files.py: which files count as photos, each real folder once, and messages about what is left out."""

import os
import socket
from pathlib import Path

import pytest

from Project7.errors import UsageError
from Project7.photo_files import LeftOut, find_photos, photo_suffixes

NOBODYS = (
    "@eaDir/IMG_1.JPG/THUMB_XL.jpg",
    "#recycle/old.jpg",
    "$RECYCLE.BIN/S-1-5-21/x.jpg",
    "lost+found/1.png",
    "System Volume Information/a.png",
)


def test_find_photos_takes_odd_names(tmp_path):
    long = "x" * 250 + ".jpeg"  # 255 bytes
    unreadable = os.fsdecode(b"caf\xe9.png")
    names = [
        "a.PNG",
        "new\nline.jpg",
        "🦊.webp",
        long,
        unreadable,
        "sub/b.TiF",
        "sub/deep/c.bmp",
        "-rf.png",
        "e.jfif",
        "f.JPE",
        " .jpg",
    ]
    for name in [*names, "notes.txt", ".hidden.png", ".git/d.png", "__MACOSX/e.png", "png", *NOBODYS]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    left_out = LeftOut()
    found = find_photos([tmp_path], left_out=left_out)
    assert [str(relative) for _, relative in found] == sorted(names, key=lambda name: Path(name))
    assert all(file == tmp_path / relative for file, relative in found)
    assert left_out == LeftOut()


def test_find_photos_skips_with_the_reason(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inside.png").write_bytes(b"")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "good.png").write_bytes(b"")
    (tmp_path / "link.png").symlink_to(tmp_path / "good.png")
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path may not be long
        try:
            server.bind("socket.png")
        finally:
            os.chdir(before)
        left_out = LeftOut()
        found = find_photos([tmp_path], left_out=left_out)
    assert [str(relative) for _, relative in found] == ["good.png", "link.png"]
    reasons = {path.name: reason for path, reason in left_out.skipped}
    assert reasons == {
        "folder.png": "a folder",
        "dangling.jpg": "a link to a file that is gone",
        "itself.jpg": reasons["itself.jpg"],
        "fifo.png": "a FIFO",
        "socket.png": "a socket",
    }
    assert "not readable" in reasons["itself.jpg"]


def test_find_photos_takes_named_files_as_they_are(tmp_path):
    odd = tmp_path / "photo.dat"
    odd.write_bytes(b"")
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    link = tmp_path / "dangling.png"
    link.symlink_to(tmp_path / "gone")
    left_out = LeftOut()
    assert find_photos([odd, fifo, link, odd], left_out=left_out) == [(odd, Path("photo.dat"))]
    assert [path for path, _ in left_out.skipped] == [fifo, link]
    for wrong in (tmp_path / "none.png", odd / "below.png", Path("a\0b"), tmp_path / ("y" * 300)):
        with pytest.raises(UsageError, match="does not exist"):
            find_photos([wrong], left_out=LeftOut())
    assert find_photos([], left_out=LeftOut()) == []


def test_find_photos_ends_in_loops_and_takes_each_folder_once(tmp_path):
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "a.png").write_bytes(b"")
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    (tmp_path / "a-link").symlink_to(tmp_path / "z")
    left_out = LeftOut()
    found = find_photos([tmp_path], left_out=left_out)
    assert [str(relative) for _, relative in found] == ["z/a.png"]
    assert {path.name for path, _ in left_out.skipped} == {"up", "a-link"}
    linked = tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "link").symlink_to(tmp_path / "z")
    assert (linked / "link" / "a.png", Path("link/a.png")) in find_photos([linked], left_out=LeftOut())


def test_other_pictures_are_counted_and_named(tmp_path):
    for name in (
        "a.gif",
        "b.GIF",
        "c.CR2",
        "d.zip",
        "notes.txt",
        ".hidden.gif",
        "#recycle/e.gif",
        "sub/f.gif",
        "g.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    left_out = LeftOut()
    assert [file.name for file, _ in find_photos([tmp_path], left_out=left_out)] == ["g.png"]
    assert left_out.lines() == ["left out: 3 GIF, 1 CR2, 1 zip"]


def test_what_could_not_be_taken_is_said_and_bounded():
    left_out = LeftOut([(Path(f"{n}\n.png"), "a folder") for n in range(5)])
    assert left_out.lines(most=2) == [
        "left out: 0\\n.png (a folder)",
        "left out: 1\\n.png (a folder)",
        "left out: 3 more files or folders that could not be read",
    ]


def test_earlier_results_are_not_searched_but_a_folder_that_is_named_is(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "done.png").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(b"")
    left_out = LeftOut()
    assert [file.name for file, _ in find_photos([tmp_path], left_out=left_out, output=out)] == ["a.png"]
    assert left_out == LeftOut()
    assert len(find_photos([tmp_path], left_out=left_out, output=tmp_path / "none")) == 2
    assert len(find_photos([out], left_out=left_out, output=out)) == 1


def test_avif_counts_where_it_can_be_read():
    from PIL import features

    assert (".avif" in photo_suffixes()) == features.check("avif")


def test_a_folder_of_many_files_is_listed_once_and_no_file_is_opened(tmp_path, monkeypatch):
    """The first of 60,000 photos is coloured within seconds, which work for each pair of files would prevent."""
    for number in range(2000):
        (tmp_path / f"{number}.png").touch()
    listed, looked = [], []
    scandir, look = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda *a, **k: looked.append(a) or look(*a, **k))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("a photo was opened"))
    assert len(find_photos([tmp_path], left_out=LeftOut())) == 2000
    assert len(listed) == 1
    assert len(looked) <= 2100
