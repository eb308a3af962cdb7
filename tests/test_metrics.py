"""metrics.py against sums done by hand, on one photo and on many."""

import math

import numpy as np
import pytest

from Project7.metrics import PSNR_CAP, colorfulness, psnr


def photos(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 9, 11, 3), dtype=np.uint8)


def flat(*rgb: int) -> np.ndarray:
    return np.full((4, 6, 3), rgb, dtype=np.uint8)


@pytest.mark.parametrize(
    ("ours", "truth", "mean_square"),
    [
        ((10, 20, 30), (11, 21, 31), 1),
        ((250, 0, 7), (0, 0, 7), 250**2 / 3),  # a difference that would wrap around in uint8
        ((0, 0, 0), (255, 255, 255), 255**2),
        ((5, 5, 5), (2, 5, 9), 25 / 3),
    ],
)
def test_psnr_by_hand(ours, truth, mean_square):
    expected = 10 * math.log10(255**2 / mean_square)
    assert psnr(flat(*ours), flat(*truth)) == pytest.approx(expected, abs=1e-4)
    assert psnr(flat(*truth), flat(*ours)) == pytest.approx(expected, abs=1e-4)


def test_psnr_takes_the_mean_over_pixels_before_the_logarithm():
    ours, truth = flat(0, 0, 0), flat(0, 0, 0)
    ours[0, 0, 0] = 60  # one channel of one of 24 pixels
    assert psnr(ours, truth) == pytest.approx(10 * math.log10(255**2 / (3600 / 72)), abs=1e-4)


def test_psnr_is_capped():
    assert PSNR_CAP == 60
    assert psnr(flat(1, 2, 3), flat(1, 2, 3)) == 60
    nearly = np.zeros((200, 200, 3), np.uint8)
    nearly[0, 0, 0] = 1  # 98.9 dB without the cap
    assert psnr(nearly, np.zeros_like(nearly)) == 60


def test_psnr_of_many_is_that_of_each():
    ours, truth = photos(2, 5), photos(2, 5, seed=1)
    many = psnr(ours, truth)
    assert many.shape == (2, 5)
    assert many[1, 3] == pytest.approx(psnr(ours[1, 3], truth[1, 3]), abs=1e-4)
    assert np.ptp(many) > 0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        # rg = 255, yb = 127.5 everywhere: no spread, 0.3 of the length of the mean
        ((255, 0, 0), (255, 0, 0), 0.3 * math.hypot(255, 127.5)),
        ((0, 0, 255), (0, 0, 255), 0.3 * 255),
        # rg = 255 and -255, yb = 127.5: spread 255, mean (0, 127.5)
        ((255, 0, 0), (0, 255, 0), 255 + 0.3 * 127.5),
        # rg = 30 and 10, yb = 65 and -15: spread hypot(10, 40), mean (20, 25)
        ((100, 70, 20), (50, 40, 60), math.hypot(10, 40) + 0.3 * math.hypot(20, 25)),
    ],
)
def test_colorfulness_by_hand(left, right, expected):
    photo = np.concatenate([flat(*left), flat(*right)], axis=1)
    assert colorfulness(photo) == pytest.approx(expected, abs=1e-3)


def test_gray_has_no_colorfulness():
    gray = np.repeat(photos()[..., :1], 3, axis=-1)
    assert colorfulness(gray) == 0


def test_colorfulness_of_many_is_that_of_each():
    many = colorfulness(photos(3, 4))
    assert many.shape == (3, 4)
    assert many[2, 1] == pytest.approx(colorfulness(photos(3, 4)[2, 1]), abs=1e-3)
    assert np.ptp(many) > 0


def test_colorfulness_does_not_depend_on_where_the_colours_are():
    photo = photos()
    shuffled = np.random.default_rng(1).permutation(photo.reshape(-1, 3)).reshape(photo.shape)
    assert colorfulness(shuffled) == pytest.approx(colorfulness(photo), abs=1e-3)


def test_photos_are_not_changed():
    ours, truth = photos(), photos(seed=1)
    psnr(ours, truth), colorfulness(ours)
    assert (ours == photos()).all()
    assert (truth == photos(seed=1)).all()
