"""color.py for NumPy arrays: sRGB <-> CIE Lab without torch. A test compares the two.

Pictures are (3, ...) or (H, W, 3) as each function says; L is in [-1, 1] and ab in Lab units.
"""

from typing import Any

import numpy as np
from PIL import Image

RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])
_RGB_TO_WHITE_XYZ = (RGB_TO_XYZ / WHITE[:, None]).astype(np.float32)  # linear RGB -> (X / Xn, Y / Yn, Z / Zn)
_WHITE_XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ / WHITE[:, None]).astype(np.float32)
_DELTA = 6 / 29  # below its cube, Lab replaces the cube root by a straight line
_TINT = 6.0  # Lab units: limit of a single tint, however it depends on lightness


def srgb_to_linear(rgb: np.ndarray) -> np.ndarray:
    """The sRGB transfer curve, [0, 1] -> [0, 1]; uint8 is looked up in a table."""
    if rgb.dtype == np.uint8:
        return _LINEAR_OF_BYTE[rgb]
    return np.where(rgb > 0.04045, ((np.maximum(rgb, 0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


_LINEAR_OF_BYTE = srgb_to_linear(np.arange(256, dtype=np.float32) / 255)


def linear_to_srgb(linear: np.ndarray) -> np.ndarray:
    curved = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(linear > 0.0031308, curved, linear * 12.92)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB, uint8 or float32 in [0, 1], (..., 3) -> Lab (3, ...), L in [0, 100]."""
    x, y, z = (_root(value) for value in np.tensordot(_RGB_TO_WHITE_XYZ, srgb_to_linear(rgb), axes=(1, -1)))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def lightness(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> L (H, W) in [-1, 1]. A gray pixel has one of 256 lightnesses, which are looked up."""
    r, g, b = (rgb[..., channel] for channel in range(3))
    if np.array_equal(r, g) and np.array_equal(g, b):
        return lightness_of_gray(np.arange(256, dtype=np.uint8))[r]
    wr, wg, wb = _RGB_TO_WHITE_XYZ[1]
    return _to_range(_root(wr * _LINEAR_OF_BYTE[r] + wg * _LINEAR_OF_BYTE[g] + wb * _LINEAR_OF_BYTE[b]))


def lightness_of_gray(gray: np.ndarray) -> np.ndarray:
    """sRGB gray, uint8 or float32 in [0, 1] -> L in [-1, 1], of the same shape."""
    wr, wg, wb = _RGB_TO_WHITE_XYZ[1]
    linear = srgb_to_linear(gray)
    return _to_range(_root(wr * linear + wg * linear + wb * linear))


def _root(y: np.ndarray) -> np.ndarray:
    return np.where(y > _DELTA**3, np.maximum(y, _DELTA**3) ** (1 / 3), y / (3 * _DELTA**2) + 4 / 29)


def _to_range(f: np.ndarray) -> np.ndarray:
    return ((116 * f - 16) / 50 - 1).astype(np.float32)


def level(L: Any) -> Any:
    """L in [-1, 1] -> Lab units, 0 to 100."""
    return (L + 1) * 50


def lab_to_linear(lab: np.ndarray) -> np.ndarray:
    """Lab (3, ...) -> linear RGB, which is below 0 or above 1 for colours outside sRGB."""
    L, a, b = lab
    y = (L + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200])
    xyz = np.where(f > _DELTA, f * f * f, 3 * _DELTA**2 * (f - 4 / 29))
    return np.tensordot(_WHITE_XYZ_TO_RGB, xyz, axes=1)


def displayed(lab: np.ndarray) -> np.ndarray:
    """Lab (3, ...) -> sRGB values before rounding, with the same lightness and the nearest chroma in sRGB."""
    linear = lab_to_linear(lab)
    if (outside := _outside(linear)).any():
        linear[:, outside] = lab_to_linear(_lower_chroma(lab[:, outside]))
    return linear_to_srgb(linear)


def into_gamut(lab: np.ndarray) -> np.ndarray:
    """Lowers the chroma of colours in Lab (3, ...) that sRGB cannot show, at constant L."""
    lab = lab.copy()
    if (outside := _outside(lab_to_linear(lab))).any():
        lab[:, outside] = _lower_chroma(lab[:, outside])
    return lab


def _outside(linear: np.ndarray, tolerance: float = 2e-5) -> np.ndarray:
    """(3, ...) linear RGB -> (...) bool: whether the colour is outside sRGB."""
    return np.any((linear < -tolerance) | (linear > 1 + tolerance), axis=0)


def _lower_chroma(lab: np.ndarray) -> np.ndarray:
    """(3, N) Lab with its chroma lowered into sRGB, by bisection to 1/1024 of it."""
    L, ab = lab[:1], lab[1:]
    low, high = np.zeros_like(L), np.ones_like(L)
    for _ in range(10):
        middle = (low + high) / 2
        bad = _outside(lab_to_linear(np.concatenate([L, ab * middle])))
        low, high = np.where(bad, low, middle), np.where(bad, middle, high)
    return np.concatenate([L, ab * low])


def rounded(rgb: np.ndarray, *, deep: bool = False) -> np.ndarray:
    """sRGB (3, H, W) -> (H, W, 3) uint8, or uint16 if `deep`."""
    most, kind = (65535, np.uint16) if deep else (255, np.uint8)
    return np.moveaxis(np.rint(rgb.clip(0, 1) * most).astype(kind), 0, -1)


def in_colour(rgb: np.ndarray) -> bool:
    """Whether a photo (H, W, 3) uint8 has more colours than a single tint, such as sepia, at each lightness."""
    step = max(1, max(rgb.shape[:2]) // 96)
    lab = rgb_to_lab(np.asarray(Image.fromarray(rgb).reduce(step))).astype(np.float64).reshape(3, -1)
    L, ab = lab[0] / 100, lab[1:].T  # (N,) in [0, 1], and (N, 2)
    powers = np.stack([np.ones_like(L), L, L * L], axis=1)  # (N, 3)
    rest = ab - powers @ np.linalg.lstsq(powers, ab, rcond=None)[0]
    return bool(np.sqrt((rest**2).sum(axis=1).mean()) > _TINT)
