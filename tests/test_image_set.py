"""The order of an epoch over one set or several, and its batches with and without workers."""

import os
import signal

import numpy as np
import psutil
import pytest
import torch
from test_dataset import folder_of, opened

from Project7 import image_set
from Project7.dataset import open_dataset
from Project7.errors import ProjectError
from Project7.image_set import epoch_order, load_batches, mixed_order
from Project7.training_config import DataConfig


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_is_left_to_the_parent(number):
    """Ctrl-C, and the end of a container: the parent finishes its step and saves before the workers end."""
    before = set(psutil.Process().children())
    loaded = load_batches(np.zeros((40, 8, 8, 3), np.uint8), [np.arange(2)] * 20, num_workers=2)
    begun = [next(loaded), next(loaded)]  # of both workers, which are ready then
    for worker in set(psutil.Process().children()) - before:
        worker.send_signal(number)
    assert len([*begun, *loaded]) == 20


def test_epoch_order_is_a_pure_permutation():
    assert np.array_equal(np.sort(epoch_order(3, 7, 100)), np.arange(100))
    assert np.array_equal(epoch_order(3, 7, 100), epoch_order(3, 7, 100))
    assert not np.array_equal(epoch_order(3, 7, 100), epoch_order(3, 8, 100))
    assert not np.array_equal(epoch_order(3, 7, 100), epoch_order(4, 7, 100))


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
