"""Decoding on the fly: the same pixels, order and run as from the cache, in workers and when resumed; and when it is
chosen."""

import re
import shutil

import numpy as np
import pytest
from test_dataset import folder_of, opened, zipped
from test_tar_index import shards_of
from test_trainer import assert_same_run, config, run

from Project7 import dataset
from Project7.checkpoints import load_checkpoint
from Project7.dataset import open_dataset
from Project7.errors import ProjectError
from Project7.image_set import load_batches
from Project7.on_the_fly import OnTheFly
from Project7.training_config import DataConfig


def stored(kind: str, tmp_path, count=21):
    folder = folder_of(tmp_path / "photos", count, size=(24, 20))
    (folder / "007.png").write_bytes(b"no picture") if count > 30 else None
    if kind == "folder":
        return folder
    return zipped(folder, tmp_path / "a.zip") if kind == "zip" else shards_of(folder, tmp_path / "shards")


def both(data, tmp_path, **settings):
    """The training images from the cache, and decoded on the fly."""
    sets = [opened(data, tmp_path / "cache", decode=way, **settings) for way in ("cache", "on-the-fly")]
    assert sets[0][1].fingerprint == sets[1][1].fingerprint
    return sets[0][0], sets[1][0]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_cache_bit_for_bit(tmp_path, kind, workers):
    """Broken photos are left out alike, and random squares are the same, also in the middle of an epoch."""
    cached, lazy = both(stored(kind, tmp_path, 60), tmp_path, crops=3, val_fraction=0.3)
    assert isinstance(lazy.images, OnTheFly)
    assert (lazy.fingerprint, lazy.names, lazy.images.shape) == (cached.fingerprint, cached.names, cached.images.shape)
    assert lazy.summary.broken == cached.summary.broken
    order = lazy.order(0, 1)[7:]
    batches = [order[i : i + 16] for i in range(0, len(order), 16)]
    for got, wanted in zip(load_batches(lazy.images, batches, num_workers=workers), batches, strict=True):
        assert np.array_equal(got.numpy(), cached.images[wanted])
    assert np.array_equal(lazy.images[::5], cached.images[::5])


def test_a_run_left_and_resumed_is_that_of_the_cache_bit_for_bit(tmp_path):
    settings = config(epochs=1, num_workers=None)
    data = DataConfig(data=(stored("tar", tmp_path),), image_size=16)
    cached, lazy = (
        open_dataset(data.model_copy(update={"decode": way}), seed=0, cache_dir=tmp_path / "cache")
        for way in ("cache", "on-the-fly")
    )
    run(tmp_path / "whole", settings, images=cached)
    run(tmp_path / "parts", settings, images=lazy, leave=lambda p: p.step == 3)
    run(tmp_path / "parts", settings, images=lazy, resume=load_checkpoint(tmp_path / "parts" / "last_model.pth"))
    assert_same_run(*(load_checkpoint(tmp_path / name / "last_model.pth") for name in ("whole", "parts")))


def test_mixed_with_a_set_in_the_cache(tmp_path):
    few = folder_of(tmp_path / "few", 6)
    opened(few, tmp_path / "cache")  # is there already, and is used
    config = DataConfig(data=(str(few), stored("tar", tmp_path)), image_size=16)
    said = []
    with pytest.MonkeyPatch.context() as small:
        small.setattr(dataset, "free_bytes", lambda _: 10_000)
        mixed, _ = open_dataset(config, seed=0, cache_dir=tmp_path / "cache", say=said.append)
    assert [type(part) for part in mixed.images.parts] == [np.memmap, OnTheFly]
    assert len(said) == 1
    whole, _ = open_dataset(config, seed=0, cache_dir=tmp_path / "other")
    assert whole.fingerprint == mixed.fingerprint
    batches = [np.array([0, 20]), np.array([9, 3, 1])]
    for got, wanted in zip(load_batches(mixed.images, batches), batches, strict=True):
        assert np.array_equal(got.numpy(), whole.images[wanted])


@pytest.mark.parametrize(
    ("free", "decode", "said"),
    [
        (10**9, "auto", r"21 photos take up to 16\.1 kB decoded, and 1\.0 GB are free in .*: kept there"),
        (10_000, "auto", r"16\.1 kB decoded, and 10\.0 kB are free in .*: the training photos are decoded on the fly"),
        (10**9, "on-the-fly", r"16\.1 kB decoded, .*: the training photos are decoded on the fly"),
    ],
)
def test_what_the_room_on_the_disk_decides_is_said_before(tmp_path, monkeypatch, free, decode, said):
    folder, order = folder_of(tmp_path / "photos", 21), []
    monkeypatch.setattr(dataset, "free_bytes", lambda _: free)
    config = DataConfig(data=(str(folder),), image_size=16, decode=decode)
    training, _ = open_dataset(
        config, seed=0, cache_dir=tmp_path / "cache", say=order.append, progress=lambda *done: order.append(done)
    )
    assert re.search(said, order[0])
    assert isinstance(training.images, OnTheFly) == ("fly" in said)
    assert ("decoded on the fly" in training.summary.lines()[0]) == ("fly" in said)
    stored = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("images.bin"))
    assert stored == (768 if "fly" in said else 21 * 768)  # the one photo for validation is in the cache
    order.clear()
    open_dataset(config, seed=0, cache_dir=tmp_path / "cache", say=order.append)
    assert len(order) == ("fly" in said)  # all is in the cache: nothing to say


@pytest.mark.parametrize(
    ("free", "decode", "cure"),
    [
        (10_000, "cache", r"The 21 photos take up to 16\.1 kB decoded, .* with --decode on-the-fly\.$"),
        (100, "auto", r"the 768 bytes for validation do not fit.*--val-limit\.$"),
        (100, "on-the-fly", r"the 768 bytes for validation do not fit.*--val-limit\.$"),
    ],
)
def test_without_room_nothing_is_begun(tmp_path, monkeypatch, free, decode, cure):
    monkeypatch.setattr(dataset, "free_bytes", lambda _: free)
    with pytest.raises(ProjectError, match=cure):
        opened(folder_of(tmp_path / "photos", 21), tmp_path / "cache", decode=decode)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_is_gone_ends_in_one_sentence(tmp_path, workers):
    folder = folder_of(tmp_path / "photos", 8)
    training, _ = opened(folder, tmp_path / "cache", decode="on-the-fly")
    shutil.rmtree(folder)
    with pytest.raises(ProjectError, match=r"^00\d\.png can no longer be decoded \(.*\); bring it back") as caught:
        list(load_batches(training.images, [np.arange(3)], num_workers=workers))
    assert "\n" not in str(caught.value)
