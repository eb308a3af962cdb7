"""Colour for NumPy arrays is the colour of color.py."""

import numpy as np
import pytest
import torch

from Project7 import array_color, color


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)


def tensor(picture):
    return color.channels_first(picture)


def test_lab_and_lightness_are_those_of_torch(rgb):
    assert np.allclose(array_color.rgb_to_lab(rgb), color.rgb_to_lab(tensor(rgb)), atol=1e-4)
    assert np.allclose(array_color.lightness(rgb), color.lightness(tensor(rgb)[None])[0, 0], atol=1e-6)
    fine = rgb[..., 0].astype(np.float32) / 255
    wanted = color.lightness(torch.from_numpy(fine).expand(1, 3, -1, -1))[0, 0]
    assert np.allclose(array_color.lightness_of_gray(fine), wanted, atol=1e-6)


def test_a_gray_photo_is_looked_up_and_the_same():
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    assert np.allclose(array_color.lightness(rgb), color.lightness(tensor(rgb)[None])[0, 0], atol=1e-6)


@pytest.mark.parametrize("deep", [False, True])
def test_colours_beyond_the_screen_keep_their_lightness_in_the_same_way(deep):
    lab = np.random.default_rng(1).uniform([0, -120, -120], [100, 120, 120], (40, 50, 3)).astype(np.float32)
    lab = np.moveaxis(lab, -1, 0)
    assert (array_color.lab_to_linear(lab) > 1.1).any(), "some need it"
    shown = color.displayed(torch.from_numpy(lab))
    wanted = color.to_uint16(shown) if deep else color.channels_last(color.to_uint8(shown))
    found = array_color.rounded(array_color.displayed(lab), deep=deep)
    assert found.dtype == wanted.dtype
    # one place in the bisection: a pixel at the border of the screen's colours
    off = np.abs(found.astype(int) - wanted.astype(int))
    assert (off > (64 if deep else 1)).mean() < 1e-3
    gamut = color.into_gamut(torch.from_numpy(lab)).numpy()
    assert np.abs(array_color.into_gamut(lab) - gamut).mean() < 1e-3
