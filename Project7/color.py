"""sRGB <-> CIE Lab <-> the network's range. The constants 50, 100, 110 and the white point are defined only here.

Lab uses D65 and the 2-degree observer, as in scikit-image. Pictures are (..., 3, H, W) or (..., C, H, W).
Outside this file L is in [-1, 1] and ab is shifted and scaled to about unit variance: the network's range.
"""

import numpy as np
import torch
from torch import Tensor

from Project7.array_color import RGB_TO_XYZ, WHITE

_RGB_TO_XYZ, _WHITE = torch.from_numpy(RGB_TO_XYZ), torch.from_numpy(WHITE)
_RGB_TO_WHITE_XYZ = (_RGB_TO_XYZ / _WHITE[:, None]).float()  # linear RGB -> (X / Xn, Y / Yn, Z / Zn)
_WHITE_XYZ_TO_RGB = torch.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]).float()
_DELTA = 6 / 29  # below its cube, Lab replaces the cube root by a straight line
_LINEAR_OF_BYTE: Tensor  # (256,) sRGB byte -> linear light; filled below, after srgb_to_linear


def srgb_to_linear(rgb: Tensor) -> Tensor:
    """The sRGB transfer curve, [0, 1] -> [0, 1]; uint8 is looked up in a table."""
    if rgb.dtype == torch.uint8:
        return _LINEAR_OF_BYTE.to(rgb.device)[rgb.int()]
    return torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)


def linear_to_srgb(linear: Tensor) -> Tensor:
    # Clamped inside the power: its slope at 0 is infinite, and 0 * inf would be a NaN gradient.
    curved = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, linear * 12.92)


_LINEAR_OF_BYTE = srgb_to_linear(torch.arange(256) / 255)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB, uint8 or float in [0, 1], (..., 3, H, W) -> Lab, L in [0, 100], of the same shape."""
    xyz = _mix(_RGB_TO_WHITE_XYZ, srgb_to_linear(rgb))
    f = torch.where(xyz > _DELTA**3, xyz.clamp(min=_DELTA**3) ** (1 / 3), xyz / (3 * _DELTA**2) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def lab_to_linear(lab: Tensor) -> Tensor:
    """Lab -> linear RGB, which is below 0 or above 1 for colours outside sRGB."""
    L, a, b = lab.unbind(-3)
    y = (L + 16) / 116
    f = torch.stack([y + a / 500, y, y - b / 200], dim=-3)
    xyz = torch.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29))
    return _mix(_WHITE_XYZ_TO_RGB, xyz)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Lab (..., 3, H, W) -> sRGB float.

    It is not clipped and has finite gradients everywhere, so that losses can use it.
    """
    return linear_to_srgb(lab_to_linear(lab))


def _mix(matrix: Tensor, picture: Tensor) -> Tensor:
    """Applies a 3 x 3 matrix to the channels, in float32 even under autocast: bfloat16 is too coarse for colour."""
    a, b, c = picture.float().unbind(-3)
    m = matrix.tolist()
    return torch.stack([r[0] * a + r[1] * b + r[2] * c for r in m], dim=-3)


def into_gamut(lab: Tensor) -> Tensor:
    """Lowers the chroma of colours that sRGB cannot show until they fit, at constant L. Lab (..., 3, H, W) -> the same.

    Clipping RGB instead would change L, and the lightness of the photo is the one thing that is known.
    """
    flat = lab.movedim(-3, 0).flatten(1)  # (3, N)
    flat = _lower_chroma(flat, _outside(lab_to_linear(flat[..., None])[..., 0]))
    return flat.unflatten(1, (*lab.shape[:-3], *lab.shape[-2:])).movedim(0, -3)


def show(lab: Tensor) -> Tensor:
    """Lab (..., 3, H, W) -> the sRGB picture with the same lightness and the nearest chroma, uint8."""
    return to_uint8(displayed(lab))


def displayed(lab: Tensor) -> Tensor:
    """The same as `show` before rounding to 8 or 16 bits: sRGB floats."""
    linear = lab_to_linear(lab)
    if _outside(linear.movedim(-3, 0)).any():
        linear = lab_to_linear(into_gamut(lab))
    return linear_to_srgb(linear)


def _outside(linear: Tensor, tolerance: float = 2e-5) -> Tensor:
    """(3, ...) linear RGB -> (...) bool: whether the colour is outside sRGB."""
    return ((linear < -tolerance) | (linear > 1 + tolerance)).any(dim=0)


def _lower_chroma(flat: Tensor, outside: Tensor) -> Tensor:
    """(3, N) Lab with the chroma of its `outside` (N,) pixels lowered into sRGB, by bisection to 1/1024 of it."""
    where = outside.nonzero()[:, 0]
    L, ab = flat[:1, where], flat[1:, where]
    low, high = torch.zeros_like(L), torch.ones_like(L)
    for _ in range(10):
        middle = (low + high) / 2
        bad = _outside(lab_to_linear(torch.cat([L, ab * middle])[..., None])[..., 0])
        low, high = torch.where(bad, low, middle), torch.where(bad, middle, high)
    flat = flat.clone()
    flat[1:, where] = ab * low
    return flat


def lightness(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> only L (B, 1, H, W) in [-1, 1]: a third of the work of `split`, for full-size photos."""
    y = _luminance(rgb)
    f = torch.where(y > _DELTA**3, y ** (1 / 3), y / (3 * _DELTA**2) + 4 / 29)
    return (116 * f - 16) / 50 - 1


def _luminance(rgb: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 -> Y / Yn (..., 1, H, W)."""
    r, g, b = srgb_to_linear(rgb).unbind(-3)
    wr, wg, wb = _RGB_TO_WHITE_XYZ[1].tolist()
    return (wr * r + wg * g + wb * b).unsqueeze(-3)


def split(rgb: Tensor, ab_mean: Tensor, ab_std: Tensor) -> tuple[Tensor, Tensor]:
    """A photo as the network sees it.

    rgb: (B, 3, H, W) uint8 or float in [0, 1]; ab_mean, ab_std: (2,) in Lab units.
    Returns L (B, 1, H, W) in [-1, 1] and ab (B, 2, H, W), about unit variance.
    """
    lab = rgb_to_lab(rgb)
    return lab[:, :1] / 50 - 1, (lab[:, 1:] - _channels(ab_mean)) / _channels(ab_std)


def join(L: Tensor, ab: Tensor, ab_mean: Tensor, ab_std: Tensor) -> Tensor:
    """The inverse of `split`: network range -> Lab (B, 3, H, W).

    ab is (B, 2, H, W), or (B, 3, H, W) from a model that restores lightness: first a change of L, then ab.
    """
    L, ab = L.float(), ab.float()
    if ab.shape[1] == 3:
        L, ab = (L + ab[:, :1]).clamp(-1, 1), ab[:, 1:]
    return torch.cat([(L + 1) * 50, ab * _channels(ab_std) + _channels(ab_mean)], dim=1)


def level(L: Tensor) -> Tensor:
    """L in [-1, 1] -> Lab units, 0 to 100."""
    return (L + 1) * 50


def to_lab_units(ab: Tensor, ab_mean: Tensor, ab_std: Tensor) -> Tensor:
    """ab (B, 2, H, W) in the network's range -> Lab units."""
    return ab * _channels(ab_std) + _channels(ab_mean)


def to_network_range(ab: Tensor, ab_mean: Tensor, ab_std: Tensor) -> Tensor:
    """ab (B, 2, H, W) in Lab units -> the network's range."""
    return (ab - _channels(ab_mean)) / _channels(ab_std)


def saturate(ab: Tensor, ab_mean: Tensor, ab_std: Tensor, factor: float | Tensor) -> Tensor:
    """ab (B, 2, H, W) in the network's range, its distance from gray times `factor`, a number or (B, 1, H, W)."""
    gray = -_channels(ab_mean) / _channels(ab_std)
    return gray + factor * (ab - gray)


def warm(ab: Tensor, ab_std: Tensor, warmth: float) -> Tensor:
    """ab (B, 2, H, W) in the network's range, shifted by `warmth` Lab units towards yellow; below 0 towards blue."""
    return ab + _channels(torch.tensor([0.0, warmth]) / ab_std)


def scaled(lab: Tensor) -> Tensor:
    """Lab (..., 3, H, W) -> L / 100 and ab / 110: channels of the same order of magnitude, for losses."""
    return lab.float() / torch.tensor([100.0, 110.0, 110.0], device=lab.device)[:, None, None]


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]  # (2,) -> (2, 1, 1)


def to_uint8(rgb: Tensor) -> Tensor:
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def to_uint16(rgb: Tensor) -> np.ndarray:
    """(..., 3, H, W) sRGB -> (..., H, W, 3) uint16; an array, because torch hardly supports uint16."""
    return channels_last((rgb.clamp(0, 1) * 65535).round().to(torch.int32)).astype(np.uint16)


def gray(rgb: Tensor) -> Tensor:
    """The photo without its chroma, as uint8 RGB: the input of a colorizer, and the baseline that it must beat."""
    gray_byte = to_uint8(linear_to_srgb(_luminance(rgb)))
    return torch.cat([gray_byte] * 3, dim=-3)


def gray_level(L: Tensor) -> Tensor:
    """L (B, 1, H, W) in [-1, 1] -> the sRGB value of gray with that lightness, (B, 1, H, W) in [0, 1]."""
    f = ((L.float() + 1) * 50 + 16) / 116
    return linear_to_srgb(torch.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29)))


def without_chroma(L: Tensor) -> Tensor:
    """L (B, 1, H, W) in [-1, 1] -> the gray picture with that lightness, (B, 3, H, W) uint8."""
    nothing = torch.zeros_like(L)
    return show(torch.cat([(L.float() + 1) * 50, nothing, nothing], dim=1))[:, 1:2].repeat(1, 3, 1, 1)


def channels_first(picture: np.ndarray) -> Tensor:
    """(..., H, W, C) uint8 array -> (..., C, H, W) tensor."""
    return torch.from_numpy(np.require(picture, requirements=["C", "W"])).movedim(-1, -3)


def channels_last(picture: Tensor) -> np.ndarray:
    """(..., C, H, W) tensor -> (..., H, W, C) array."""
    return picture.movedim(-3, -1).contiguous().cpu().numpy()
