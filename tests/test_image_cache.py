"""Photos decoded once into squares: which pixels, when they are decoded again, by which process, and what a stopped
builder leaves."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dataset import ROOT, folder_of, opened, picture

from Project7 import cache_folder, image_cache
from Project7.errors import ProjectError


def test_centre_squares_upright_and_resized(tmp_path):
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (16, 0, 48, 32))  # the centre square
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    wide.rotate(90, expand=True).save(tmp_path / "b.jpg", exif=exif, quality=100, subsampling=0)
    training, validation = opened(tmp_path, tmp_path / "cache")
    for part in (training, validation):
        assert np.abs(part.images[0].astype(int) - [0, 0, 255]).max() < 40  # the filter sees the edge beside


def test_rare_kinds_come_through_the_one_door(tmp_path):
    values = np.full((16, 16), 32768, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.tiff")
    training, validation = opened(tmp_path, tmp_path / "cache")
    assert {int(v) for part in (training, validation) for v in np.unique(part.images)} == {128}


def test_random_squares_are_a_function_of_seed_and_name(tmp_path):
    folder_of(tmp_path / "photos", 3, size=(60, 40))
    runs = (("a", 3), ("b", 3), ("c", 4))
    first, again, other = (opened(tmp_path / "photos", tmp_path / c, crops=5, seed=s)[0] for c, s in runs)
    assert np.array_equal(first.images, again.images)
    assert len({image.tobytes() for image in first.images}) == len(first.images)
    assert first.fingerprint != other.fingerprint


def test_the_cache_is_used_again_and_follows_the_source(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "photos", 6)
    before, _ = opened(folder, tmp_path / "cache")
    assert before.summary.built
    with monkeypatch.context() as blocked:
        blocked.setattr(image_cache, "decode", lambda *a, **k: pytest.fail("decoded again"))
        again, _ = opened(folder, tmp_path / "cache")
        assert not again.summary.built
        assert np.array_equal(again.images, before.images)
        with pytest.raises(ValueError, match="read-only"):
            again.images[0] = 0
    picture(99).save(folder / "000.png")
    changed = opened(folder, tmp_path / "cache")
    assert {changed[0].fingerprint, changed[1].fingerprint} != {before.fingerprint, again.fingerprint}


def test_a_copy_elsewhere_is_the_same_data(tmp_path):
    folder = folder_of(tmp_path / "photos", 6)
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, (1, 1))
    a, b = (opened(f, tmp_path / "cache") for f in (folder, tmp_path / "copy"))
    assert [p.fingerprint for p in a] == [p.fingerprint for p in b]


@pytest.mark.parametrize("damage", ["cut", "no sidecar", "garbage sidecar"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    folder = folder_of(tmp_path / "photos", 6)
    whole = np.array(opened(folder, tmp_path / "cache")[0].images)
    for entry in (p for p in (tmp_path / "cache").iterdir() if p.is_dir()):
        if damage == "cut":
            (entry / "images.bin").write_bytes(b"short")
        elif damage == "no sidecar":
            (entry / "info.json").unlink()
        else:
            (entry / "info.json").write_text('{"shape": [1, "')
    assert np.array_equal(opened(folder, tmp_path / "cache")[0].images, whole)


BUILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from Project7 import program
from Project7.training_config import DataConfig
from Project7.dataset import open_dataset
def progress(what, done, total):
    print(done, flush=True)
def main():
    a, b = open_dataset(DataConfig(data={data!r}, image_size=16), seed=0, cache_dir=Path({cache!r}), progress=progress)
    print("built", a.summary.built, a.fingerprint, flush=True)
if __name__ == "__main__":
    sys.exit(program.run(main))
"""


def builder(tmp_path, data: Path) -> subprocess.Popen:
    script = tmp_path / "build.py"
    script.write_text(BUILD.format(root=str(ROOT), data=str(data), cache=str(tmp_path / "cache")))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_builder_that_is_stopped_leaves_nothing_that_matters(tmp_path, signum, code):
    """It is stopped at its first report of progress, while worker processes are running."""
    data = folder_of(tmp_path / "photos", 600)
    with builder(tmp_path, data) as process:
        process.stdout.readline()
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if signum != signal.SIGKILL:
        assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    training, _ = opened(data, tmp_path / "cache")
    assert training.summary.built
    assert len(training.images) == 570
    assert not list((tmp_path / "cache").glob(".building*"))


def test_a_script_without_a_main_block_is_told_of_it(tmp_path):
    """Its workers import it and would open the same photos, waiting for the lock that it holds itself."""
    data, script = folder_of(tmp_path / "photos", 520), tmp_path / "mine.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from Project7.dataset import open_photos\n"
        f"open_photos({str(data)!r}, size=16, cache_dir=Path({str(tmp_path / 'cache')!r}))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_worker_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    """As the kernel does where memory runs out."""
    monkeypatch.setattr(image_cache, "_follow_the_parent", os.abort)
    with pytest.raises(ProjectError, match="If memory is short, end other programs"):
        opened(folder_of(tmp_path / "photos", 600), tmp_path / "cache")


def test_of_two_builders_one_waits(tmp_path):
    data = folder_of(tmp_path / "photos", 520)
    with builder(tmp_path, data) as first, builder(tmp_path, data) as second:
        ends = [p.communicate(timeout=100)[0].splitlines()[-1].split() for p in (first, second)]
    assert sorted(end[1] for end in ends) == ["False", "True"]
    assert ends[0][2] == ends[1][2]


def test_workers_and_no_workers_decode_alike(tmp_path, monkeypatch):
    data = folder_of(tmp_path / "photos", 600)
    pooled, _ = opened(data, tmp_path / "a")
    monkeypatch.setattr(image_cache, "_ALONE", 10_000)
    alone, _ = opened(data, tmp_path / "b")
    assert pooled.names == alone.names
    assert pooled.fingerprint == alone.fingerprint


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_cache, "write_pixels", full)
    with pytest.raises(ProjectError, match=r"No space left.*--cache-dir"):
        opened(folder_of(tmp_path / "photos", 3), tmp_path / "cache")


def test_a_flipped_bit_is_found_and_the_entry_made_anew(tmp_path):
    folder_of(tmp_path / "photos", 4)
    training, _ = opened(tmp_path / "photos", tmp_path / "cache")
    pixels, file = np.array(training.images), Path(training.images.filename)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again, _ = opened(tmp_path / "photos", tmp_path / "cache")
    assert again.summary.built
    assert (again.images == pixels).all()


def test_of_a_very_large_set_a_part_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_BLOCK", 100)
    monkeypatch.setattr(image_cache, "_MOST_BLOCKS", 3)
    (tmp_path / "a").write_bytes(bytes(range(250)) * 4)
    known = list(image_cache.block_checksums(tmp_path / "a"))
    assert len(known) == 10
    assert image_cache.intact(tmp_path / "a", known)
    assert not image_cache.intact(tmp_path / "a", [0] * 10)


def test_another_user_reads_a_cache_that_he_cannot_write(tmp_path, monkeypatch):
    folder_of(tmp_path / "photos", 4)
    opened(tmp_path / "photos", tmp_path / "cache")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_cache, "file_lock", refused)
    assert not opened(tmp_path / "photos", tmp_path / "cache")[0].summary.built
    folder_of(tmp_path / "others", 4, size=(30, 20))
    with pytest.raises(ProjectError, match=r"Permission denied\); choose another place"):
        opened(tmp_path / "others", tmp_path / "cache")


def test_without_a_home_the_cache_is_a_temporary_folder(monkeypatch, tmp_path):
    """A container may run as a user that the system does not know."""
    for name in ("PROJECT7_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder.default_cache_dir() == tmp_path / ".cache" / "project7"

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    assert cache_folder.default_cache_dir().is_relative_to(tempfile.gettempdir())
