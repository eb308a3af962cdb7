"""Hints for NumPy arrays are those of torch."""

import numpy as np
import pytest
import torch
from test_array_picture import MEAN, STD, four, smooth

from Project7 import array_hints, diffusion_model, hints
from Project7.errors import UsageError
from Project7.model_config import DiffusionConfig

TOLD = [(40, 50, "#c03020"), (90.5, 20, "steelblue"), (91, 20, "gold")]
PHOTO = (100, 120)
L = smooth(50, 60)
SPOTS = hints.find_spots(TOLD, PHOTO, four(L))


def test_spots_have_the_same_places_and_colours():
    found = array_hints.find_spots(TOLD, PHOTO, L.numpy())
    assert [(spot.row, spot.column) for spot in found] == [(spot.row, spot.column) for spot in SPOTS]
    assert np.allclose([spot.ab for spot in found], [spot.ab for spot in SPOTS], atol=1e-3)
    with pytest.raises(UsageError, match="outside the photo"):
        array_hints.find_spots([(120, 3, "red")], PHOTO, L.numpy())
    with pytest.raises(UsageError, match="is not a colour"):
        array_hints.find_spots([(12, 3, "reddish")], PHOTO, L.numpy())


def test_the_network_is_told_the_same():
    model = diffusion_model.DiffusionColorizer(DiffusionConfig(features=(8,), time_dim=16, chroma_scale=8, hints=True))
    wanted = torch.cat(model.shrink_hints(*hints.hint_maps(SPOTS, (50, 60), MEAN, STD, 1)), dim=1)[0]
    found = array_hints.hint_maps(SPOTS, (50, 60), MEAN.numpy(), STD.numpy(), 8)
    assert np.allclose(found, wanted, atol=1e-5)


def test_surfaces_are_the_same_and_hold_the_same_colours():
    near = array_hints.nearness(L.numpy(), SPOTS)
    wanted = hints.nearness(four(L), SPOTS)
    assert np.allclose(near, torch.stack(wanted), atol=1e-5)
    ab = smooth(2, 50, 60, seed=1) * 30
    held = array_hints.hold(ab.numpy(), L.numpy(), SPOTS, near)
    assert np.allclose(held, hints.hold(four(ab), four(L), SPOTS)[0], atol=1e-3)
    assert np.allclose([held[:, spot.row, spot.column] for spot in SPOTS], [spot.ab for spot in SPOTS], atol=1e-3)
