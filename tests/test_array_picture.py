"""Sizes, edges and scans for NumPy arrays are those of torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from Project7 import array_picture, color, encoder, guided_filter, painting, scan
from Project7.photo import Photo

MEAN, STD = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])


def smooth(*shape, seed=0):
    """A picture with edges, in [-1, 1]."""
    small = torch.rand(*shape[:-2], 5, 6, generator=torch.Generator().manual_seed(seed))[None]
    return (F.interpolate(small.view(1, -1, 5, 6), shape[-2:], mode="bicubic")[0] * 2 - 1).clamp(-1, 1).view(shape)


def four(x):
    return x[None] if x.ndim == 3 else x[None, None]


@pytest.mark.parametrize("size", [(7, 31), (20, 11), (50, 60), (64, 9), (1, 1)])
@pytest.mark.parametrize(("kind", "antialias"), [("bilinear", True), ("bicubic", True), ("bicubic", False)])
def test_another_size_is_that_of_torch(kind, antialias, size):
    x = torch.rand(2, 20, 31, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(x[None], size, mode=kind, antialias=antialias)[0]
    assert np.allclose(array_picture.resize(x.numpy(), size, kind, antialias=antialias), wanted, atol=2e-6)


def test_a_view_and_a_line_of_the_matrix_are_those_of_torch():
    L = smooth(50, 70)
    assert np.allclose(array_picture.view(L.numpy(), (33, 65)), encoder.resize(four(L), (33, 65))[0, 0], atol=1e-5)
    assert np.allclose(array_picture.matrix(31, 8), guided_filter.bicubic_matrix(31, 8), atol=1e-6)


@pytest.mark.parametrize("scale", [1, 4, 8])
def test_chroma_follows_the_same_edges(scale):
    L = smooth(37, 50)
    ab = smooth(2, -(-37 // scale), -(-50 // scale), seed=1)
    wanted = guided_filter.expand(four(ab), four(L), scale)[0]
    assert np.allclose(array_picture.expand(ab.numpy(), L.numpy(), scale), wanted, atol=1e-5)
    cells = F.pixel_unshuffle(guided_filter.pad_to_multiple(four(L), 4), 4)[0]
    assert np.array_equal(array_picture.cells(array_picture.pad_to_multiple(L.numpy(), 4), 4), cells)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("size", [(90, 70), (20, 24)])
def test_a_painted_picture_is_the_same(size, channels):
    L, small = smooth(*size), smooth(32, 40, seed=2)
    ab = smooth(channels, 32, 40, seed=3)
    wanted = painting.paint(four(L), four(small), four(ab), MEAN, STD)
    units = ab.clone()
    units[-2:] = color.to_lab_units(four(ab[-2:]), MEAN, STD)[0]
    found = array_picture.paint(L.numpy(), small.numpy(), units.numpy())
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("levels", ["off", "network", "auto"])
def test_a_faded_print_with_a_border_is_seen_alike(levels):
    gray = np.full((120, 160), 245, np.uint8)
    gray[12:-12, 12:-12] = 90 + 40 * (smooth(96, 136).numpy() + 1) / 2
    photo = Photo(np.repeat(gray[..., None], 3, axis=2))
    here, there = array_picture.ArrayLightness(photo, levels=levels), scan.Lightness(photo, levels=levels)
    assert here.border is not None
    assert np.array_equal(here.border, there.border[0, 0])
    assert np.allclose(here.L, there.L[0, 0], atol=1e-5)
    assert np.allclose(here.seen, there.seen[0, 0], atol=1e-5)
    assert array_picture.faded(here.plain) == scan.faded(there.plain, there.border) is True
    small, ab = smooth(40, 50), smooth(2, 40, 50, seed=3)
    wanted = there.paint(four(small), four(ab), torch.zeros(2), torch.ones(2))
    assert np.abs(here.paint(small.numpy(), ab.numpy()).astype(int) - wanted.astype(int)).max() <= 1


def test_what_is_connected_with_the_edge_is_found_around_a_corner():
    mask = np.array([[0, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    alone = np.zeros_like(mask)
    alone[3, 1] = True
    assert np.array_equal(array_picture.at_the_edge(mask), mask & ~alone)


def test_sixteen_bits_stay():
    gray = np.linspace(0, 65535, 60 * 50).reshape(60, 50).astype(np.uint16)
    photo = Photo(np.repeat((gray // 257).astype(np.uint8)[..., None], 3, axis=2), deep=gray)
    ab = np.zeros((2, 20, 16), np.float32)
    found = array_picture.ArrayLightness(photo).paint(np.zeros((20, 16), np.float32), ab, deep=True)
    assert found.dtype == np.uint16
    assert np.abs(found[..., 0].astype(int) - gray.astype(int)).max() < 40
