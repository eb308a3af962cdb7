"""A reference photo: its colours become hints, by what a network sees in both photos.

A place of the photo gets the colour of the place in the reference whose features are most alike, where each is the
other's best match (as in He et al. 2018, Deep Exemplar-based Colorization, without its training). What comes out are
ordinary hints, which a person may move or remove.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color
from Project7.encoder import SHIPPED, Encoder
from Project7.hints import Hint, Spot
from Project7.opened import OpenPhoto, as_hex
from Project7.painting import full_lightness
from Project7.photo import Photo

_SIZE = 256  # short side of what the encoder is shown
_MOST = 40  # hints
_LIKELIHOOD = 0.35  # cosine below which two places are not alike
_APART = 2  # cells between two hints
_L_WEIGHT = 0.6  # of the local lightness beside the features


def hints_from(opened: OpenPhoto, reference: Photo) -> list[Hint]:
    """20 to 40 hints as a rule, fewer where little is alike: x, y in pixels of the open photo, and a colour."""
    encoder = Encoder(SHIPPED, _SIZE).to(opened.colorizer.device)
    mine, theirs = (
        features(encoder, L.to(opened.colorizer.device)) for L in (opened.seen, full_lightness(reference.rgb))
    )
    a, b = mine.flatten(1), theirs.flatten(1)  # (C, N), (C, M)
    alike = a.T @ b  # (N, M) cosines
    best, back = alike.argmax(dim=1), alike.argmax(dim=0)
    grid = mine.shape[-2:]
    mutual = distance(back[best], torch.arange(len(best)), grid[1]) <= 1.5  # or a neighbour of it
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
        hints.append(hint(opened, (row + 0.5) / grid[0], (column + 0.5) / grid[1], chroma.flatten(1)[:, best[place]]))
    return hints


def features(encoder: Any, L: Tensor) -> Tensor:
    """(C, h, w) of unit length, on the grid of stride 8: what the three maps see, and how light it is."""
    with torch.no_grad():
        maps = [m.float().cpu() for m in encoder(encoder.view(L))]
    size = maps[0].shape[-2:]
    level = F.adaptive_avg_pool2d(L.cpu(), size)
    parts = [F.interpolate(m - m.mean(dim=(2, 3), keepdim=True), size, mode="bilinear") for m in maps]
    parts = [F.normalize(part, dim=1) for part in parts]
    light = torch.cat([level, (1 - level.square()).clamp(min=0).sqrt()], dim=1)  # of unit length as well
    return F.normalize(torch.cat([*parts, _L_WEIGHT * light], dim=1), dim=1)[0]


def distance(places: Tensor, others: Tensor, width: int) -> Tensor:
    """Between places of a grid, in cells."""
    rows, columns = places // width - others // width, places % width - others % width
    return torch.maximum(rows.abs(), columns.abs()).float()


def reference_chroma(reference: Photo, size: torch.Size) -> Tensor:
    """(2, h, w) the mean ab of each cell, in Lab units."""
    height, width = size
    rgb = F.adaptive_avg_pool2d(color.channels_first(reference.rgb)[None].float() / 255, (height, width))
    return color.rgb_to_lab(rgb)[0, 1:]


def hint(opened: OpenPhoto, y: float, x: float, ab: Tensor) -> Hint:
    """At a place in [0, 1), with the lightness that is there."""
    h, w = opened.small.shape[-2:]
    spot = Spot(min(h - 1, int(y * h)), min(w - 1, int(x * w)), (0.0, 0.0))
    px, py = opened.pixel(spot)
    level = float(color.level(opened.small[0, 0, spot.row, spot.column]))
    return px, py, as_hex(level, ab.tolist())
