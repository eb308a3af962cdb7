"""Reads and writes image files, for the whole toolkit: open, check, turn upright, convert, write with metadata.

The input may be anything that calls itself a picture. The result is 8-bit sRGB, upright, with its alpha and its
harmless metadata, or a PhotoError that says what the file is instead. No torch here.
"""

import contextlib
import ctypes
import hashlib
import html
import io
import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np
import PIL
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    Image,
    ImageChops,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from Project7 import sixteen_bit, tiff
from Project7.atomic_file import replacing
from Project7.errors import ProjectError, sentence
from Project7.photo_files import shown, unlike_file

MAX_PIXELS = 120_000_000  # accepts a 48-megapixel photo and refuses a bomb (169 megapixels in 20 kB)
DEEP_SUFFIXES = (".png", ".tif")  # of files that may have 16 bits per channel
MAX_BYTES = 1 << 30  # MAX_PIXELS in 16-bit RGBA, uncompressed

_CURE = "give a JPEG, PNG, WebP, TIFF, AVIF or BMP file"
_RAW = f"a camera's raw file; develop it, then {_CURE}."
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what makes the picture upright

# Pillow's readers are called directly: `Image.open` tries formats that nobody intended (EPS runs a program), and warns
# on stderr from 89 megapixels on, which only a global variable or an unsafe filter would silence.
_READERS = (
    (rb"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),  # MPO too: a JPEG followed by further ones
    (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (rb"RIFF....WEBP", WebPImagePlugin.WebPImageFile),
    (rb"II[*+]\0|MM\0[*+]", TiffImagePlugin.TiffImageFile),
    (rb"BM", BmpImagePlugin.BmpImageFile),
    (rb"....ftypavi[fs]", AvifImagePlugin.AvifImageFile),
)
_HEIC = rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)"
_STRANGERS = (
    (rb"GIF8[79]a", "a GIF"),
    (rb"%PDF", "a PDF"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (rb"8BPS", "a Photoshop document"),
    (rb"SIMPLE  =", "a FITS file"),
    (_HEIC, "a HEIC photo (pip install pillow-heif, and it is read)"),
    (rb"....ftypcrx ", "a camera's raw file"),
    (rb"....ftyp", "a video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL photo"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 photo"),
    (rb"PK\x03\x04", "a zip archive"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the picture (run `git lfs pull`)"),
    (rb"\s*(<\?xml|<!--|<svg).{0,400}<svg|\s*<svg", "an SVG drawing"),
    (rb"(\xef\xbb\xbf)?\s*(<!doctype html|<html)", "a web page, not the picture (download it again)"),
)  # kinds of files that often carry a picture's name

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # mode -> the colour space an ICC profile for it has
_TAG = ExifTags.Base
_EXIF_NAMES = """
    ImageDescription Make Model XResolution YResolution ResolutionUnit Software DateTime Artist Copyright
    Rating RatingPercent XPTitle XPComment XPAuthor XPKeywords XPSubject
    ExifVersion DateTimeOriginal DateTimeDigitized OffsetTime OffsetTimeOriginal OffsetTimeDigitized
    SubsecTime SubsecTimeOriginal SubsecTimeDigitized UserComment
    ExposureTime FNumber ExposureProgram ISOSpeedRatings ShutterSpeedValue ApertureValue BrightnessValue
    ExposureBiasValue MaxApertureValue SubjectDistance MeteringMode LightSource Flash FocalLength
    FocalLengthIn35mmFilm ExposureMode WhiteBalance DigitalZoomRatio SceneCaptureType
    LensSpecification LensMake LensModel
"""  # no locations, serial numbers, thumbnails or makers' notes, nor the old file's size and colour space
_EXIF_KEPT = frozenset(_TAG.__members__[name] for name in _EXIF_NAMES.split())


_LONGEST_EXIF = 1024  # bytes of one entry: all entries together must fit into a JPEG's 64 kB

XMP = 700  # the number of this tag in a TIFF


class PhotoError(ProjectError):
    """The file is not a usable photo. The message names the file, what is wrong, and the cure."""


@dataclass(frozen=True, eq=False)
class Photo:
    rgb: np.ndarray  # (H, W, 3) uint8, sRGB, upright
    alpha: np.ndarray | None = None  # (H, W) uint8
    exif: bytes | None = None  # harmless tags only, with orientation 1; None if there are none or they are damaged
    notes: tuple[str, ...] = ()  # messages for the person
    dpi: tuple[float, float] | None = None  # pixels per inch, horizontally and vertically, if the file gives them
    deep: np.ndarray | None = None  # (H, W) or (H, W, 3) uint16, sRGB: all the bits of a file with 16 per channel


def open_photo(source: Path | str | bytes | BinaryIO | Image.Image, *, most: int = MAX_PIXELS) -> Photo:
    """Reads a photo from a path, from bytes, from an open binary file (to its end), or from a Pillow image.

    Raises PhotoError if it is not a JPEG, PNG, WebP, TIFF, AVIF or BMP file, if it is damaged or cut short, or if it
    has more than `most` pixels (refused before it is decoded).
    """
    name = shown(source) if isinstance(source, str | Path) else "the picture"
    try:
        if isinstance(source, Image.Image):
            return _photo(source, name, most)
        content = _content(source, name)
        try:
            return _photo_of(content, name, most)
        except ValueError as error:
            if "MAX_TEXT" not in str(error):
                raise
            return _photo_of(without_side_chunks(content), name, most)
    except PhotoError:
        raise
    except Image.DecompressionBombError:
        raise PhotoError(_too_large(name, most)) from None
    except MemoryError:
        raise PhotoError(f"{name} needs more memory than is available; make it smaller first.") from None
    except Exception as error:  # Pillow raises a dozen kinds on damaged files, SyntaxError among them
        raise PhotoError(f"{name} is damaged ({sentence(error)}); copy it again, or leave it out.") from error


def photo_digest(photo: Photo) -> str:
    """Of its pixels: what keys its noise."""
    return hashlib.sha256(np.ascontiguousarray(photo.rgb).data).hexdigest()


def from_array(array: np.ndarray) -> Photo:
    """A photo from sRGB values, (H, W) or (H, W, 1 | 3 | 4): uint8, uint16, or float in [0, 1].

    The fourth channel is alpha. Raises PhotoError for other shapes, types and ranges.
    """
    array = np.asarray(array)
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)) or 0 in shape:
        raise PhotoError(f"an array of shape {shape} is not a picture; give (H, W) or (H, W, 1 | 3 | 4).")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise PhotoError(_too_large("the array", MAX_PIXELS, shape[1], shape[0]))
    values = _to_uint8(array)
    if values.ndim == 2 or shape[2] == 1:
        return Photo(np.repeat(values.reshape(*shape[:2], 1), 3, axis=2))
    return Photo(np.array(values[..., :3], order="C"), values[..., 3].copy() if shape[2] == 4 else None)


def _to_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return _from_16_bit(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise PhotoError(f"{array.dtype} is not a type for a picture; give uint8, uint16, or float in [0, 1].")
    low, high = float(array.min()), float(array.max())  # NaN propagates through both
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # tolerates rounding
        raise PhotoError(
            f"an array of {array.dtype} with values from {low:g} to {high:g} is not a picture; bring it into "
            "[0, 1] (np.nan_to_num, clip), or give uint8."
        )
    return np.rint(array * 255).astype(np.uint8)


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded: 32768 becomes 128."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_image(rgb: np.ndarray, *, alpha: np.ndarray | None = None) -> Image.Image:
    """(H, W, 3) uint8, and alpha (H, W) uint8 -> a Pillow image in RGB or RGBA that is tagged sRGB."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ProjectError(f"pictures are written from (H, W, 3) uint8, not from {rgb.shape} {rgb.dtype}.")
    image = Image.fromarray(rgb)
    if alpha is not None:
        if alpha.shape != rgb.shape[:2] or alpha.dtype != np.uint8:
            raise ProjectError(
                f"alpha must be {rgb.shape[:2]} uint8 like the picture, not {alpha.shape} {alpha.dtype}."
            )
        image.putalpha(Image.fromarray(alpha))
    image.info["icc_profile"] = _srgb_profile()
    return image


def save_png(path: Path, rgb: np.ndarray, **about: Any) -> None:
    """Writes a PNG, whole or not at all: tagged sRGB, lossless, the same bytes for the same picture.

    rgb: (H, W, 3) uint8 or uint16. about: see as_png. Raises ProjectError, which names the path, if it cannot be
    written; an earlier file then stays as it was.
    """
    _save(path, "PNG", rgb, **about)


def save_photo(path: Path, rgb: np.ndarray, *, alpha: np.ndarray | None = None, **about: Any) -> None:
    """Writes .png, .tif, .jpg (without transparency: white shows through) or .webp, by the file's suffix; see save_png.

    Only PNG and TIFF can have 16 bits per channel.
    """
    kind = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF"}.get(Path(path).suffix, "PNG")
    if kind == "JPEG" and alpha is not None:
        over = alpha[..., None].astype(np.float32) / 255
        rgb, alpha = (rgb * over + 255 * (1 - over)).round().astype(np.uint8), None
    _save(path, kind, rgb, alpha=alpha, **about)


def carried_over(photo: Photo) -> dict[str, Any]:
    """What a picture keeps of the photo that it was made from, as arguments of save_photo."""
    return {"alpha": photo.alpha, "exif": photo.exif, "dpi": photo.dpi}


def as_png(rgb: np.ndarray, **about: Any) -> bytes:
    """The bytes that save_png writes. about: `alpha` (H, W) uint8; `exif`; `text`, a dict of texts; `dpi`."""
    return _encoded("PNG", rgb, **about)


_OPTIONS: dict[str, dict[str, object]] = {
    # zlib's run-length strategy: on photos it was faster than the default at levels 1 to 3, and the files no larger
    "PNG": {"compress_level": 1, "compress_type": zlib.Z_RLE},
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},  # colour is the point of the picture
    "WEBP": {"quality": 92, "method": 2},
    "TIFF": {"compression": "tiff_adobe_deflate"},
}


def _save(path: Path, kind: str, rgb: np.ndarray, **about: Any) -> None:
    longest = {"JPEG": 65_500, "WEBP": 16_383}.get(kind)
    if longest and max(rgb.shape[:2]) > longest:
        raise ProjectError(
            f"{shown(path)}: {kind} files have at most {longest} pixels per side, not {max(rgb.shape[:2])}; use PNG."
        )
    content = _encoded(kind, rgb, **about)
    try:
        with replacing(Path(path)) as file:
            file.write(content)
    except OSError as error:  # its own message names the temporary file, which means nothing to a person
        raise ProjectError(f"{shown(path)} could not be written: {error.strerror or error}.") from error


def _encoded(
    kind: str,
    rgb: np.ndarray,
    *,
    alpha: np.ndarray | None = None,
    exif: bytes | None = None,
    text: Mapping[str, str] | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """The content of the file. text: texts by their keys, stored as such in a PNG, and elsewhere in an XMP packet."""
    options: dict[str, Any] = _OPTIONS[kind] | {"icc_profile": _srgb_profile()}
    options |= ({"exif": exif} if exif else {}) | ({"dpi": dpi} if dpi else {})
    if kind == "JPEG" and text and len(xmp_packet(text)) > _MOST_XMP:
        raise ProjectError(
            f"The description of how the picture was made takes {len(xmp_packet(text)):,} bytes, and a JPEG has room "
            f"for {_MOST_XMP:,}; use PNG."
        )
    if text and kind == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for key, value in text.items():
            options["pnginfo"].add_itxt(key, value)
    elif text:
        options["tiffinfo" if kind == "TIFF" else "xmp"] = (
            {XMP: xmp_packet(text)} if kind == "TIFF" else xmp_packet(text)
        )
    if rgb.dtype == np.uint16:
        if kind == "TIFF":
            xmp = xmp_packet(text) if text else None
            return sixteen_bit.as_tiff(rgb, alpha, profile=options["icc_profile"], xmp=xmp, exif=exif, dpi=dpi)
        return sixteen_bit.as_png(rgb, alpha, options)
    content = io.BytesIO()
    to_image(rgb, alpha=alpha).save(content, kind, **options)
    return content.getvalue()


_MOST_XMP = 65_502  # bytes in one segment of a JPEG


def xmp_packet(text: Mapping[str, str]) -> bytes:
    """Texts by their keys as an XMP packet (ISO 16684-1), for files that have no other place for them."""
    said = "".join(f" p7:{key}={quoteattr(value)}" for key, value in text.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:p7="urn:project7"{said}/></rdf:RDF></x:xmpmeta>'
    ).encode()


def xmp_text(packet: bytes, key: str) -> str | None:
    """The text that xmp_packet stored under `key`; None if there is none."""
    found = re.search(rf" p7:{key}=(?P<quote>[\"'])(.*?)(?P=quote)", packet.decode("utf-8", "replace"), re.DOTALL)
    return html.unescape(found[2]) if found else None


@cache
def _srgb_profile() -> bytes:
    """LittleCMS's sRGB profile, 588 bytes, with a fixed date of creation (bytes 24 to 35) in place of the present."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes((7, 208, 0, 1, 0, 1)) + bytes(6) + profile[36:]  # 2000-01-01


# ---- from bytes to Photo


def file_content(path: Path) -> bytes:
    """The bytes of a photo's file. Raises PhotoError if it is not a regular file, too large or unreadable."""
    return _content(path, shown(path))


def _content(source: Path | str | bytes | BinaryIO, name: str) -> bytes:
    """All bytes of the file, read at once: a file that is mapped or read later can change while it is decoded."""
    if isinstance(source, bytes | bytearray | memoryview):
        content = source
    elif isinstance(source, str | Path):
        try:
            mode = os.stat(source).st_mode
            if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
                raise PhotoError(f"{name} is {unlike_file(mode)}, not a photo; {_CURE}.")
            with open(source, "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise PhotoError(f"{name} could not be read ({reason}); check its path and permissions.") from None
    else:
        content = source.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise PhotoError(f"{name} is larger than {MAX_BYTES >> 20} MiB; make it smaller first.")
    return bytes(content)


def _reader(content: bytes, name: str, most: int) -> Image.Image:
    """Pillow's reader for these bytes; it reads the header and decodes no pixel. Raises PhotoError for other
    formats."""
    _quiet_decoders()
    head = content[:600]
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":
        raise PhotoError(f"{name} is {_RAW}")
    reader = next((kind for pattern, kind in _READERS if re.match(pattern, head, re.DOTALL)), None) or _heif(head)
    if reader is None:
        raise PhotoError(f"{name} is {_stranger(head)}; {_CURE}.")
    try:
        image = reader(io.BytesIO(content))
    except SyntaxError as error:  # a damaged file, or a kind of samples that Pillow has no mode for
        if re.match(_HEIC, head, re.DOTALL):
            raise PhotoError(f"{name} is a HEIC photo that cannot be read; copy it again, or {_CURE}.") from None
        if reader is not TiffImagePlugin.TiffImageFile or "pixel mode" not in str(error):
            raise
        return _unusual_tiff(content, name, most)
    _check_size(image, name, most)
    if image.format == "TIFF":
        return _tiff(image, content, name, most)
    if image.format == "PNG":
        _mend_color_key(image)
    return image


@cache
def _quiet_decoders() -> None:
    """Silences what Pillow, tifffile and libtiff print (whole screens for one damaged scan): a PhotoError says in one
    sentence what is wrong with a photo."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    for name in ("PIL", "tifffile"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    place = Path(PIL.__file__).parent
    for library in [*place.parent.glob("pillow.libs/libtiff*"), *place.glob(".dylibs/libtiff*")]:
        with contextlib.suppress(OSError, AttributeError):  # the one that Pillow itself has loaded
            ctypes.CDLL(str(library)).TIFFSetErrorHandler(None)


def _heif(head: bytes) -> Any:
    """The reader of HEIC photos if pillow-heif is installed; None without it, and for other files."""
    if not re.match(_HEIC, head, re.DOTALL):
        return None
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


def _tiff(image: Any, content: bytes, name: str, most: int) -> Image.Image:
    """The page of a TIFF that is the photo, ready to be decoded."""
    tags = image.tag_v2
    if 50706 in tags or tags.get(262) == 32803 or (tags.get(254) == 1 and 330 in tags):  # DNG, a sensor's mosaic, NEF
        raise PhotoError(f"{name} is {_RAW}")
    for page in range(image.n_frames):  # the first page may be a thumbnail
        image.seek(page)
        if not image.tag_v2.get(254, 0) & 1:
            break
    else:
        image.seek(0)
    if image.tell() == 0 and not tiff.pillow_reads(image.tag_v2):
        return _unusual_tiff(content, name, most)
    tags = image.tag_v2
    _check_size(image, name, most)
    # The reader would make this itself, and warn from 89 megapixels on. The size is that before turning.
    image.im = Image.new(image.mode, (tags[256], tags[257])).im
    return image


def _unusual_tiff(content: bytes, name: str, most: int) -> Image.Image:
    try:
        image, notes = tiff.read(content, most)
    except tiff.UnsupportedTiff as error:
        raise PhotoError(f"{name} is a TIFF of {error}, which cannot be read; save it with 8 or 16 bits.") from None
    image.info["notes"] = notes
    return image


def read_small(content: bytes, side: int) -> Image.Image | None:
    """A plain picture whose short side is reduced to `side` pixels or more: a JPEG is decoded faster at a half, a
    quarter or an eighth of its size. None if only open_photo gives the right pixels: 16 bits, palettes, CMYK, alpha,
    a colour profile that is not sRGB. Raises PhotoError, and what Pillow raises on damaged files."""
    try:
        image = _reader(content, "the picture", MAX_PIXELS)
    except ValueError:  # a large profile or text, which open_photo can handle
        return None
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGB", "L") or image.format == "TIFF":
        return None
    if profile and _transform_to_srgb(profile, image.mode) != (None, None):
        return None
    image.draft("RGB", (side, side))
    return image


def _stranger(head: bytes) -> str:
    """The kind of a file that is not a photo, as far as its first bytes tell."""
    if not head:
        return "empty"
    for pattern, what in _STRANGERS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return what
    text = head.decode("utf-8", errors="replace")[:-1]  # the last character may be cut in two
    is_text = text and all(character.isprintable() or character.isspace() for character in text)
    return "text, not a picture" if is_text and "\N{REPLACEMENT CHARACTER}" not in text else "no picture"


def _mend_color_key(image: Any) -> None:
    """Converts a PNG's transparent colour (tRNS) from the bits of the file to the 8 bits that Pillow decodes to."""
    key = image.info.get("transparency")
    if key is None or not image.tile:
        return
    raw_mode = image.tile[0][3]
    if raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def without_side_chunks(content: bytes) -> bytes:
    """A PNG without its texts and its colour profile: Pillow refuses the whole picture if one of them is large."""
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            parts.append(content[place : place + 12 + length])
        place += 12 + length
    return b"".join(parts)


def _check_size(image: Image.Image, name: str, most: int) -> None:
    width, height = image.size
    if width * height > most:
        raise PhotoError(_too_large(name, most, width, height))
    if width * height == 0:
        raise PhotoError(f"{name} has no pixels; {_CURE}.")


def _too_large(name: str, most: int, *size: int) -> str:
    found = f"has {size[0]} x {size[1]} pixels" if size else "is too large"
    return f"{name} {found}, and at most {most // 10**6} megapixels are read; make it smaller first."


def _photo_of(content: bytes, name: str, most: int) -> Photo:
    image = _reader(content, name, most)
    low = _reader(content, name, most) if sixteen_bit.has_low_bytes(image) else None
    return _photo(image, name, most, low)


def _photo(image: Image.Image, name: str, most: int, low: Image.Image | None = None) -> Photo:
    """low: a second reader, for the lower bytes of a colour file with 16 bits per channel."""
    _check_size(image, name, most)
    notes = list(image.info.get("notes", ()))
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("several frames or pages: only the first is used")
    image.load()  # after this a TIFF is upright, and its orientation is gone from the EXIF data that is read next
    low = low and sixteen_bit.load_low_bytes(low)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # the fourth byte is unused padding
    exif, orientation = _exif(image, notes)
    info = image.info
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        levels, said = tiff.widened(np.asarray(image).astype(np.uint16)[..., None])
        if said:
            image, notes = Image.fromarray(levels[..., 0]), [*notes, *said]
    profile = info.get("icc_profile")
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # only Adobe stores ink inverted; Pillow takes every file for Adobe's
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        low = low and low.transpose(_TURNS[orientation])
    image, alpha = _split(image)
    deep = _deep_colour(image, _split(low)[0], profile) if low else _deep_gray(image, profile)
    dpi = _resolution(info)
    image = _in_srgb(_in_8_bit(image, notes), profile, notes)
    return Photo(_pixels(image), None if alpha is None else _pixels(alpha), exif, tuple(notes), dpi, deep)


def _deep_gray(image: Image.Image, profile: bytes | None) -> np.ndarray | None:
    """(H, W) uint16, sRGB: all bits of a 16-bit gray picture; None for any other picture."""
    if not image.mode.startswith("I;16"):
        return None
    deep = np.empty((image.height, image.width), np.uint16)
    for rows, values in _strips(image):
        deep[rows] = values
    return _gray_in_srgb(deep, profile, "L")


def _deep_colour(image: Image.Image, low: Image.Image, profile: bytes | None) -> np.ndarray | None:
    """(H, W, 3) uint16 from the upper and lower bytes of an sRGB picture in RGB; (H, W) for a gray scan that was stored
    as RGB, whatever its profile. None for colours of another profile: LittleCMS converts those with 8 bits here."""
    deep = _pixels(image).astype(np.uint16)
    deep <<= 8
    deep |= _pixels(low)
    if profile is None or _transform_to_srgb(profile, "RGB")[0] is None:
        return deep
    if (deep == deep[..., :1]).all():
        return _gray_in_srgb(deep[..., 0].copy(), profile, "RGB")
    return None


def _gray_in_srgb(gray: np.ndarray, profile: bytes | None, mode: str) -> np.ndarray:
    """(H, W) uint16, converted to sRGB by the profile of a picture in `mode`: its curve is interpolated between the
    256 levels of 8 bits."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert(mode)
    curve = np.asarray(_in_srgb(ramp, profile, []))[0, :, 0]
    if (curve == np.arange(256)).all():
        return gray
    return np.interp(gray, np.arange(256) * 257, curve.astype(np.float64) * 257).round().astype(np.uint16)


def _resolution(info: Mapping[Any, Any]) -> tuple[float, float] | None:
    """Pixels per inch, if a file gives them and they are plausible; else None."""
    try:
        across, down = (float(value) for value in info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if all(1 <= value <= 100_000 for value in (across, down)) else None


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The picture in one of the modes L, I, I;16, F, RGB, CMYK, LAB, and its alpha in L."""
    mode, key = image.mode, image.info.get("transparency")
    alpha = None
    if key is not None and mode in ("1", "L", "I;16", "RGB"):
        alpha = _color_key_alpha(image, key)
    elif mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(mode.upper())
    elif mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A")
        image = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "I", "F", "RGB", "CMYK", "LAB") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")  # YCbCr, HSV, RGBX
    return image, alpha


def _color_key_alpha(image: Image.Image, key: int | tuple[int, ...]) -> Image.Image:
    """0 where a pixel has the colour that a PNG declares transparent, 255 elsewhere; also for 16-bit gray."""
    alpha = np.empty((image.height, image.width), np.uint8)
    for rows, values in _strips(image.convert("L") if image.mode == "1" else image):
        same = values == np.asarray(key)
        alpha[rows] = np.where(same.all(axis=-1) if values.ndim == 3 else same, 0, 255)
    return Image.fromarray(alpha)


def _in_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Gray in 16 bits, 32 bits or float -> L; values without a known range are scaled by their own minimum and
    maximum."""
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    low, high = _finite_range(image)
    real = image.mode == "F"
    if not (low >= 0 and high <= (1 if real else 65535)):
        notes.append(f"gray values from {low:g} to {high:g}: scaled so that these are black and white")
    elif real:
        low, high = 0.0, 1.0
    else:
        low, high = 0.0, 65535.0
    gray = np.empty((image.height, image.width), np.uint8)
    for rows, values in _strips(image):
        if (low, high) == (0, 65535) and not real:
            gray[rows] = _from_16_bit(values)
        else:
            values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
            gray[rows] = np.rint((values - low) / max(high - low, np.finfo(np.float64).tiny) * 255)
    if real and any(not np.isfinite(values).all() for _, values in _strips(image)):
        notes.append("NaN or infinity among the gray values: made black or white")
    return Image.fromarray(gray)


def _finite_range(image: Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for _, values in _strips(image):
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _in_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """L, RGB, CMYK or LAB -> RGB in sRGB, through the picture's own ICC profile if that fits its mode."""
    if profile and image.mode in _SPACES:
        transform, note = _transform_to_srgb(profile, image.mode)
        if note:
            notes.append(note)
        if transform:
            return transform.apply(image)
    if image.mode == "L":
        return Image.merge("RGB", (image, image, image))
    if image.mode == "LAB":
        return _lab_to_srgb().apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    """Like Pillow's `convert`, but without LittleCMS's table, which is faster and has twice the error (4 levels)."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)


@lru_cache(maxsize=16)  # photos of one camera share their profile, and building a transform is slow
def _transform_to_srgb(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str | None]:
    """(transform, note for the person). The transform is None if the profile is sRGB already or cannot be used."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space != _SPACES[mode]:
            return None, f"colour profile for {space} on a picture in {_SPACES[mode]} ignored"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception:  # OSError, PyCMSError
        return None, "damaged colour profile ignored"
    if mode == "RGB":  # sRGB profiles have many names, and are recognised by their effect
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
        moved = np.asarray(transform.apply(Image.fromarray(probe))).astype(int) - probe
        if np.abs(moved).max() <= 2:
            return None, None
    return transform, None


def _exif(image: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
    """The harmless EXIF data with orientation 1, or None; and the orientation that the picture had (1 if unknown)."""
    orientation = 1
    try:
        exif = image.getexif()
        if isinstance(exif.get(_TAG.Orientation), int):
            orientation = exif[_TAG.Orientation]
        return _harmless(exif), orientation
    except Exception:  # SyntaxError, struct.error, ValueError, KeyError, OverflowError ...
        notes.append("damaged EXIF left out")
        return None, orientation


def _harmless(exif: Image.Exif) -> bytes | None:
    outer, inner = _kept(exif), _kept(exif.get_ifd(ExifTags.IFD.Exif))
    if not outer and not inner:
        return None
    clean = Image.Exif()
    clean[_TAG.Orientation] = 1
    for tag, value in outer.items():
        # texts as their original bytes: Pillow reads them as Latin-1, and writes "?" for all but ASCII
        clean[tag] = value.encode("latin-1") if isinstance(value, str) else value
    if inner:
        clean[ExifTags.IFD.Exif] = inner
    return clean.tobytes()


def _kept(tags: Mapping[int, object]) -> dict[int, object]:
    found = {tag: tags[tag] for tag in tags if tag in _EXIF_KEPT}
    return {t: v for t, v in found.items() if not isinstance(v, str | bytes | tuple) or len(v) <= _LONGEST_EXIF}


def _pixels(image: Image.Image) -> np.ndarray:
    """(H, W) for mode L, (H, W, 3) for mode RGB, uint8. `np.array(image)` would need three times the memory."""
    channels = (3,) if image.mode == "RGB" else ()
    pixels = np.empty((image.height, image.width, *channels), np.uint8)
    for rows, values in _strips(image):
        pixels[rows] = values
    return pixels


def _strips(image: Image.Image) -> Iterator[tuple[slice, np.ndarray]]:
    """The picture in strips of a few megapixels: (rows, their values)."""
    height = max(1, 4_000_000 // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), np.asarray(image.crop((0, top, image.width, bottom)))
