"""Reads the kinds of TIFF that Pillow reads wrongly or not at all, through tifffile: scanners, microscopes and painting
programs write them.

Pillow takes 16-bit WhiteIsZero for BlackIsZero, 16-bit planes for pixels, and gray of 12 bits in 16 for nearly black;
it refuses half, double and 32-bit samples.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # tag 262
_ASSOCIATED = 1  # tag 338: colour is multiplied by alpha
_BITS, _PHOTOMETRIC, _PLANES, _FORMAT = 258, 262, 284, 339  # tags


class UnsupportedTiff(Exception):
    """A sound TIFF of a kind that cannot be read; the message names the kind."""


def pillow_reads(tags: Any) -> bool:
    """Whether Pillow gives the right pixels for a page with these tags: 1 to 8 bits, and 16-bit integers stored pixel
    by pixel. (12-bit gray in 16 bits still needs `widened`.)"""
    bits = tags.get(_BITS, (1,))
    bits = max(bits) if isinstance(bits, tuple) else bits
    if bits <= 8:
        return True
    if bits == 32 and tags.get(277, 1) == 1 and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO:
        return True  # integers or real numbers, whose range is found later
    plain = bits == 16 and set(np.atleast_1d(tags.get(_FORMAT, 1))) == {1} and tags.get(_PLANES, 1) == 1
    return plain and tags.get(_PHOTOMETRIC) != _WHITE_IS_ZERO


def read(content: bytes, most: int) -> tuple[Image.Image, tuple[str, ...]]:
    """The first page as a picture in I;16, F, LA, RGB or RGBA, with its profile and orientation, and notes for the
    person.

    Integers are scaled by the range of their bits; real numbers are kept in gray pictures and taken from [0, 1] in
    colour pictures. Raises UnsupportedTiff, also for more than `most` pixels, and what tifffile raises for damaged
    files.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages[0]
        if page.imagewidth * page.imagelength > most:
            raise UnsupportedTiff(f"{page.imagewidth} x {page.imagelength} pixels")
        try:
            values = page.asarray()
        except (ValueError, ImportError) as error:
            if "imagecodecs" not in str(error):
                raise
            raise UnsupportedTiff(f"{page.bitspersample} bits compressed by {page.compression.name}") from None
        tags = {tag.code: tag.value for tag in page.tags}
        kind = f"{page.photometric.name}, {page.bitspersample} bits" if page.photometric else "of no known colours"
        if page.planarconfig == 2 and values.ndim == 3:
            values = np.moveaxis(values, 0, -1)
        if values.ndim == 2:
            values = values[..., None]
        gray = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
        if values.ndim != 3 or not (gray or page.photometric == _RGB) or values.dtype.kind not in "uif":
            raise UnsupportedTiff(kind)
        if page.photometric == _WHITE_IS_ZERO and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        associated = page.extrasamples[:1] == (_ASSOCIATED,)
        samples = 1 if gray else 3
        colour, alpha = values[..., :samples], values[..., samples : samples + 1] if page.extrasamples else None
        image, notes = _picture(colour, alpha, associated)
    image.info["icc_profile"] = tags.get(34675)
    if {282, 283} <= tags.keys() and tags.get(296) in (2, 3):  # pixels per inch or centimetre, as fractions
        image.info["dpi"] = tuple(tags[n][0] / max(1, tags[n][1]) * (2.54 if tags[296] == 3 else 1) for n in (282, 283))
    if orientation := tags.get(274):
        image.getexif()[274] = int(orientation)
    return image, notes


def _picture(colour: np.ndarray, alpha: np.ndarray | None, associated: bool) -> tuple[Image.Image, tuple[str, ...]]:
    colour, notes = widened(colour)
    gray = colour.shape[-1] == 1
    if gray and alpha is None:
        if colour.dtype == np.uint16:
            return Image.fromarray(np.ascontiguousarray(colour[..., 0])), notes
        if colour.dtype.kind == "f":
            return Image.fromarray(np.ascontiguousarray(colour[..., 0], np.float32)), notes
    shares = _shares(colour)
    if alpha is not None:
        opacity = _shares(alpha)
        if associated:
            shares = shares / np.maximum(opacity, 1e-6)
        shares = np.concatenate([shares, opacity], axis=-1)
    pixels = np.rint(np.clip(np.nan_to_num(shares), 0, 1) * 255).astype(np.uint8)
    if colour.dtype.kind == "f" and not (np.nanmin(colour) >= 0 and np.nanmax(colour) <= 1):
        notes = (*notes, "colours outside [0, 1] were cut off")
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), notes


def widened(values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Gray values (H, W, C) of 8, 10 or 12 bits that were stored in 16, scaled to the whole range, and notes for the
    person. Other values are returned unchanged."""
    if values.dtype == np.uint16 and values.shape[-1] == 1 and values.size:
        largest = int(values.max())
        bits = next((bits for bits in (8, 10, 12) if largest < 1 << bits), 16)
        if largest and bits < 16:
            full = (1 << bits) - 1
            note = f"gray values up to {largest} in 16 bits: read as {bits} bits"
            return ((values.astype(np.uint32) * 65535 + full // 2) // full).astype(np.uint16), (note,)
    return values, ()


def _shares(values: np.ndarray) -> np.ndarray:
    """Values as shares of their type's range, float64."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    return values.astype(np.float64) / np.iinfo(values.dtype).max
