"""Data sets: found, divided, decoded once, loaded; broken files, changed sources, stopped builders."""

import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import dataset, image_cache, image_set, photo_source
from Project7.dataset import open_dataset
from Project7.errors import ProjectError, UsageError
from Project7.image_set import epoch_order, load_batches, mixed_order
from Project7.training_config import DataConfig

ROOT = Path(__file__).resolve().parent.parent
TINY_IMAGENET = ROOT.parent / "shared" / "data" / "tiny-imagenet-200.zip"


def picture(n: int, size=(16, 16)) -> Image.Image:
    pixels = np.random.default_rng(n).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder_of(path: Path, count: int, size=(16, 16)) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        picture(n, size).save(path / f"{n:03}.png")
    return path


def tiny_imagenet(root: Path, classes=4, each=6) -> Path:
    """The official layout, with PNG content so that pixels can be compared."""
    root = root / "tiny-imagenet-200"
    number = 0
    for c in range(classes):
        images = root / "train" / f"n{c:08}" / "images"
        images.mkdir(parents=True)
        (images.parent / f"n{c:08}_boxes.txt").write_text("x")
        for k in range(each):
            picture(number).save(images / f"n{c:08}_{k}.JPEG", "PNG")
            number += 1
    (root / "val" / "images").mkdir(parents=True)
    for n in range(8):
        picture(100 + n).save(root / "val" / "images" / f"val_{n}.JPEG", "PNG")
    lines = [f"val_{n}.JPEG\tn{n % classes:08}\t0\t0\t62\t57" for n in range(8)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return root


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def opened(source, cache, seed=0, **settings):
    config = DataConfig(**{"data": str(source), "image_size": 16} | settings)
    return open_dataset(config, seed=seed, cache_dir=Path(cache))


def test_tiny_imagenet_from_the_folder_and_from_the_zip(tmp_path):
    root = tiny_imagenet(tmp_path)
    sources = [root, root.parent, zipped(root, tmp_path / "t.zip")]
    parts = [opened(s, tmp_path / f"cache{n}") for n, s in enumerate(sources)]
    for training, validation in parts:
        assert training.images.shape == (24, 16, 16, 3)
        assert training.images.dtype == np.uint8
        assert sorted(set(training.labels)) == [f"n{c:08}" for c in range(4)]
        assert dict(zip(validation.names, validation.labels, strict=True))[
            next(n for n in validation.names if n.endswith("val_5.JPEG"))
        ] == "n00000001"  # fmt: skip
        assert (training.fingerprint, validation.fingerprint) == (parts[0][0].fingerprint, parts[0][1].fingerprint)
    training = parts[0][0]
    first = training.names.index("train/n00000000/images/n00000000_0.JPEG")
    assert np.array_equal(training.images[first], np.asarray(picture(0)))  # taken as it is, bit for bit


def test_a_folder_is_searched_and_divided_photo_by_photo(tmp_path):
    folder = folder_of(tmp_path / "photos", 20)
    folder_of(folder / "deeper" / "and deeper", 20)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    picture(50).convert("L").save(folder / "gray.BMP")
    picture(51).save(folder / "photo.TIFF")
    training, validation = opened(folder, tmp_path / "cache", val_fraction=0.25, crops=2)
    assert len(training.images) + len(validation.images) == 2 * 42
    assert not set(training.names) & set(validation.names)
    assert opened(folder, tmp_path / "cache", val_fraction=0.25, crops=2, seed=1)[1].names != validation.names


def test_limit_spreads_over_the_classes_and_counts_what_is_left(tmp_path):
    root = tiny_imagenet(tmp_path, classes=4, each=10)
    training, _ = opened(root, tmp_path / "cache", limit=16)
    assert len(training.images) == 16
    assert len(set(training.labels)) == 4
    for path in sorted((root / "train").rglob("*.JPEG"))[::2]:
        Image.open(path).convert("L").save(path, "PNG")
    colourful, _ = opened(root, tmp_path / "cache", limit=16, min_colorfulness=20)
    assert len(colourful.images) == 16
    assert colourful.summary.gray > 0
    assert all(np.ptp(image, axis=-1).max() > 0 for image in colourful.images)
    with pytest.raises(ProjectError, match="min-colorfulness"):
        opened(root, tmp_path / "cache", min_colorfulness=149)


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


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("text")])
def test_no_images_is_an_error_with_the_cure(tmp_path, make):
    make(tmp_path / "photos")
    with pytest.raises(UsageError, match="--data samples"):
        opened(tmp_path / "photos", tmp_path / "cache")


def test_one_image_is_enough_and_is_said(tmp_path):
    training, validation = opened(folder_of(tmp_path / "photos", 1), tmp_path / "cache")
    assert np.array_equal(training.images, validation.images)
    assert any("only photo" in line for line in validation.summary.lines())


def test_few_broken_files_are_left_out_and_named(tmp_path):
    folder = folder_of(tmp_path / "photos", 40)
    (folder / "039.png").write_bytes((folder / "038.png").read_bytes()[:100])
    for seed in range(3):  # whichever side it falls on
        training, validation = opened(folder, tmp_path / "cache", seed=seed, val_fraction=0.5)
        lines = "\n".join(training.summary.lines() + validation.summary.lines())
        assert "1 broken" in lines
        assert "039.png" in lines
        assert len(training.images) + len(validation.images) == 39


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_too_many_broken_files_stop_with_their_names(tmp_path, share):
    folder = folder_of(tmp_path / "photos", 20)
    for path in sorted(folder.iterdir())[: int(20 * share)]:
        path.write_bytes(b"no picture")
    with pytest.raises(ProjectError, match=r"broken.*at most 5 %.*\.png"):
        opened(folder, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_file_deleted_while_building_counts_as_broken_and_afterwards_does_no_harm(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "photos", 40)
    original = photo_source.hold_out

    def delete_one(source, fraction, seed):
        parts = original(source, fraction, seed)
        (folder / parts[0][0].name).unlink()
        return parts

    monkeypatch.setattr(dataset, "hold_out", delete_one)
    training, _ = opened(folder, tmp_path / "cache")
    assert len(training.summary.broken) == 1
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "cache")  # the pixels are mapped, and stay
    assert training.images[0].shape == (16, 16, 3)


BUILD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from Project7 import errors
from Project7.training_config import DataConfig
from Project7.dataset import open_dataset
def progress(what, done, total):
    print(done, flush=True)
def main():
    a, b = open_dataset(DataConfig(data={data!r}, image_size=16), seed=0, cache_dir=Path({cache!r}), progress=progress)
    print("built", a.summary.built, a.fingerprint, flush=True)
if __name__ == "__main__":
    sys.exit(errors.run(main))
"""


def builder(tmp_path, data: Path) -> subprocess.Popen:
    script = tmp_path / "build.py"
    script.write_text(BUILD.format(root=str(ROOT), data=str(data), cache=str(tmp_path / "cache")))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_builder_that_is_stopped_leaves_nothing_that_matters(tmp_path, signum, code):
    """Stopped at its first sign of progress, with worker processes running."""
    data = folder_of(tmp_path / "photos", 1300)
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
    assert len(training.images) == 1235
    assert not list((tmp_path / "cache").glob(".building*"))


def test_of_two_builders_one_waits(tmp_path):
    data = folder_of(tmp_path / "photos", 700)
    with builder(tmp_path, data) as first, builder(tmp_path, data) as second:
        ends = [p.communicate(timeout=100)[0].splitlines()[-1].split() for p in (first, second)]
    assert sorted(end[1] for end in ends) == ["False", "True"]
    assert ends[0][2] == ends[1][2]


def test_workers_and_no_workers_decode_alike(tmp_path, monkeypatch):
    data = folder_of(tmp_path / "photos", 560)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_what_was_asked_for(tmp_path, workers):
    training, _ = opened(folder_of(tmp_path / "photos", 30), tmp_path / "cache")
    order = epoch_order(0, 1, len(training.images))
    batches = [order[i : i + 4] for i in range(0, len(order), 4)]
    loaded = list(load_batches(training.images, batches, num_workers=workers))
    assert [b.dtype for b in loaded] == [torch.uint8] * len(batches)
    assert all(
        np.array_equal(got.numpy(), training.images[wanted]) for got, wanted in zip(loaded, batches, strict=True)
    )
    loaded[0].zero_()  # a batch owns its memory
    assert training.images[batches[0]].any()


def test_a_worker_that_dies_gives_the_hint(tmp_path, monkeypatch):
    monkeypatch.setattr(image_set._WorkersPictures, "__getitem__", lambda self, indices: os._exit(1))
    with pytest.raises(ProjectError, match="--num-workers 0"):
        list(load_batches(np.zeros((4, 8, 8, 3), np.uint8), [np.arange(2)] * 3, num_workers=1))


def test_epoch_order_is_a_pure_permutation():
    assert np.array_equal(np.sort(epoch_order(3, 7, 100)), np.arange(100))
    assert np.array_equal(epoch_order(3, 7, 100), epoch_order(3, 7, 100))
    assert not np.array_equal(epoch_order(3, 7, 100), epoch_order(3, 8, 100))
    assert not np.array_equal(epoch_order(3, 7, 100), epoch_order(4, 7, 100))


def test_the_built_in_photos(tmp_path):
    assert len(photo_source.sample_photos()) == 5
    training, validation = opened("samples", tmp_path / "cache", crops=3)
    assert len(training.images) == 12
    assert len(validation.images) == 3
    content = io.BytesIO(next(iter(photo_source.sample_photos().values())).read_bytes())
    assert Image.open(content).mode == "RGB"


@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason="Tiny ImageNet is not beside this checkout")
def test_the_real_tiny_imagenet(tmp_path):
    from Project7.metrics import colorfulness

    training, validation = opened(TINY_IMAGENET, tmp_path / "cache", image_size=64, limit=400, val_limit=400)
    assert training.images.shape == validation.images.shape == (400, 64, 64, 3)
    assert len(set(training.labels)) > 150
    assert set(validation.labels) <= {name.split("/")[2] for name in training.names} | set(validation.labels) - {""}
    assert 35 < colorfulness(np.array(validation.images)).mean() < 45  # 39.9 over 1,000 of them


# -- several sources -------------------------------------------------------------------------------------------------


def test_several_sources_are_one_set(tmp_path):
    few, many = folder_of(tmp_path / "few", 4), folder_of(tmp_path / "many", 12)
    config = DataConfig(data=(str(few), str(many)), image_size=16, val_fraction=0.25, crops=(3, 1))
    training, validation = open_dataset(config, seed=0, cache_dir=tmp_path / "cache")
    assert training.sizes == (9, 9)
    assert training.images.shape == (18, 16, 16, 3)
    assert len(validation.images) == 3 + 3
    alone = [
        open_dataset(
            DataConfig(data=str(d), image_size=16, val_fraction=0.25, crops=n), seed=0, cache_dir=tmp_path / "c"
        )
        for d, n in ((few, 3), (many, 1))
    ]
    whole = np.concatenate([np.array(part[0].images) for part in alone])
    assert np.array_equal(training.images[np.arange(18)], whole)
    assert np.array_equal(training.images[np.array([17, 0, 9])], whole[[17, 0, 9]])
    assert np.array_equal(training.images[::5], whole[::5])
    assert len({training.fingerprint, *(part[0].fingerprint for part in alone)}) == 3
    assert [line.rsplit("(", 1)[1] for line in training.summary.lines()] == [f"{few})", f"{many})"]


@pytest.mark.parametrize("workers", [0, 2])
def test_several_sources_are_loaded_by_workers_too(tmp_path, workers):
    config = DataConfig(data=tuple(str(folder_of(tmp_path / n, 6)) for n in "ab"), image_size=16)
    training, _ = open_dataset(config, seed=0, cache_dir=tmp_path / "cache")
    batches = [np.array([0, 7]), np.array([9, 3, 1])]
    loaded = list(load_batches(training.images, batches, num_workers=workers))
    assert all(np.array_equal(a.numpy(), training.images[b]) for a, b in zip(loaded, batches, strict=True))


def test_shares_say_how_often_a_source_is_trained_on():
    epochs = [mixed_order(3, epoch, (10, 90), (0.4, 0.6)) for epoch in range(6)]
    assert all(len(order) == 100 for order in epochs)
    assert all((order < 10).sum() == 40 for order in epochs)
    small = np.bincount(np.concatenate(epochs), minlength=100)[:10]
    assert small.tolist() == [24] * 10  # each picture of the small set equally often
    large = np.bincount(np.concatenate(epochs[:3]), minlength=100)[10:]
    assert large.tolist() == [2] * 90  # 180 draws of 90: the second epoch goes on where the first one ended
    assert np.array_equal(epochs[2], mixed_order(3, 2, (10, 90), (0.4, 0.6)))
    assert not np.array_equal(epochs[0], mixed_order(4, 0, (10, 90), (0.4, 0.6)))


def test_without_shares_each_picture_comes_once_per_epoch(tmp_path):
    config = DataConfig(data=tuple(str(folder_of(tmp_path / n, 5)) for n in "ab"), image_size=16, val_fraction=0.2)
    training, _ = open_dataset(config, seed=0, cache_dir=tmp_path / "cache")
    assert np.array_equal(np.sort(training.order(0, 3)), np.arange(8))
    alone, _ = open_dataset(DataConfig(data=config.data[:1], image_size=16), seed=0, cache_dir=tmp_path / "cache")
    assert np.array_equal(alone.order(2, 3), epoch_order(2, 3, len(alone.images)))


def test_other_shares_are_other_data(tmp_path):
    places = tuple(str(folder_of(tmp_path / n, 4)) for n in "ab")
    sets = [
        open_dataset(DataConfig(data=places, shares=shares, image_size=16), seed=0, cache_dir=tmp_path / "cache")[0]
        for shares in ((1, 1), (2, 1))
    ]
    assert sets[0].fingerprint != sets[1].fingerprint
    assert sets[1].shares == pytest.approx((2 / 3, 1 / 3))
