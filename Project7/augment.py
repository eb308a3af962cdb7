"""Augmentation of training photos on the device, as a function of (seed, step, sample): random zoom and ageing.

Zoom acts on all three channels. Ageing acts on the lightness alone: the network sees an old photo and learns the
colours of the undamaged one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7.batch import BatchRandom

_STRETCH = 4 / 3  # largest aspect ratio of a crop, so that shapes other than squares are seen too
_BLUR = 1.2  # pixels: largest standard deviation of the Gaussian
_GRAIN = 0.12  # largest standard deviation, in units of L in [-1, 1]
_WORST_QUALITY, _BEST_QUALITY = 0.2, 0.8  # JPEG quality, where 1 is libjpeg's 100
_LUMINANCE = (  # quantisation table of JPEG's Annex K.1, for quality 50
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


def zoom(rgb: Tensor, smallest: float, random: BatchRandom) -> Tensor:
    """Random crops of photos, enlarged to the photos' size: (B, 3, H, W) uint8 -> the same shape and type.

    The area of a crop is between `smallest` squared and 1, as a share of the photo; its aspect ratio is at most 4 / 3
    (as in Szegedy et al. 2015, Going Deeper with Convolutions, section 6).
    """
    area = smallest**2 + (1 - smallest**2) * random.uniform("zoom")
    stretch = (2 * random.uniform("stretch") - 1) * math.log(_STRETCH) / 2
    height, width = ((area.sqrt() * factor.exp()).clamp(max=1) for factor in (stretch, -stretch))
    place = random.uniform("zoom place", (2,))
    theta = torch.zeros(len(rgb), 2, 3, device=rgb.device)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = (1 - width) * (2 * place[:, 0] - 1), (1 - height) * (2 * place[:, 1] - 1)
    grid = F.affine_grid(theta, list(rgb.shape), align_corners=False)
    return F.grid_sample(rgb.float(), grid, padding_mode="border", align_corners=False).round().to(torch.uint8)


def age(L: Tensor, share: float, random: BatchRandom) -> Tensor:
    """Makes a random `share` of the lightness pictures L (B, 1, H, W) in [-1, 1] look old; the others stay unchanged.

    The effects come in the order in which they happen to a photo: blur of the lens, exposure (gamma), faded contrast,
    grain, and JPEG compression of the scan. Each has a random strength and is left out half of the time.
    """
    if not share:
        return L
    dose = random.uniform("age doses", (5,)) * (random.uniform("age kinds", (5,)) < 0.5)  # (B, 5)
    blur, exposure, fading, grain, quality = (part[:, None, None, None] for part in dose.unbind(dim=1))
    aged = blurred(L, _BLUR * blur)
    sign = torch.where(random.uniform("age sign")[:, None, None, None] < 0.5, -1.0, 1.0)
    aged = 2 * ((aged.clamp(-1, 1) + 1) / 2) ** torch.exp(0.7 * sign * exposure) - 1
    level = 1.2 * random.uniform("age level")[:, None, None, None] - 0.6
    aged = (1 - 0.6 * fading) * aged + 0.6 * fading * level
    aged = aged + _GRAIN * grain * random.normal("age grain", tuple(L.shape[1:]))
    compressed = jpeg(aged, _BEST_QUALITY - (_BEST_QUALITY - _WORST_QUALITY) * quality)
    aged = torch.where(quality > 0, compressed, aged).clamp(-1, 1)
    old = (random.uniform("age") < share)[:, None, None, None]
    return torch.where(old, aged, L)


def blurred(L: Tensor, sigma: Tensor) -> Tensor:
    """L (B, 1, H, W) after a Gaussian blur with a sigma (B, 1, 1, 1) per picture, in pixels; 0 is no blur."""
    reach = torch.arange(-3, 4, device=L.device)
    weights = torch.exp(-(reach**2) / (2 * sigma.flatten()[:, None].clamp(min=1e-3) ** 2))  # (B, 7)
    kernel = (weights / weights.sum(dim=1, keepdim=True))[:, None]  # (B, 1, 7)
    x = F.pad(L, (3, 3, 3, 3), mode="replicate").transpose(0, 1)  # (1, B, H + 6, W + 6)
    x = F.conv2d(x, kernel[:, :, :, None], groups=len(L))
    return F.conv2d(x, kernel[:, :, None, :], groups=len(L)).transpose(0, 1)


def jpeg(L: Tensor, quality: Tensor) -> Tensor:
    """A gray picture (B, 1, H, W) in [-1, 1] after JPEG compression; quality: (B, 1, 1, 1) in (0, 1], 1 is the best.

    The discrete cosine transform of 8 x 8 blocks is rounded to multiples of the quantisation table, which is scaled by
    quality as in libjpeg. The other steps of JPEG are lossless.
    """
    basis = dct_matrix(L.device)  # applied to levels minus 128
    table = torch.tensor(_LUMINANCE, dtype=torch.float32, device=L.device)
    scale = torch.where(quality < 0.5, 0.5 / quality, 2 - 2 * quality)[..., None, None]  # (B, 1, 1, 1, 1, 1)
    steps = (table * scale).round().clamp(min=1)
    height, width = L.shape[-2:]
    padded = F.pad(L * 127.5 - 0.5, (0, -width % 8, 0, -height % 8), mode="replicate")
    blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (B, 1, h, w, 8, 8)
    rounded = ((basis @ blocks @ basis.T) / steps).round() * steps
    back = (basis.T @ rounded @ basis).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return ((back + 0.5) / 127.5)[..., :height, :width]


def dct_matrix(device: torch.device | str = "cpu") -> Tensor:
    """The (8, 8) matrix of the orthonormal DCT-II."""
    k, n = torch.arange(8.0)[:, None], torch.arange(8.0)[None]
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] /= 2**0.5
    return matrix.to(device)
