"""Pictures side by side on one sheet, with their names above them."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from Project7.errors import ProjectError

_LETTERS = 14  # pixels


def side_by_side(pictures: Sequence[np.ndarray], *, gap: int = 4) -> np.ndarray:
    """Pictures (H, W_i, 3) uint8 of the same height in a row, with white gaps -> (H, W, 3) uint8."""
    if not pictures or len({picture.shape[0] for picture in pictures}) > 1:
        heights = [picture.shape[0] for picture in pictures]
        raise ProjectError(f"pictures side by side must have the same height, not the heights {heights}.")
    white = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    row = [part for picture in pictures for part in (white, picture)][1:]
    return np.concatenate(row, axis=1)


def sheet(columns: list[np.ndarray], *, smallest: int = 128, titles: Sequence[str] = ()) -> np.ndarray:
    """Columns of pictures (K, H, W, 3) uint8, all of the same size -> one sheet (H', W', 3) with one row per photo.
    Pictures narrower than `smallest` pixels are enlarged by a whole factor. titles: those of the columns."""
    scale = max(1, smallest // columns[0].shape[1])
    rows = [
        side_by_side([np.kron(p, np.ones((scale, scale, 1), np.uint8)) for p in row])
        for row in zip(*columns, strict=True)
    ]
    width = columns[0].shape[2] * scale
    heading = [side_by_side([title(text, width) for text in titles])] if titles else []
    return np.concatenate([*heading, *rows])


def contact_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], *, side: int) -> np.ndarray:
    """Pictures (H, W, 3) of the same size, uint8 or uint16, in rows of at most four, each with its title above it. They
    are reduced so that their long sides have at most `side` pixels."""
    small = []
    for picture in pictures:
        image = Image.fromarray((picture >> 8).astype(np.uint8) if picture.dtype == np.uint16 else picture)
        image.thumbnail((side, side))
        small.append(np.asarray(image))
    titled = [np.concatenate([title(text, p.shape[1]), p]) for p, text in zip(small, titles, strict=True)]
    across = min(4, math.ceil(len(titled) ** 0.5))
    blank = np.full_like(titled[0], 255)
    titled += [blank] * (-len(titled) % across)
    return np.concatenate([side_by_side(titled[n : n + across]) for n in range(0, len(titled), across)])


def title(text: str, width: int) -> np.ndarray:
    """(h, width, 3) uint8: black letters in the middle of a white strip; what does not fit is cut off."""
    image = Image.new("RGB", (width, _LETTERS + 6), "white")
    letters = ImageFont.load_default(_LETTERS)
    while len(text) > 1 and letters.getlength(text) > width:
        text = text[:-1]
    ImageDraw.Draw(image).text((width / 2, 2), text, fill="black", font=letters, anchor="ma")
    return np.asarray(image)
