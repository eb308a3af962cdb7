"""The checks of a scan before it is coloured, and what is done about their results."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_colorize import CONFIG, picture

from Project7.array_color import in_colour
from Project7.color import rgb_to_lab
from Project7.colorize import Colorizer
from Project7.methods import build_model
from Project7.painting import full_lightness
from Project7.photo import from_array, open_photo
from Project7.photo_source import sample_photos
from Project7.scan import Lightness, ends, faded, white_border


def gray_of(rgb):
    return np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[..., None], 3, axis=2)


def framed(rgb, *, width=24, level=245):
    return np.pad(rgb, ((width, width), (width, width), (0, 0)), constant_values=level)


def photos():
    return [open_photo(path).rgb for path in sample_photos().values()]


def test_a_photo_in_colour_is_told_from_a_gray_and_a_toned_one():
    for rgb in photos():
        gray = gray_of(rgb)
        sepia = (gray * np.array([1.0, 0.85, 0.65])).astype(np.uint8)
        assert [in_colour(p) for p in (rgb, gray, sepia)] == [True, False, False]


def test_a_faded_photo_is_told_and_levels_bring_its_contrast_back():
    for rgb in photos():
        gray = gray_of(rgb)
        pale = (gray * 0.3 + 130).astype(np.uint8)
        assert not faded(full_lightness(gray))
        assert faded(full_lightness(pale))
        both, network = (Lightness(from_array(pale), levels=levels) for levels in ("auto", "network"))
        assert torch.equal(both.L, both.seen)
        assert torch.equal(network.L, full_lightness(pale))
        for L in (both.L, network.seen):
            low, high = ends(L)
            assert low < -0.9
            assert high > 0.9


@pytest.mark.parametrize("turn", [0, 1])
def test_a_white_border_is_found_where_there_is_one(turn):
    for rgb in photos():
        gray = gray_of(rgb)
        assert white_border(full_lightness(gray)) is None
        page = Image.fromarray(framed(gray)).rotate(turn, fillcolor=(245,) * 3, resample=Image.Resampling.BILINEAR)
        border = white_border(full_lightness(np.asarray(page)))
        assert border is not None
        assert border[0, 0, 2].min() == 1
        assert border[0, 0, 40:-40, 40:-40].mean() < 0.1


def test_neither_a_white_picture_nor_a_light_sky_is_a_border():
    assert white_border(torch.ones(1, 1, 30, 40)) is None
    sky = np.full((60, 80, 3), 240, np.uint8)
    sky[30:] = gray_of(picture(30, 80))
    assert white_border(full_lightness(sky)) is None


def test_a_white_border_stays_neutral_in_one_picture_and_on_the_page():
    torch.manual_seed(0)
    colorizer = Colorizer(build_model(CONFIG.model).eval(), CONFIG)
    rgb = framed(gray_of(picture(64, 64)) // 2, width=16)
    for answer in (colorizer.colorize(rgb, steps=2), colorizer.open(rgb, steps=2).image()):
        a, b = rgb_to_lab(torch.from_numpy(np.array(answer)).movedim(-1, 0))[1:]
        chroma = torch.hypot(a, b)
        assert chroma[:8].max() < 2
        assert chroma[24:-24, 24:-24].mean() > 5
