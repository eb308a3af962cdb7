"""augment.py: training photos zoomed and aged, the same for the same seed, step and sample."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import augment
from Project7.batch import BatchRandom

COUNT = 64


def random(step: int = 0) -> BatchRandom:
    return BatchRandom(0, step, 0, COUNT, COUNT)


def ramp(size: int = 32) -> torch.Tensor:
    """Red rises to the right, green downwards, and blue is constant, so that a crop can be located by its colours."""
    line = torch.linspace(0, 255, size)
    picture = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.full((size, size), 100.0)])
    return picture.round().to(torch.uint8).expand(COUNT, -1, -1, -1)


def smooth_photo(size: int = 32) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 3, size), indexing="ij")
    return (torch.sin(3 * x) * torch.cos(2 * y) * 0.7).expand(COUNT, 1, -1, -1)


def test_a_zoomed_photo_is_a_part_of_it():
    found = augment.zoom(ramp(), 0.5, random()).float()
    assert torch.equal(found[:, 2], torch.full_like(found[:, 2], 100))
    width = (found[:, 0, 16, -1] - found[:, 0, 16, 0]) / 255
    height = (found[:, 1, -1, 16] - found[:, 1, 0, 16]) / 255
    area, shape = width * height, width / height
    assert 0.2 < area.min() < 0.35  # 0.25 at least, less the half pixels at both ends
    assert area.max() > 0.8
    assert 0.7 < shape.min() < 0.9
    assert 1.1 < shape.max() < 1.4
    middle = found[:, :2, 16, 16]
    assert middle.std(dim=0).min() > 15  # crops lie anywhere


def test_no_zoom_is_the_photo_itself():
    assert (augment.zoom(ramp(), 1.0, random()).int() - ramp().int()).abs().max() <= 255 * 0.15
    assert torch.equal(augment.age(smooth_photo(), 0.0, random()), smooth_photo())


def test_both_are_functions_of_seed_step_and_sample():
    assert torch.equal(augment.zoom(ramp(), 0.5, random()), augment.zoom(ramp(), 0.5, random()))
    assert not torch.equal(augment.zoom(ramp(), 0.5, random()), augment.zoom(ramp(), 0.5, random(1)))
    second = BatchRandom(0, 0, 32, 32, COUNT)  # the second of two processes
    assert torch.equal(augment.zoom(ramp()[32:], 0.5, second), augment.zoom(ramp(), 0.5, random())[32:])
    L = smooth_photo()
    assert torch.equal(augment.age(L[32:], 0.7, second), augment.age(L, 0.7, random())[32:])


def test_some_photos_age_and_the_others_stay():
    L = smooth_photo()
    aged = augment.age(L, 0.5, random())
    changed = (aged != L).flatten(1).any(dim=1)
    assert 0.3 < changed.float().mean() < 0.6
    assert aged.abs().max() <= 1
    every = augment.age(L, 1.0, random())
    difference = (every - L).abs().mean(dim=(1, 2, 3))
    assert 0.02 < difference.mean() < 0.4
    assert difference.std() > 0.02  # each in its own way


def test_an_old_photo_can_still_be_recognised():
    L = smooth_photo()
    aged = augment.age(L, 1.0, random()).flatten(1)
    pairs = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(aged, L.flatten(1), strict=True)])
    assert pairs.min() > 0.6


@pytest.mark.parametrize("quality", [0.2, 0.5, 0.8])
def test_jpeg_does_what_libjpeg_does(quality):
    """The same blocks go through Pillow, whose luminance table is that of Annex K, too."""
    rng = np.random.default_rng(0)
    levels = np.clip(128 + 40 * rng.standard_normal((16, 24)).cumsum(axis=1) / 3, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=round(100 * quality))
    theirs = torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32))
    ours = augment.jpeg(torch.from_numpy(levels / 127.5 - 1).float()[None, None], torch.full((1, 1, 1, 1), quality))
    clipped = ((ours[0, 0] + 1) * 127.5).clamp(0, 255)
    assert (clipped - theirs).abs().mean() < 0.5  # theirs is rounded to whole levels
    assert (theirs - torch.from_numpy(levels.astype(np.float32))).abs().mean() > 1.5


def test_the_best_quality_changes_hardly_anything():
    L = smooth_photo()[:1]
    assert (augment.jpeg(L, torch.full((1, 1, 1, 1), 1.0)) - L).abs().max() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (7, 20), (16, 16)])
def test_any_size_comes_back_as_it_was(size):
    L = torch.zeros(COUNT, 1, *size)
    assert augment.age(L, 1.0, random()).shape == L.shape
    assert augment.zoom(torch.zeros(COUNT, 3, *size, dtype=torch.uint8), 0.4, random()).shape == (COUNT, 3, *size)


def test_blur_of_nothing_is_the_picture():
    L = smooth_photo()
    torch.testing.assert_close(augment.blurred(L, torch.zeros(COUNT, 1, 1, 1)), L, rtol=1e-5, atol=1e-5)
    flat = torch.full_like(L, 0.3)
    torch.testing.assert_close(augment.blurred(flat, torch.full((COUNT, 1, 1, 1), 1.2)), flat)
