"""Decodes a photo into squares of one size: its centre, or random ones. Imports no torch."""

import hashlib
import os

import numpy as np
from PIL import Image, ImageOps

from Project7.photo import MAX_PIXELS, open_photo, read_small


def decode(content: bytes, name: str, *, size: int, crops: int, seed: int, only: int | None = None) -> np.ndarray:
    """The squares of a photo, (crops, S, S, 3) uint8: the centre square, or `crops` random squares that depend only on
    the seed and the name. only: returns only the square with this index, (1, S, S, 3)."""
    image = read_small(content, 2 * size if crops == 1 else MAX_PIXELS)
    if image is None:
        image = Image.fromarray(open_photo(content).rgb)
    image = ImageOps.exif_transpose(image).convert("RGB")
    boxes = [_centre(image.size)] if crops == 1 else _random_boxes(image.size, size, crops, f"{seed}/{name}")
    wanted = boxes if only is None else boxes[only : only + 1]
    return np.stack([_square(image, box, size) for box in wanted])


def short_side(content: bytes) -> int:
    """The short side of a photo in pixels, without decoding it where that is possible; raises as `decode` does."""
    image = read_small(content, MAX_PIXELS)
    return min(open_photo(content).rgb.shape[:2] if image is None else image.size)


def _centre(size: tuple[int, int]) -> tuple[int, int, int, int]:
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _random_boxes(size: tuple[int, int], smallest: int, crops: int, key: str) -> list[tuple[int, int, int, int]]:
    """Squares with 40 to 100 % of the short side, and with at least `smallest` pixels if the photo is large enough."""
    random = np.random.default_rng(list(hashlib.sha256(os.fsencode(key)).digest()))
    short = min(size)
    low = min(short, max(smallest, round(0.4 * short)))
    boxes = []
    for _ in range(crops):
        side = int(random.integers(low, short + 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in size)
        boxes.append((left, top, left + side, top + side))
    return boxes


def _square(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """One square at its final size. A picture that already has this size is returned unchanged, bit for bit."""
    if box == (0, 0, size, size) == (0, 0, *image.size):
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
