"""The lightness of a photo for the network, and checks of a scan before it is coloured: whether it is in colour
already, whether it has faded, where its white border is."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color
from Project7.array_picture import ENDS, FADED, SIDE, border_of
from Project7.painting import deep_lightness, full_lightness, paint, shrink, without_grain
from Project7.photo import Photo


class Lightness:
    """The lightness of a photo: that of the result (L), and that which the network sees (seen)."""

    def __init__(self, photo: Photo, *, denoise: float = 0.0, levels: str = "off", lightness: Tensor | None = None):
        """levels: "auto" stretches the contrast of both, "network" only that of the network's copy. lightness: L
        (1, 1, H, W) of the photo, if it is known already."""
        self.photo, self.denoise, self.levels = photo, denoise, levels
        self.plain = full_lightness(photo.rgb) if lightness is None else lightness  # (1, 1, H, W)
        self.L = levelled(self.plain, self.border) if levels == "auto" else self.plain
        grainless = without_grain(self.L, denoise)
        self.seen = levelled(grainless, self.border) if levels == "network" else grainless

    @functools.cached_property
    def border(self) -> Tensor | None:
        return white_border(self.plain)

    def border_at(self, size: tuple[int, ...]) -> Tensor:
        """(1, 1, h, w) in [0, 1]: the share of each cell that is white border."""
        if self.border is None:
            return torch.zeros(1, 1, *size)
        return F.interpolate(self.border, size, mode="bilinear", antialias=True)

    def guide(self, small: Tensor) -> Tensor:
        """The lightness of the result at the size of `small` (1, 1, h, w), which the network saw: the guide by which
        chroma is enlarged."""
        if self.levels != "network":
            return small
        return shrink(without_grain(self.L, self.denoise), tuple(small.shape[-2:]))

    def paint(self, small: Tensor, ab: Tensor, ab_mean: Tensor, ab_std: Tensor, *, deep: bool = False) -> np.ndarray:
        """The picture (H, W, 3) with the chroma ab (1, 2, h, w) that was found on `small`: uint8, or uint16 if `deep`
        and the photo has 16 bits."""
        scanned = self.photo.deep if deep else None
        L = self.L
        if scanned is not None:
            fine = deep_lightness(scanned)
            L = stretched(fine, *ends(self.plain, self.border)) if self.levels == "auto" else fine
        return paint(L, self.guide(small), ab, ab_mean, ab_std, deep=scanned is not None)


def ends(L: Tensor, border: Tensor | None = None) -> tuple[float, float]:
    """The lightness of the darkest and the lightest percent of L (1, 1, H, W), its border left out; in [-1, 1]."""
    small = L if max(L.shape[-2:]) <= SIDE else F.interpolate(L, size_of(L), mode="bilinear", antialias=True)
    inside = small if border is None else small[F.interpolate(border, small.shape[-2:]) < 0.5]
    low, high = torch.quantile(inside.flatten(), torch.tensor(ENDS)).tolist()
    return low, high


def faded(L: Tensor, border: Tensor | None = None) -> bool:
    """Whether a photo has so little contrast that it has neither black nor white, like a faded print."""
    low, high = ends(L, border)
    return float(color.level(torch.tensor(high)) - color.level(torch.tensor(low))) < FADED


def levelled(L: Tensor, border: Tensor | None = None) -> Tensor:
    """L (1, 1, H, W) stretched so that its darkest percent is black and its lightest white."""
    return stretched(L, *ends(L, border))


def stretched(L: Tensor, low: float, high: float) -> Tensor:
    return L if high - low < 1e-3 else ((L - low) / (high - low) * 2 - 1).clamp(-1, 1)


def white_border(L: Tensor) -> Tensor | None:
    """(1, 1, h, w) in [0, 1]: where L (1, 1, H, W) is the white border of a print or a page; None if it has none.

    A border is light and plain, and on at least three sides; it consists of everything that is connected with the edge
    and of similar lightness.
    """
    small = L if max(L.shape[-2:]) <= SIDE else F.interpolate(L, size_of(L), mode="bilinear", antialias=True)
    mask = border_of(small[0, 0].numpy())
    return None if mask is None else torch.from_numpy(mask)[None, None]


def size_of(L: Tensor) -> tuple[int, int]:
    """The size at which L (1, 1, H, W) is looked at."""
    scale = min(1.0, SIDE / max(L.shape[-2:]))
    return max(1, round(L.shape[-2] * scale)), max(1, round(L.shape[-1] * scale))
