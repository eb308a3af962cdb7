"""photo_source.py: which photos a data set holds, messages about what is not used, and zips that claim a wrong size."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from Project7 import photo
from Project7.errors import UsageError
from Project7.image_cache import decode_chunk
from Project7.photo_source import scan
from Project7.photo_storage import Folder, SourcePhoto, Zip
from Project7.squares import decode

GREEN = np.full((16, 16, 3), (40, 200, 60), np.uint8)


def encoded(rgb=GREEN, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    return folder


def names(source):
    return [p.name for p in source.training]


@pytest.mark.parametrize("links", [1, 2])
def test_a_loop_of_links_gives_each_photo_once(tmp_path, links):
    fill(tmp_path, "1.png", "2.png", "sub/3.png")
    for k in range(links):
        (tmp_path / f"loop-{k}").symlink_to(tmp_path)
    source = scan(str(tmp_path))
    assert names(source) == ["1.png", "2.png", "sub/3.png"]
    assert len(source.notes) == links
    assert "searched already" in source.notes[0]


def test_what_is_not_used_is_said(tmp_path):
    fill(tmp_path, "train/a.png", "val/b.png", "extra/c.png", "extra/d.png", "@eaDir/x.png")
    (tmp_path / "movie.gif").write_bytes(b"GIF89a")
    source = scan(str(tmp_path))
    assert names(source) == ["train/a.png"]
    assert source.notes == ("2 photos beside train/ and val/ are not used", "left out: 1 GIF")


def test_a_set_of_other_pictures_names_them(tmp_path):
    (tmp_path / "a.cr2").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holds no image .*left out: 1 CR2"):
        scan(str(tmp_path))


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "locked/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = scan(str(tmp_path))
    assert names(source) == ["a.png"]
    assert "locked (not readable: Permission denied)" in source.notes[0]


def zipped(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in members:
            archive.writestr(name, encoded())
    return path


def test_a_zip_counts_what_it_leaves_out(tmp_path):
    source = scan(str(zipped(tmp_path / "a.zip", "a.png", "#recycle/b.png", "c.heif", "__MACOSX/d.png")))
    assert names(source)[0] == "a.png"
    assert not {"#recycle/b.png", "__MACOSX/d.png"} & set(names(source))


@pytest.mark.parametrize(("place", "value", "reason"), [(8, 1, "is encrypted"), (10, 9, "by method 9")])
def test_a_sound_zip_that_cannot_be_read_is_not_called_damaged(tmp_path, place, value, reason):
    """The central directory says so: its flags are at 8, the method at 10."""
    path = zipped(tmp_path / "a.zip", "a.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + place] = value
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        scan(str(path))


def test_a_member_is_not_unpacked_beyond_the_limit(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", "a.png")
    monkeypatch.setattr(photo, "MAX_BYTES", 10)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    job = (Zip(str(path)), {"size": 8, "crops": 1, "seed": 0}, 0.0)
    assert decode_chunk(job, [SourcePhoto("a.png", "", "")])[0] == [None]


def test_a_fifo_is_broken_and_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    job = (Folder(str(tmp_path)), {"size": 8, "crops": 1, "seed": 0}, 0.0)
    assert decode_chunk(job, [SourcePhoto("a.png", "", "")]) == ([None], [f"{tmp_path}/a.png is a FIFO, not a photo"])


def test_a_name_that_is_no_text_is_a_photo(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    fill(tmp_path, name)
    job = (Folder(str(tmp_path)), {"size": 8, "crops": 3, "seed": 0}, 0.0)
    assert decode_chunk(job, scan(str(tmp_path)).training)[1] == [""]


def wide_profile() -> bytes:
    """A profile with other primaries: that of sRGB with red and green exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[132 + 12 * k : 136 + 12 * k]): 132 + 12 * k for k in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_colour_profile_counts_in_training_as_in_colouring(kind):
    content = encoded(kind=kind, icc_profile=wide_profile())
    seen = decode(content, "a", size=16, crops=1, seed=0)[0]
    assert np.abs(seen.astype(int) - photo.open_photo(content).rgb).max() <= 1
    assert np.abs(seen.astype(int) - GREEN).max() > 100  # the profile says that green is red
