"""Pictures with 16 bits per channel, which Pillow cannot write: PNG and TIFF."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image

_SIGNATURE = 8  # bytes of a PNG before its first chunk
_XMP = 700  # the tag of a TIFF


def as_png(rgb: np.ndarray, alpha: np.ndarray | None, options: Mapping[str, object]) -> bytes:
    """rgb (H, W, 3) uint16 and alpha (H, W) uint8 -> a PNG. options: Pillow's, whose chunks come before the pixels.

    Pillow writes a PNG of one pixel with all that is said of the picture; its header and its pixels are exchanged.
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
    """(H, W, C) uint16 -> the data of IDAT: every row as its difference from the one above (filter 2, Up)."""
    rows = values.astype(">u2").view(np.uint8).reshape(len(values), -1)
    packer = zlib.compressobj(1)
    parts = [packer.compress(b"\2" + rows[0].tobytes())]
    for above, row in itertools.pairwise(rows):
        parts.append(packer.compress(b"\2" + (row - above).tobytes()))
    return b"".join([*parts, packer.flush()])


def as_tiff(rgb: np.ndarray, alpha: np.ndarray | None, *, profile: bytes, xmp: bytes | None, dpi) -> bytes:
    """rgb (H, W, 3) uint16 and alpha (H, W) uint8 -> a TIFF with the ICC profile, the XMP packet and the resolution."""
    import tifffile

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
        extratags=[(_XMP, "B", len(xmp), xmp, True)] if xmp else (),
        **({"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}),
    )
    return content.getvalue()


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return rgb if alpha is None else np.concatenate([rgb, alpha[..., None].astype(np.uint16) * 257], axis=2)
