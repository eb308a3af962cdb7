"""Strokes that paint the colours of one answer into another, with a soft edge."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

_Place = Annotated[float, Field(gt=-1e6, lt=1e6)]


class Stroke(BaseModel):
    """A brush stroke along points that paints in the answer of a seed. Radius and points are in pixels of the photo.

    As JSON: `{"seed": 2, "radius": 40, "points": [[10, 20], [80, 25]]}`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(ge=0, lt=2**63)
    radius: float = Field(gt=0, lt=1e6)
    points: tuple[tuple[_Place, _Place], ...] = Field(min_length=1, max_length=400)  # (x, y); may lie outside the photo


Strokes = Annotated[tuple[Stroke, ...], Field(max_length=100)]


def coverage(stroke: Stroke, photo: tuple[int, int], grid: Sequence[int]) -> np.ndarray:
    """(h, w) float32 in [0, 1]: how much a stroke over a photo (H, W) covers each cell of a grid (h, w).

    It is 1 within half the radius and falls smoothly to 0 at the radius. static/brush.js computes the same.
    """
    (height, width), (h, w) = photo, grid
    y = ((np.arange(h) + 0.5) * height / h)[:, None]  # (h, 1)
    x = ((np.arange(w) + 0.5) * width / w)[None]  # (1, w)
    nearest = np.full((h, w), np.inf)
    for (x0, y0), (x1, y1) in zip(stroke.points, stroke.points[1:] or stroke.points, strict=False):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * dx, y - y0 - along * dy))
    inside = np.clip(2 - 2 * nearest / stroke.radius, 0, 1)
    return (inside * inside * (3 - 2 * inside)).astype(np.float32)
