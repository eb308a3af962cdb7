"""Transfers the colours of an edited copy to the untouched lightness of the original.

A diffusion editor or a painter returns a copy of another size, a little shifted and with changed details. Only its
chroma is used: it is aligned (phase correlation of gradients, then an affine refinement) and enlarged to full size
along the edges of the original's L.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color
from Project7.errors import ProjectError
from Project7.painting import full_lightness, paint, shrink
from Project7.photo import Photo

_SIDE = 384  # long side in pixels at which the copies are compared and chroma is taken
_STEPS = 40  # steps of the refinement
_LEAST = 0.25  # correlation of the edges below which the copy shows another picture
_STRETCH = 1.15  # largest ratio between the aspect ratios of the two


def transfer(original: Photo, edited: Photo) -> np.ndarray:
    """(H, W, 3) uint8: the original's lightness in the edited copy's colours.

    Raises ProjectError if the two do not show the same picture.
    """
    L = full_lightness(original.rgb)
    height, width = L.shape[-2:]
    copy_height, copy_width = edited.rgb.shape[:2]
    stretch = (width / height) / (copy_width / copy_height)
    if max(stretch, 1 / stretch) > _STRETCH:
        raise ProjectError(
            f"the edited copy has {copy_width} x {copy_height} pixels and the original {width} x {height}: the shapes "
            "differ too much; crop the copy to the same part."
        )
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = shrink(L, size)
    copy = F.interpolate(_as_float(edited), size, mode="bilinear", antialias=True)
    L_copy, ab = color.split(copy, torch.zeros(2), torch.ones(2))
    theta, alike = align(small, L_copy)
    if alike < _LEAST:
        raise ProjectError(
            f"the edited copy does not show what the original shows (their edges agree by {alike:.2f}, and must by at "
            f"least {_LEAST:g}); give the copy that was made from it."
        )
    return paint(L, small, warp(ab, theta), torch.zeros(2), torch.ones(2))


def _as_float(photo: Photo) -> Tensor:
    return color.channels_first(photo.rgb)[None].float() / 255


def align(L: Tensor, other: Tensor) -> tuple[Tensor, float]:
    """The affine map (2, 3) for `warp` from L (1, 1, h, w) to `other` of the same size, and the correlation of their
    edges after it, -1 to 1."""
    from skimage.registration import phase_cross_correlation

    h, w = L.shape[-2:]
    first, second = edges(L), edges(other)
    theta = torch.eye(2, 3)
    window = np.outer(np.hanning(h), np.hanning(w))
    shift, *_ = phase_cross_correlation(first[0, 0].numpy() * window, second[0, 0].numpy() * window, upsample_factor=4)
    moved = torch.eye(2, 3)
    moved[:, 2] = torch.tensor([-2 * shift[1] / w, -2 * shift[0] / h])
    if agreement(first, second, moved) > agreement(first, second, theta):
        theta = moved
    return refine(first, second, theta)


def refine(first: Tensor, second: Tensor, theta: Tensor) -> tuple[Tensor, float]:
    """Gradient ascent of the agreement, from coarse to fine (like Evangelidis & Psarakis 2008, ECC)."""
    best, most = theta, float(agreement(first, second, theta))
    for blur in (9, 3):
        a, b = (F.avg_pool2d(x, blur, stride=1, padding=blur // 2, count_include_pad=False) for x in (first, second))
        free = best.clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.004 if blur > 3 else 0.001)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            (-agreement(a, b, free)).backward()
            optimizer.step()
        found = free.detach()
        if (now := float(agreement(first, second, found))) > most:
            best, most = found, now
    return best, most


def agreement(first: Tensor, second: Tensor, theta: Tensor) -> Tensor:
    """The correlation of two edge maps (1, 1, h, w), the second one warped."""
    a, b = first - first.mean(), warp(second, theta)
    b = b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-8)


def warp(picture: Tensor, theta: Tensor) -> Tensor:
    """Samples a picture (1, C, h, w) through an affine map (2, 3) of coordinates in [-1, 1]; its border is extended."""
    grid = F.affine_grid(theta[None], list(picture.shape), align_corners=False)
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode="border", align_corners=False)


def edges(L: Tensor) -> Tensor:
    """(1, 1, h, w): the magnitude of the gradient of L, normalised by the local contrast."""
    x = F.pad(L, (1, 1, 1, 1), mode="replicate")
    steep = ((x[..., 1:-1, 2:] - x[..., 1:-1, :-2]).square() + (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]).square()).sqrt()
    side = 2 * (min(L.shape[-2:]) // 8) + 1
    around = F.avg_pool2d(steep, side, stride=1, padding=side // 2, count_include_pad=False)
    return steep / (around + 0.02 / math.sqrt(side))
