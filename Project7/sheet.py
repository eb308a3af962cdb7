"""Pictures side by side on one sheet."""

from collections.abc import Sequence

import numpy as np

from Project7.errors import ProjectError


def side_by_side(pictures: Sequence[np.ndarray], *, gap: int = 4) -> np.ndarray:
    """Pictures (H, W_i, 3) uint8 of one height in a row, with white gaps -> (H, W, 3) uint8."""
    if not pictures or len({picture.shape[0] for picture in pictures}) > 1:
        heights = [picture.shape[0] for picture in pictures]
        raise ProjectError(f"pictures of one height go side by side, not of heights {heights}.")
    white = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (white, picture)][1:]
    return np.concatenate(row, axis=1)


def sheet(columns: list[np.ndarray], *, smallest: int = 128) -> np.ndarray:
    """Columns of pictures (K, H, W, 3) uint8, all of one size -> one sheet (H', W', 3) with a row per photo. Pictures
    narrower than `smallest` pixels are enlarged by a whole factor."""
    scale = max(1, smallest // columns[0].shape[1])
    rows = [
        side_by_side([np.kron(p, np.ones((scale, scale, 1), np.uint8)) for p in row])
        for row in zip(*columns, strict=True)
    ]
    return np.concatenate(rows)
