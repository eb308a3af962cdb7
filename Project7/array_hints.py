"""What colour hints say: where their surfaces end, how likely they were, and how much they tell of the whole photo.

Also hints.py for NumPy arrays, without torch; a test compares the two.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFilter

from Project7 import array_color
from Project7.array_picture import box
from Project7.array_sampler import softmax
from Project7.errors import UsageError

REACH = 0.33  # of the short side: how far a hint reaches on a flat surface
EDGE = 20.0  # units of L: crossing this much contrast weakens a hint as much as its whole reach
GRAIN = 5  # pixels: what a median over a square of this side takes away is texture, unless it is a strong line
TEXTURE, LINE = 2.0, 8.0  # units of L between neighbours that do not count, without the grain and with it
STEEPNESS = 6  # a hint is nearly whole over its reach, and then ends as exp(-cost^6)
LIKE = 15.0  # Lab units of ab: colours nearer than this count as the hinted one
EXPECTED = 0.5  # probability from which a hinted colour may change the whole answer
SURPRISING = 0.05  # probability below which a hinted colour speaks against the others, as something of its own
AROUND = 0.3  # of the longer side, and
SHADE = 30.0  # units of L: how far the error that a hint shows is shared by other places, and
COMMON = 0.3  # how much of it by the whole photo, and
DOUBT = 0.3  # how much of it is its own, all as variances relative to what nearby places share

Hint = tuple[float, float, str]  # x and y in pixels of the photo, and a colour: "#rrggbb" or a CSS name


class Spot(NamedTuple):
    """A hint in a working picture."""

    row: int
    column: int
    ab: tuple[float, float]  # Lab units, a colour that sRGB has at the lightness there


class Place(NamedTuple):
    """A hint in a working picture, before its colour is fitted to the lightness there."""

    row: int
    column: int
    rgb: np.ndarray  # (3,) uint8


def checked(hint: Any) -> Hint:
    """A hint with plain numbers. Raises UsageError if it is not a hint."""
    match hint:
        case (int() | float() | np.number() as x, int() | float() | np.number() as y, str(name)):
            return float(x), float(y), name
    raise UsageError(f"{hint!r} is not a hint; write (x, y, colour), such as (120, 80, '#2a5caa').")


def places(hints: Sequence[Hint], photo: tuple[int, int], size: tuple[int, ...]) -> list[Place]:
    """Hints in pixels of a photo (H, W) -> their places in its working picture (h, w).

    If two hints share a pixel, the last counts. Raises UsageError if a hint is outside the photo, or its colour is not
    one.
    """
    found = {}
    for x, y, name in map(checked, hints):
        if not (0 <= x < photo[1] and 0 <= y < photo[0]):
            raise UsageError(f"The hint at ({x:g}, {y:g}) lies outside the photo of {photo[1]} x {photo[0]} pixels.")
        try:
            rgb = np.array(ImageColor.getrgb(name)[:3], dtype=np.uint8)
        except ValueError:
            raise UsageError(f"The hint {name!r} is not a colour; write it as #rrggbb.") from None
        row, column = int(y * size[0] / photo[0]), int(x * size[1] / photo[1])
        found[row, column] = Place(row, column, rgb)
    return list(found.values())


def find_spots(hints: Sequence[Hint], photo: tuple[int, int], L: np.ndarray) -> list[Spot]:
    """Hints in pixels of a photo (H, W) -> spots of its working picture L (h, w). Raises as `places` does."""
    spots = []
    for row, column, rgb in places(hints, photo, L.shape):
        lab = array_color.rgb_to_lab(rgb[None])  # (3, 1)
        lab[0] = array_color.level(L[row, column])
        a, b = array_color.into_gamut(lab)[1:, 0].tolist()
        spots.append(Spot(row, column, (a, b)))
    return spots


def hint_maps(
    spots: Sequence[Spot], size: tuple[int, int], ab_mean: np.ndarray, ab_std: np.ndarray, scale: int
) -> np.ndarray:
    """Spots as the network's input: (3, h, w) for cells of scale x scale pixels, ab in its range and 1 where a hint is.
    size: (H, W) of the working picture. Several hints in a cell are averaged."""
    maps = np.zeros((3, *(math.ceil(side / scale) for side in size)), dtype=np.float32)
    for spot in spots:
        ab = (np.array(spot.ab, dtype=np.float32) - ab_mean) / ab_std
        maps[:, spot.row // scale, spot.column // scale] += [*ab, 1]
    told = maps[2] > 0
    maps[:, told] /= maps[2, told]
    return maps


def hold(ab: np.ndarray, L: np.ndarray, spots: Sequence[Spot], near: Sequence[np.ndarray]) -> np.ndarray:
    """An answer ab (2, h, w) in Lab units, with the hinted colours at the spots and on their surfaces, as in
    hints.hold. near: `nearness` of each spot, (h, w)."""
    nearest = np.stack(near)  # (K, h, w) in (0, 1], 1 at the spot
    weights = nearest / (np.sqrt(-np.log(nearest)) + 1e-6)  # by the inverse of a power of the cost
    shares = weights / weights.sum(axis=0) * nearest.max(axis=0)
    told = np.array([spot.ab for spot in spots])  # (K, 2)
    return ab * (1 - shares.sum(axis=0)) + np.einsum("khw,kc->chw", shares, told).astype(np.float32)


def likelihoods(spots: Sequence[Spot], logits: np.ndarray, colours: np.ndarray, size: tuple[int, ...]) -> list[float]:
    """How likely each hinted colour was before it was given, in [0, 1]: with the colours that look like it.

    logits: (Q, h', w') over the colours (Q, 2) in Lab units, without hints. size: (h, w) of the working picture.
    """
    (height, width), (rows, columns) = size, logits.shape[-2:]
    likely = []
    for spot in spots:
        shares = softmax(logits[:, spot.row * rows // height, spot.column * columns // width])
        likely.append(float(shares[np.linalg.norm(colours - np.array(spot.ab), axis=1) < LIKE].sum()))
    return likely


def trust(likely: Sequence[float]) -> float:
    """In [0, 1): how much several hints, taken together, say about the rest of the photo. Each expected hint, after the
    first, halves the doubt; a surprising one, which is about its own thing, weighs against one. likely: see
    `likelihoods`."""
    shares = np.maximum(likely, 1e-9)
    evidence = (np.log(shares / SURPRISING) / math.log(EXPECTED / SURPRISING)).clip(-1, 1).sum()  # each -1 to 1
    return float(1 - 0.5 ** max(0.0, evidence - 1))


def influence(near: Sequence[np.ndarray], likely: Sequence[float]) -> np.ndarray:
    """(h, w) in [0, 1]: the share of a model's changes under hints that is used: 1 at the spots, elsewhere as far as
    the hinted colours were likely before, or as far as many of them agree (`trust`).

    near: `nearness` of each spot, (h, w). likely: `likelihoods` of the hinted colours.
    """
    nearest = np.stack(near).max(axis=0)
    alone = min(float(np.mean(likely)) / EXPECTED, 1.0)
    everywhere = alone + (1 - alone) * trust(likely)
    return (everywhere + (1 - everywhere) * nearest).astype(np.float32)


def corrected(ab: np.ndarray, L: np.ndarray, spots: Sequence[Spot], share: float) -> np.ndarray:
    """An answer ab (2, h, w) in Lab units, without `share` in [0, 1] of what its errors at the spots say about those of
    places that lie near or are alike in L (h, w), and of the whole photo: their mean in a Gaussian process (Rasmussen &
    Williams 2006, eq. 2.25)."""
    if not (share and spots):
        return ab
    rows, columns = [spot.row for spot in spots], [spot.column for spot in spots]
    places = np.indices(L.shape) / (AROUND * max(L.shape))
    points = np.stack([*places, array_color.level(L) / SHADE], axis=-1).astype(np.float32)  # (h, w, 3)
    seen = points[rows, columns]  # (K, 3)
    errors = np.array([spot.ab for spot in spots]) - ab[:, rows, columns].T  # (K, 2)

    def alike(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return COMMON + np.exp(-np.square(p - q).sum(axis=-1) / 2)

    between = alike(seen[:, None], seen) + DOUBT * np.eye(len(seen))  # (K, K)
    weights = share * np.linalg.solve(between, errors).astype(np.float32)  # (K, 2)
    return sum((np.multiply.outer(w, alike(points, p)) for w, p in zip(weights, seen, strict=True)), ab)


def nearness(L: np.ndarray, spots: Sequence[Spot]) -> list[np.ndarray]:
    """For each spot, (h, w) in (0, 1]: how much a place belongs to its surface, by the cheapest path to it over L
    (h, w), as in hints.nearness. A step costs the mean of the costs of its two pixels, times its length (Dijkstra
    1959)."""
    costs = path_costs(L)
    return [closeness(cheapest(costs, spot)) for spot in spots]


def path_costs(L: np.ndarray) -> np.ndarray:
    """What a pixel adds to a path over L (h, w), float64: its length, and the contrast there that is not texture."""
    levels = array_color.level(L).astype(np.float32)
    coarse = np.asarray(Image.fromarray(levels).filter(ImageFilter.MedianFilter(GRAIN)))
    contrast = np.maximum(steepest(box(coarse)) - TEXTURE, steepest(box(levels)) - LINE).clip(min=0)
    return 1 / (REACH * min(L.shape)) + contrast.astype(np.float64) / EDGE


def steepest(levels: np.ndarray) -> np.ndarray:
    """(h, w): the largest difference of each pixel from its four neighbours."""
    found = np.zeros_like(levels)
    down, right = np.abs(np.diff(levels, axis=0)), np.abs(np.diff(levels, axis=1))
    found[1:] = down
    found[:-1] = np.maximum(found[:-1], down)
    found[:, 1:] = np.maximum(found[:, 1:], right)
    found[:, :-1] = np.maximum(found[:, :-1], right)
    return found


def closeness(ways: np.ndarray) -> np.ndarray:
    """Costs of the cheapest paths -> nearness in (0, 1], float32."""
    return np.exp(-(ways**STEEPNESS)).astype(np.float32).clip(min=math.exp(-30))


def cheapest(costs: np.ndarray, spot: Spot) -> np.ndarray:
    """(h, w): the cost of the cheapest path from the spot to each pixel."""
    height, width = costs.shape
    ways, begin = {(spot.row, spot.column): 0.0}, (0.0, spot.row, spot.column)
    cost, heap = costs.tolist(), [begin]
    while heap:
        way, y, x = heapq.heappop(heap)
        if way > ways[y, x]:
            continue
        for dy, dx, length in _AROUND:
            to = y + dy, x + dx
            if 0 <= to[0] < height and 0 <= to[1] < width:
                there = way + length * (cost[y][x] + cost[to[0]][to[1]]) / 2
                if there < ways.get(to, math.inf):
                    ways[to] = there
                    heapq.heappush(heap, (there, *to))
    found = np.empty_like(costs)
    for place, way in ways.items():
        found[place] = way
    return found


_AROUND = [(dy, dx, math.hypot(dy, dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
