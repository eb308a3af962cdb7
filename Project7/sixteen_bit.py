"""PNG and TIFF in colour with 16 bits per channel: Pillow reads only their upper bytes, and cannot write them."""

import io
import itertools
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

_SIGNATURE = 8  # bytes of a PNG before its first chunk
_XMP, _DESCRIPTION = 700, 270  # tags of a TIFF

# Pillow decodes such a picture to the upper byte of each sample; read in the other byte order, to the lower one.
_OTHER_ORDER = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in [("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L")]
}


def has_low_bytes(image: Any) -> bool:
    """Whether a picture that Pillow has opened but not yet loaded is in colour with 16 bits per channel."""
    tiles = getattr(image, "tile", ())  # empty for a picture made in memory
    return bool(tiles) and all(_order(tile.args) in _OTHER_ORDER for tile in tiles)


def load_low_bytes(image: Any) -> Image.Image:
    """Loads such a picture with the lower byte of each sample in place of the upper one."""
    image.tile = [tile._replace(args=_in_other_order(tile.args)) for tile in image.tile]
    image.load()
    return image


def _order(arguments: Any) -> str:
    """The raw mode in a tile's arguments, which are this name alone (PNG) or begin with it (TIFF)."""
    return arguments if isinstance(arguments, str) else arguments[0] if arguments else ""


def _in_other_order(arguments: Any) -> Any:
    other = _OTHER_ORDER[_order(arguments)]
    return other if isinstance(arguments, str) else (other, *arguments[1:])


def as_png(rgb: np.ndarray, alpha: np.ndarray | None, options: Mapping[str, object]) -> bytes:
    """rgb (H, W, 3) uint16 and alpha (H, W) uint8 -> a PNG. options: those of Pillow's `save`.

    Pillow writes a PNG of one pixel with all metadata; its header and its pixels are then replaced.
    """
    small = io.BytesIO()
    Image.new("RGB" if alpha is None else "RGBA", (1, 1)).save(small, "PNG", **options)
    content = small.getvalue()
    made = [content[:_SIGNATURE]]
    for kind, data in chunks(content):
        if kind == b"IHDR":
            data = struct.pack(">IIBB", rgb.shape[1], rgb.shape[0], 16, data[9]) + data[10:]
        elif kind == b"IDAT":
            data = compressed(with_alpha(rgb, alpha))
        made.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(made)


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of each chunk of a PNG."""
    place = _SIGNATURE
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length


def compressed(values: np.ndarray) -> bytes:
    """(H, W, C) uint16 -> the data of IDAT: each row as its difference from the row above (filter 2, Up)."""
    rows = values.astype(">u2").view(np.uint8).reshape(len(values), -1)
    packer = zlib.compressobj(1)
    parts = [packer.compress(b"\2" + rows[0].tobytes())]
    for above, row in itertools.pairwise(rows):
        parts.append(packer.compress(b"\2" + (row - above).tobytes()))
    return b"".join([*parts, packer.flush()])


def as_tiff(
    rgb: np.ndarray,
    alpha: np.ndarray | None,
    *,
    profile: bytes,
    xmp: bytes | None,
    exif: bytes | None,
    dpi: tuple[float, float] | None,
) -> bytes:
    """rgb (H, W, 3) uint16 and alpha (H, W) uint8 -> a TIFF with the ICC profile, the XMP packet, the texts of the EXIF
    data (description, date, artist, copyright ...) and the resolution."""
    import tifffile

    said = texts(exif)
    description = said.pop(_DESCRIPTION, None)
    resolution: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    tags = [(tag, "s", 0, text, True) for tag, text in said.items()]

    content = io.BytesIO()
    tifffile.imwrite(
        content,
        with_alpha(rgb, alpha),
        photometric="rgb",
        compression="zlib",
        iccprofile=profile,
        metadata=None,
        software=False,
        extrasamples=None if alpha is None else ["unassalpha"],
        description=description,
        extratags=[*tags, (_XMP, "B", len(xmp), xmp, True)] if xmp else tags,
        **resolution,
    )
    return content.getvalue()


def texts(exif: bytes | None) -> dict[int, str]:
    """The texts among the main tags of EXIF data, by tag number. Only ASCII, because TIFF holds nothing else."""
    tags = Image.Exif()
    tags.load(exif or b"")
    return {tag: text for tag, text in tags.items() if isinstance(text, str) and text.isascii()}


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return rgb if alpha is None else np.concatenate([rgb, alpha[..., None].astype(np.uint16) * 257], axis=2)
