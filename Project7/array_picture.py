"""painting.py, guided_filter.py, scan.py and candidates.spread for NumPy arrays: between a photo and the small copy of
it that a network sees, without torch. Tests compare them.

Pictures are (..., H, W) float32; L is in [-1, 1].
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from Project7 import array_color
from Project7.array_sampler import ALIKE, ALIKE_L, CHUNK, MIXED, NEAR, STRONGEST_HEADLESS, place_side, softmax
from Project7.photo import Photo

_ROWS = 512 * 1024  # pixels of the full-size photo that are coloured at a time
FADED = 50.0  # Lab units: a photo whose darkest and lightest percent differ by less is faded
ENDS = (0.01, 0.99)  # quantiles of L that become black and white with --levels
SIDE = 512  # pixels of the long side at which a border is looked for
_WHITE = 85.0  # smallest L of a border
_ALIKE = 6.0  # Lab units: largest variation of a border's lightness
_THIN, _WIDE = 0.008, 0.3  # smallest and largest width of a border, as a share of the side


# -- other sizes -----------------------------------------------------------------------------------------------------


class Taps(NamedTuple):
    """The pixels and weights whose weighted sums give a resized line."""

    places: np.ndarray  # (N, K) of the pixels
    weights: np.ndarray  # (N, K) float32


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The cubic kernel of Keys 1981, with slope a at 1."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTERS: dict[str, tuple[float, Any]] = {  # radius, and value at a distance; as in torch
    "bilinear": (1.0, lambda x: np.maximum(1 - np.abs(x), 0.0)),
    "bicubic": (2.0, lambda x: _cubic(x, -0.75)),
    "bicubic antialias": (2.0, lambda x: _cubic(x, -0.5)),
}


@functools.lru_cache(maxsize=64)
def taps(before: int, after: int, kind: str, antialias: bool) -> Taps:
    """The taps that resize a line of `before` pixels to `after`, as torch.nn.functional.interpolate with
    align_corners=False: with `antialias` the filter is stretched over all pixels that become one, and cut off at the
    edge; without it, the pixels at the edge are repeated."""
    reach, function = _FILTERS["bicubic antialias" if antialias and kind == "bicubic" else kind]
    scale = before / after
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(after) + 0.5) * scale - 0.5  # in pixels of the line before
    first = np.floor(centres - reach * stretch).astype(int) + 1
    places = first[:, None] + np.arange(int(np.ceil(2 * reach * stretch)))  # (N, K)
    weights = function((places - centres[:, None]) / stretch)
    inside = (places >= 0) & (places < before)
    weights = weights * inside if antialias else weights
    weights /= weights.sum(axis=1, keepdims=True)
    return Taps(places.clip(0, before - 1), weights.astype(np.float32))


def resize(picture: np.ndarray, size: tuple[int, int], kind: str = "bilinear", *, antialias: bool = True) -> np.ndarray:
    """A picture (..., H, W) resized to (..., h, w)."""
    for axis, after in ((-1, size[1]), (-2, size[0])):
        places, weights = taps(picture.shape[axis], after, kind, antialias)
        made: Any = 0
        for k in range(places.shape[1]):
            weight = weights[:, k] if axis == -1 else weights[:, k, None]
            made = made + np.take(picture, places[:, k], axis=axis) * weight
        picture = made
    return picture


def matrix(after: int, before: int) -> np.ndarray:
    """The (after, before) matrix that enlarges a line of `before` pixels by bicubic interpolation."""
    places, weights = taps(before, after, "bicubic", False)
    made = np.zeros((after, before), dtype=np.float32)
    np.add.at(made, (np.arange(after)[:, None], places), weights)
    return made


def shrink(L: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """L (H, W) at the working size."""
    return L if L.shape == tuple(size) else resize(L, size)


def view(L: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The encoder's view of L (H, W), at `size`."""
    return L if L.shape == tuple(size) else resize(L, size, "bicubic").clip(-1, 1)


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Repeats the last row and column of (..., H, W) until both sides are multiples of `multiple`."""
    down, right = (-side % multiple for side in x.shape[-2:])
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, down), (0, right)], mode="edge")


def cell_means(x: np.ndarray, scale: int) -> np.ndarray:
    """(..., H, W) -> (..., h, w), the means of scale x scale cells; sides are padded to multiples of `scale`."""
    x = pad_to_multiple(x, scale)
    h, w = x.shape[-2] // scale, x.shape[-1] // scale
    return x.reshape(*x.shape[:-2], h, scale, w, scale).mean(axis=(-3, -1))


def cells(x: np.ndarray, side: int) -> np.ndarray:
    """(H, W) whose sides `side` divides -> (side * side, h, w): the pixels of a cell, row by row."""
    h, w = x.shape[0] // side, x.shape[1] // side
    return x.reshape(h, side, w, side).transpose(1, 3, 0, 2).reshape(side * side, h, w)


# -- chroma along the edges of L -------------------------------------------------------------------------------------


def box(x: np.ndarray) -> np.ndarray:
    """Mean over a square of 3 x 3 pixels in (..., H, W), counting only what lies inside the picture."""
    for axis in (-2, -1):
        padded = np.pad(x, [(int(axis % x.ndim == n),) * 2 for n in range(x.ndim)])
        counts = np.pad(np.ones(x.shape[axis], dtype=np.float32), 1)
        sums = sum(np.take(padded, range(k, k + x.shape[axis]), axis=axis) for k in range(3))
        count = counts[:-2] + counts[1:-1] + counts[2:]
        x = sums / (count if axis == -1 else count[:, None])
    return x


def line_coefficients(ab: np.ndarray, L: np.ndarray, *, eps: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """The lines ab = k * L + c around each pixel (He & Sun 2015, eq. 5, 6 and 8). ab: (2, h, w); L: (h, w)."""
    mean_L, mean_ab = box(L), box(ab)
    variance = box(L * L) - mean_L * mean_L
    k = box((box(L * ab) - mean_L * mean_ab) / (variance + eps))
    return k, ab - k * L


def enlarge(ab: np.ndarray, L_small: np.ndarray, L: np.ndarray) -> np.ndarray:
    """ab (2, h, w), which belongs to L_small (h, w), enlarged to the size of L (H, W)."""
    if ab.shape[-2:] == L.shape:
        return ab
    k, c = (resize(x, L.shape, "bicubic", antialias=False) for x in line_coefficients(ab, L_small))
    return k * L + c


def expand(ab: np.ndarray, L: np.ndarray, scale: int) -> np.ndarray:
    """ab (2, h, w) of scale x scale cells -> (2, H, W), along the edges of L (H, W)."""
    if scale == 1:
        return ab
    full = pad_to_multiple(L, scale)
    return enlarge(ab, cell_means(full, scale), full)[..., : L.shape[0], : L.shape[1]]


def spread(ab: np.ndarray, features: np.ndarray, L: np.ndarray, scale: int, share: float) -> np.ndarray:
    """ab (2, h, w) of cells -> (2, H, W), by a share as what looks alike: candidates.spread. features: (C, h, w)."""
    full = pad_to_multiple(L, scale)
    plain = expand(ab, full, scale)
    even = expand(evened(ab, *appearance(features, full, scale)), full, place_side(ab.shape[-2:], scale))
    mixed = plain + share * (even - plain)
    before, after = (float(np.linalg.norm(one, axis=0).mean()) for one in (plain, mixed))
    gain = min(max(before / max(after, 1e-3), 1.0), STRONGEST_HEADLESS)
    return (gain * mixed)[..., : L.shape[0], : L.shape[1]]


def appearance(features: np.ndarray, L: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """What cells and the places in them look like, by features (C, h, w) and L (H, W) in [-1, 1]:
    candidates.appearance."""
    side = place_side(features.shape[-2:], scale)
    seen = features - features.mean(axis=(1, 2), keepdims=True)
    seen = seen / max(ALIKE * np.sqrt(2 * (seen**2).sum(axis=0).mean()), 1e-6)
    light = L - L.mean()
    of_cells, of_places = cell_means(light, scale), cell_means(light, side)
    mixed = np.sqrt(np.maximum(cell_means(light**2, scale) - of_cells**2, 0)) / MIXED
    texture = np.lib.stride_tricks.sliding_window_view(np.pad(mixed, 1, mode="edge"), (3, 3)).min(axis=(2, 3))
    texture = texture.repeat(scale // side, axis=0).repeat(scale // side, axis=1)
    cells = np.concatenate([seen, of_cells[None] / ALIKE_L, mixed[None]])
    return cells, np.concatenate([enlarge(seen, of_cells, of_places), of_places[None] / ALIKE_L, texture[None]])


def evened(ab: np.ndarray, cells: np.ndarray, places: np.ndarray) -> np.ndarray:
    """ab (2, h, w) of cells that look like `cells` (C, h, w) -> (2, H, W), for places (C, H, W) each the mean colour of
    the cells that look like it and lie near: candidates.evened."""
    longest = NEAR * max(cells.shape[-2:])
    here, there = (
        np.concatenate([x, _middles(x.shape[-2:], cells.shape[-2:]) / longest]).reshape(len(x) + 2, -1).T
        for x in (places, cells)
    )
    colours, squares = ab.reshape(2, -1).T, (there**2).sum(axis=1) / 2
    chunks = np.array_split(here, math.ceil(len(here) / CHUNK))
    means = [softmax(part @ there.T - squares) @ colours for part in chunks]
    return np.concatenate(means).T.reshape(2, *places.shape[-2:]).astype(np.float32)


def _middles(size: tuple[int, ...], cells: tuple[int, ...]) -> np.ndarray:
    """(2, H, W): where the middle of each place is, in cells."""
    lines = [(np.arange(n, dtype=np.float32) + 0.5) * (k / n) for n, k in zip(size, cells, strict=True)]
    return np.stack(np.meshgrid(*lines, indexing="ij"))


def paint(L: np.ndarray, L_small: np.ndarray, ab: np.ndarray, *, deep: bool = False) -> np.ndarray:
    """The full-size L (H, W) with the chroma ab (2, h, w) in Lab units, which belongs to L_small -> (H, W, 3) uint8, or
    uint16 if `deep`. If ab has three channels, the first is a change of L."""
    height, width = L.shape
    if height <= ab.shape[-2] and width <= ab.shape[-1]:
        return array_color.rounded(array_color.displayed(_join(L, resize(ab, L.shape))), deep=deep)
    picture = np.empty((height, width, 3), dtype=np.uint16 if deep else np.uint8)
    k, c = line_coefficients(ab, L_small)
    to_rows, to_columns = matrix(height, ab.shape[-2]), matrix(width, ab.shape[-1]).T
    for rows in bands(height, width):
        chroma = (to_rows[rows] @ k @ to_columns) * L[rows] + to_rows[rows] @ c @ to_columns
        picture[rows] = array_color.rounded(array_color.displayed(_join(L[rows], chroma)), deep=deep)
    return picture


def _join(L: np.ndarray, ab: np.ndarray) -> np.ndarray:
    if len(ab) == 3:
        L, ab = (L + ab[0]).clip(-1, 1), ab[1:]
    return np.concatenate([array_color.level(L)[None], ab])


def bands(height: int, width: int) -> list[slice]:
    """The rows of a picture in bands of bounded memory."""
    rows = max(1, _ROWS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


# -- a photo as the network sees it ----------------------------------------------------------------------------------


class ArrayLightness:
    """The lightness of a photo: as the output has it (`L`), and as the network sees it (`seen`)."""

    def __init__(self, photo: Photo, *, levels: str = "off"):
        """levels: "auto" stretches the contrast of both, "network" only that of the network's copy."""
        self.photo, self.levels = photo, levels
        self.plain = np.concatenate([array_color.lightness(photo.rgb[rows]) for rows in bands(*photo.rgb.shape[:2])])
        stretched_L = self.plain if levels == "off" else stretched(self.plain, *ends(self.plain, self.border))
        self.L, self.seen = (stretched_L if levels == "auto" else self.plain), stretched_L

    @functools.cached_property
    def border(self) -> np.ndarray | None:
        return white_border(self.plain)

    def paint(self, small: np.ndarray, ab: np.ndarray, *, deep: bool = False) -> np.ndarray:
        """The picture (H, W, 3) with the chroma ab (2, h, w) that belongs to `small`: uint8, or uint16 for a photo of
        16 bits if `deep`."""
        L, guide = self.L, shrink(self.L, small.shape) if self.levels == "network" else small
        if deep := deep and self.photo.deep is not None:
            L = array_color.lightness_of_gray(self.photo.deep.astype(np.float32) / 65535)
            L = stretched(L, *ends(self.plain, self.border)) if self.levels == "auto" else L
        return paint(L, guide, ab, deep=deep)


def looked_at(L: np.ndarray) -> np.ndarray:
    """L (H, W) at the size at which its border and its contrast are looked for."""
    scale = min(1.0, SIDE / max(L.shape))
    return L if scale == 1 else resize(L, tuple(max(1, round(side * scale)) for side in L.shape))


def ends(L: np.ndarray, border: np.ndarray | None = None) -> tuple[float, float]:
    """The lightness of the darkest and the lightest percent of L (H, W), its border left out; in [-1, 1]."""
    small = looked_at(L)
    low, high = np.quantile(small if border is None else small[border < 0.5], ENDS)
    return float(low), float(high)


def stretched(L: np.ndarray, low: float, high: float) -> np.ndarray:
    return L if high - low < 1e-3 else ((L - low) / (high - low) * 2 - 1).clip(-1, 1).astype(np.float32)


def faded(L: np.ndarray) -> bool:
    """Whether a photo has neither black nor white, like an old print that has lost its ink."""
    low, high = ends(L, white_border(L))
    return bool(np.ptp(array_color.level(np.array([low, high]))) < FADED)


def white_border(L: np.ndarray) -> np.ndarray | None:
    """The mask of a white border of L (H, W), at the size of `looked_at`; see `border_of`."""
    return border_of(looked_at(L))


def border_of(L: np.ndarray) -> np.ndarray | None:
    """(h, w) of 0 and 1: the mask of the white border of a print or a page in L (h, w); None if there is none.

    A border is light and plain on at least three sides; it then covers all pixels of similar lightness that are
    connected with the edge.
    """
    values = array_color.level(L)
    sides = [values, values[::-1], values.T, values.T[::-1]]
    found = [level for side in sides if (level := border_level(side)) is not None]
    if len(found) < 3 or np.ptp(found) > _ALIKE:
        return None
    return at_the_edge(np.abs(values - np.median(found)) < _ALIKE).astype(np.float32)


def border_level(values: np.ndarray) -> float | None:
    """The lightness of a white border along the first row of L (h, w) in Lab units; None if there is none."""
    level = float(np.median(values[0]))
    plain = np.mean(np.abs(values - level) < _ALIKE, axis=1) > 0.98  # (h,)
    width = len(plain) if plain.all() else int(plain.argmin())
    return level if level >= _WHITE and _THIN * len(values) <= width <= _WIDE * len(values) else None


def at_the_edge(mask: np.ndarray) -> np.ndarray:
    """The part of a mask (h, w) that is connected with the edge of the picture, by sides and not by corners."""
    found = np.zeros_like(mask)
    found[[0, -1]], found[:, [0, -1]] = mask[[0, -1]], mask[:, [0, -1]]
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= mask
        if np.array_equal(grown, found):
            return found
        found = grown
