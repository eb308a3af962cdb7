"""Carries the colours or the hints of a reference photo over to other photos, by features that a network sees in both.

A place of the photo gets the colour of the place in the reference with the most similar features, if each is the
other's best match (as in He et al. 2018, Deep Exemplar-based Colorization, without its training). The results are
ordinary hints, which a person may move or remove.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color
from Project7.encoder import SHIPPED, Encoder
from Project7.hints import Hint, Spot, find_spots
from Project7.opened import OpenPhoto, as_hex
from Project7.painting import full_lightness
from Project7.photo import Photo

_SIZE = 256  # short side in pixels at which the encoder sees a photo
_MOST = 40  # largest number of hints
_LIKELIHOOD = 0.35  # cosine below which two places are not alike
_APART = 2  # cells between two hints
_KIN = 0.55  # cosine from which a hint is carried over: unrelated photos stay below 0.5, those of a scene above 0.6
_SAME = 0.6  # cosine from which two places of one photo show the same thing
_L_WEIGHT = 0.6  # weight of the local lightness relative to the features


def hints_from(opened: OpenPhoto, reference: Photo) -> list[Hint]:
    """Hints for the open photo from the colours of the reference: usually 20 to 40, fewer if little is alike. Each is
    (x, y, colour), in pixels of the open photo."""
    mine, theirs = (features(L, opened.colorizer.device) for L in (opened.seen, full_lightness(reference.rgb)))
    a, b = mine.flatten(1), theirs.flatten(1)  # (C, N), (C, M)
    alike = a.T @ b  # (N, M) cosines
    best, back = alike.argmax(dim=1), alike.argmax(dim=0)
    grid = mine.shape[-2:]
    mutual = distance(back[best], torch.arange(len(best)), grid[1]) <= 1.5  # the place itself or a neighbour
    score = alike.amax(dim=1) * mutual
    chroma = reference_chroma(reference, theirs.shape[-2:])  # (2, h', w')
    hints: list[Hint] = []
    taken = torch.zeros(grid, dtype=torch.bool)
    for place in score.argsort(descending=True).tolist():
        row, column = divmod(place, grid[1])
        if score[place] < _LIKELIHOOD or len(hints) == _MOST:
            break
        if taken[row, column]:
            continue
        near = (slice(max(0, row - _APART), row + _APART + 1), slice(max(0, column - _APART), column + _APART + 1))
        taken[near] = True
        spot = cell(opened, place, grid)
        level = float(color.level(opened.small[0, 0, spot.row, spot.column]))
        colour = as_hex(level, chroma.flatten(1)[:, best[place]].tolist())
        hints.append((*opened.pixel(spot), colour))
    return hints


class Hinted:
    """A photo whose hints are carried over to other photos."""

    def __init__(self, photo: Photo, hints: Sequence[Hint]):
        """hints: x and y in pixels of this photo. Raises UsageError if one lies outside it or its colour is unknown."""
        find_spots(hints, photo.rgb.shape[:2], torch.zeros(1, 1, 1, 1))
        self.photo, self.hints = photo, tuple(hints)
        self._features: Tensor | None = None

    def hints_for(self, opened: OpenPhoto) -> list[Hint]:
        """Each hint at the place where the open photo is most like the hinted place. A hint is left out if nothing is
        alike, or if that place is more like something else in this photo."""
        device = opened.colorizer.device
        if self._features is None:
            self._features = features(full_lightness(self.photo.rgb), device)
        mine, theirs = features(opened.seen, device), self._features
        h, w = theirs.shape[-2:]
        height, width = self.photo.rgb.shape[:2]
        cells = [int(y * h / height) * w + int(x * w / width) for x, y, _ in self.hints]
        hinted = theirs.flatten(1)[:, cells]  # (C, K)
        alike, best = (mine.flatten(1).T @ hinted).max(dim=0)  # (K,)
        back = (theirs.flatten(1).T @ mine.flatten(1)[:, best]).argmax(dim=0)  # (K,) the best match of each in turn
        same = (theirs.flatten(1)[:, back] * hinted).sum(dim=0)
        found: dict[int, tuple[float, str]] = {}  # cell of the open photo -> the hint that is most alike
        for place, sure, kin, (_, _, colour) in zip(best.tolist(), alike, same, self.hints, strict=True):
            if sure >= _KIN and kin >= _SAME and sure > found.get(place, (0.0, ""))[0]:
                found[place] = float(sure), colour
        grid = mine.shape[-2:]
        return [(*opened.pixel(cell(opened, place, grid)), colour) for place, (_, colour) in found.items()]


@functools.lru_cache(maxsize=1)
def encoder_on(device: torch.device) -> Any:
    return Encoder(SHIPPED, _SIZE).to(device)


def features(L: Tensor, device: torch.device) -> Tensor:
    """(C, h, w), of unit length, on the grid of stride 8: the encoder's three maps and the local lightness."""
    encoder = encoder_on(device)
    with torch.no_grad():
        maps = [m.float().cpu() for m in encoder(encoder.view(L.to(device)))]
    size = maps[0].shape[-2:]
    level = F.adaptive_avg_pool2d(L.cpu(), size)
    parts = [F.interpolate(m - m.mean(dim=(2, 3), keepdim=True), size, mode="bilinear") for m in maps]
    parts = [F.normalize(part, dim=1) for part in parts]
    light = torch.cat([level, (1 - level.square()).clamp(min=0).sqrt()], dim=1)  # of unit length as well
    return F.normalize(torch.cat([*parts, _L_WEIGHT * light], dim=1), dim=1)[0]


def distance(places: Tensor, others: Tensor, width: int) -> Tensor:
    """The distance between places of a grid, in cells."""
    rows, columns = places // width - others // width, places % width - others % width
    return torch.maximum(rows.abs(), columns.abs()).float()


def reference_chroma(reference: Photo, size: torch.Size) -> Tensor:
    """(2, h, w): the mean ab of each cell, in Lab units."""
    height, width = size
    rgb = F.adaptive_avg_pool2d(color.channels_first(reference.rgb)[None].float() / 255, (height, width))
    return color.rgb_to_lab(rgb)[0, 1:]


def cell(opened: OpenPhoto, place: int, grid: Sequence[int]) -> Spot:
    """The spot of the working picture in the middle of a cell. grid: (h, w)."""
    row, column = divmod(place, grid[1])
    h, w = opened.small.shape[-2:]
    return Spot(int((row + 0.5) * h / grid[0]), int((column + 0.5) * w / grid[1]), (0.0, 0.0))
