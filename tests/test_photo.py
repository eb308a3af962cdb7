"""photo.py: whatever calls itself a picture becomes an upright sRGB photo, or an error that names it."""

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, features

from Project7.errors import ProjectError
from Project7.photo import (
    MAX_PIXELS,
    Photo,
    PhotoError,
    from_array,
    open_photo,
    save_photo,
    save_png,
    to_image,
)
from Project7.sheet import side_by_side

TAG, IFD = ExifTags.Base, ExifTags.IFD


def smooth(height: int = 20, width: int = 28) -> np.ndarray:
    """A picture (H, W, 3) uint8 that JPEG keeps well and that has no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 8 + 20, y * 9 + 30, 200 - x * 3 - y * 4], -1).astype(np.uint8)


def noise(height: int = 20, width: int = 28, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], bits: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG built by hand: `rows` are the scan lines, each with its filter byte; `chunks` precede them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [(b"IHDR", struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def profile(space: bytes, gamma: float | np.ndarray, colorants: dict[bytes, tuple[float, ...]]) -> bytes:
    """An ICC profile built by hand (version 2): RGB with three colorants or GRAY with none, and a gamma or a table."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    entries = np.atleast_1d(gamma * 256 if isinstance(gamma, float) else gamma * 65535)
    curve = b"curv\0\0\0\0" + struct.pack(">I", len(entries)) + entries.round().astype(">u2").tobytes() + b"\0\0"
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), **{name: xyz(v) for name, v in colorants.items()}}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC") if colorants else (b"kTRC",), curve)
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4s4s4s4s4s12s4s", start + len(body), b"", b"\2\x10\0\0", b"mntr", space, b"XYZ ", b"", b"acsp"
    )
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


ADOBE_COLORANTS = {
    b"rXYZ": (0.60974, 0.31111, 0.01947),
    b"gXYZ": (0.20528, 0.62567, 0.06087),
    b"bXYZ": (0.14919, 0.06322, 0.74457),
}
SRGB_COLORANTS = {
    b"rXYZ": (0.43607, 0.22249, 0.01392),
    b"gXYZ": (0.38515, 0.71687, 0.09708),
    b"bXYZ": (0.14307, 0.06061, 0.71410),
}
ADOBE_RGB = profile(b"RGB ", 563 / 256, ADOBE_COLORANTS)
GRAY_1_0 = profile(b"GRAY", 1.0, {})  # linear gray


def exif_bytes(orientation: object = 1) -> bytes:
    exif = Image.Exif()
    exif[TAG.Make], exif[TAG.Model] = "Maker", "Model X"
    exif[TAG.Copyright] = "© Ünïcode".encode()
    exif[TAG.Orientation] = orientation
    exif[IFD.GPSInfo] = {1: "N", 2: (48.0, 8.0, 14.0), 3: "E", 4: (11.0, 34.0, 31.0)}
    exif[IFD.Exif] = {
        TAG.FNumber: 2.8,
        TAG.DateTimeOriginal: "2020:01:02 03:04:05",
        TAG.MakerNote: b"secret maker's note",
        TAG.BodySerialNumber: "SERIAL-4711",
    }
    return exif.tobytes()


# ---- what is no photo


PHOTOSHOP = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3)
STRANGERS = {
    "empty": b"",
    "no picture": b"\x89",
    "text": b"just some words, caf\xc3\xa9\n",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "web page": b"\n<!DOCTYPE HTML>\n<html><body>Not found</body></html>",
    "PDF": b"%PDF-1.7\n%\xe2\xe3",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "GIF": encode(noise(), "GIF"),
    "EPS": encode(noise(), "EPS"),
    "Photoshop": PHOTOSHOP,
    "FITS": b"SIMPLE  =                    T" + b" " * 50,
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "JPEG 2000": encode(noise(), "JPEG2000"),
    "zip": b"PK\x03\x04rest",
    "raw": encode(noise(), "TIFF", tiffinfo={50706: b"\1\4\0\0"}),  # DNG
    "a camera's raw": encode(noise(), "TIFF", tiffinfo={254: 1, 330: 8}),  # NEF: the first page is a preview
}


@pytest.mark.parametrize("what", STRANGERS)
def test_strangers_are_refused_by_name(tmp_path, what):
    path = tmp_path / "holiday.png"
    path.write_bytes(STRANGERS[what])
    with pytest.raises(PhotoError, match=r"holiday\.png") as error:
        open_photo(path)
    assert what in str(error.value)
    assert "JPEG, PNG" in str(error.value)  # the cure
    assert "\n" not in str(error.value)


def test_avif_is_read():
    if not features.check("avif"):
        pytest.skip("this Pillow does not read AVIF")
    assert np.abs(open_photo(encode(smooth(), "AVIF", quality=95)).rgb.astype(int) - smooth()).mean() < 4


def test_a_heic_photo_is_read():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(smooth())).save(file, quality=95)
    assert np.abs(open_photo(file.getvalue()).rgb.astype(int) - smooth()).mean() < 4


def test_the_padding_of_a_bmp_is_no_transparency():
    rgba = np.dstack([smooth(), np.zeros((20, 28), np.uint8)])
    photo = open_photo(encode(rgba, "BMP"))
    assert photo.alpha is None
    assert (photo.rgb == smooth()).all()


def test_long_texts_are_left_out_so_that_a_jpeg_has_room(tmp_path):
    photo = open_photo(encode(smooth(), "TIFF", tiffinfo={TAG.ImageDescription: "x" * 66_000, TAG.Artist: "Ann"}))
    save_photo(tmp_path / "a.jpg", photo.rgb, exif=photo.exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert dict(image.getexif()) == {TAG.Orientation: 1, TAG.Artist: "Ann"}


def test_a_recipe_that_a_jpeg_has_no_room_for_is_said(tmp_path):
    with pytest.raises(ProjectError, match="a JPEG has room for 65,502; use PNG"):
        save_photo(tmp_path / "a.jpg", smooth(), text={"recipe": "x" * 70_000})
    save_photo(tmp_path / "a.png", smooth(), text={"recipe": "x" * 70_000})


def test_paths_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, what in (
        ("pipe.png", "FIFO"),
        ("", "folder"),
        ("gone.png", "No such file"),
        ("a\0b.png", "null"),
    ):
        with pytest.raises(PhotoError, match=what):
            open_photo(f"{tmp_path}/{name}")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.30, 0.90, 0.99])
def test_files_cut_short_are_refused(kind, share):
    content = encode(noise(40, 60), kind)
    with pytest.raises(PhotoError, match=r"damaged|no picture"):
        open_photo(content[: int(len(content) * share)])


def mutated(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(data), rng.choice((64, 100_000))))  # headers are hit more often
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        elif how == 1:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif how == 2:
            del data[at : at + rng.randint(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        if not data:
            break
    return with_checksums(bytes(data)) if rng.randrange(4) else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """Repairs the checksums of a PNG, so that they do not catch the mutations. Other formats have none."""
    out, at = bytearray(data), 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out[: len(data)])


def mutation_seeds() -> dict[str, bytes]:
    rgb, exif = Image.fromarray(noise(12, 16)), exif_bytes(6)
    palette = rgb.quantize(16)
    palette.info["transparency"] = bytes(range(16))
    return {
        "JPEG": encode(rgb, "JPEG", exif=exif, icc_profile=ADOBE_RGB),
        "PNG": encode(rgb, "PNG", exif=exif, icc_profile=ADOBE_RGB),
        "palette PNG": encode(palette, "PNG"),
        "WEBP": encode(noise(12, 16, 4), "WEBP", exif=exif, icc_profile=ADOBE_RGB),
        "TIFF": encode(rgb, "TIFF", compression="tiff_lzw", tiffinfo={TAG.Orientation: 6}),
        "BMP": encode(rgb, "BMP"),
    }


def photo_or_none(content: bytes) -> Photo | None:
    try:
        return open_photo(content)
    except PhotoError:
        return None


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged EXIF
@pytest.mark.parametrize("kind", mutation_seeds())
def test_mutations_give_a_photo_or_the_error(kind):
    content, rng, photos = mutation_seeds()[kind], random.Random(f"photo {kind}"), 0
    for number in range(200):
        photo = photo_or_none(mutated(content, rng))
        if photo:
            photos += 1
            height, width = photo.rgb.shape[:2]
            assert photo.rgb.dtype == np.uint8, number
            assert photo.rgb.shape == (height, width, 3), number
            assert height * width > 0, number
            assert photo.alpha is None or photo.alpha.shape == (height, width), number
            assert photo.exif is None or photo.exif.startswith(b"Exif\0\0"), number
    assert 2 < photos < 200


MEASURED = """
import sys
from pathlib import Path
from Project7.photo import PhotoError, open_photo
def highest(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
start = highest()
for path in sys.argv[1:]:
    try:
        print(path, "photo", open_photo(path).rgb.shape)
    except PhotoError as error:
        print(error)
print("MB", highest() - start)
"""


def measured(*paths: Path) -> tuple[list[str], int]:
    """The output, one line per path, of a separate process, and the megabytes that opening the photos took."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell the memory of a process")
    command = [sys.executable, "-W", "error", "-c", MEASURED, *map(str, paths)]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root)
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    return lines, int(last.split()[1])


def test_bombs_are_refused_before_decoding(tmp_path):
    tiny_tiff = encode(noise(2, 2), "TIFF")
    wide = tiny_tiff.replace(struct.pack("<HHIHH", 256, 4, 1, 2, 0), struct.pack("<HHII", 256, 4, 1, 400_000_000))
    if wide == tiny_tiff:
        wide = tiny_tiff.replace(struct.pack("<HHIHH", 256, 3, 1, 2, 0), struct.pack("<HHII", 256, 4, 1, 400_000_000))
    assert wide != tiny_tiff
    jpeg = bytearray(encode(noise(8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    bmp = bytearray(encode(noise(8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 20_000, 20_000)
    webp = bytearray(encode(noise(8, 8), "WEBP", lossless=True, exif=exif_bytes()))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (15_999).to_bytes(3, "little") + (15_999).to_bytes(3, "little")
    one_bit = png((13_000, 13_000), 1, 0, bytes(13_000 * (1 + 13_000 // 8)))
    assert len(one_bit) < 40_000
    bombs = {
        "header.png": png((20_000, 20_000), 8, 2, b""),
        "one-bit.png": one_bit,
        "text.png": png((1, 1), 8, 0, b"\0\0", (b"zTXt", b"key\0\0" + zlib.compress(bytes(300_000_000), 9))),
        "profile.png": png((1, 1), 8, 0, b"\0\0", (b"iCCP", b"key\0\0" + zlib.compress(bytes(300_000_000), 9))),
        "wide.tif": wide,
        "large.jpg": bytes(jpeg),
        "large.bmp": bytes(bmp),
        "large.webp": bytes(webp),
    }
    for name, content in bombs.items():
        (tmp_path / name).write_bytes(content)
    lines, megabytes = measured(*(tmp_path / name for name in bombs))
    for name, line in zip(bombs, lines, strict=True):
        assert name in line
        # a picture with a large text or profile is read without it
        assert ("photo (1, 1, 3)" if name in ("text.png", "profile.png") else "120 megapixels") in line
    assert megabytes < 100


def test_a_48_megapixel_photo_in_bounded_memory(tmp_path):
    path = tmp_path / "large.jpg"
    Image.linear_gradient("L").resize((8000, 6000)).save(path)
    lines, megabytes = measured(path)
    assert lines == [f"{path} photo (6000, 8000, 3)"]
    assert megabytes < 600  # 144 the result, 192 Pillow's RGB, 48 its gray
    assert MAX_PIXELS > 48e6


def test_no_warning_where_pillow_sees_a_bomb(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # from 300 pixels on it warns, from 600 on it raises
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        content = encode(smooth(), kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_photo(content).rgb.shape == (20, 28, 3)
    assert Image.MAX_IMAGE_PIXELS == 300
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# ---- upright, with the metadata that may stay


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", [*UPRIGHT, 0, 99])
def test_orientation_is_applied_once(tmp_path, kind, orientation):
    stored = noise()
    expected = UPRIGHT.get(orientation, UPRIGHT[1])(stored)
    photo = open_photo(encode(stored, kind, exif=exif_bytes(orientation), **LOSSLESS[kind]))
    np.testing.assert_array_equal(photo.rgb, expected)
    save_png(tmp_path / "a.png", photo.rgb, exif=photo.exif)
    np.testing.assert_array_equal(open_photo(tmp_path / "a.png").rgb, expected)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_a_compressed_tiff(orientation):
    content = encode(noise(), "TIFF", compression="tiff_lzw", tiffinfo={TAG.Orientation: orientation})
    np.testing.assert_array_equal(open_photo(content).rgb, UPRIGHT[orientation](noise()))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_of_jpeg_and_of_alpha(orientation):
    photo = open_photo(encode(smooth(), "JPEG", exif=exif_bytes(orientation), quality=100, subsampling=0))
    expected = UPRIGHT[orientation](smooth())
    assert photo.rgb.shape == expected.shape
    assert np.abs(photo.rgb.astype(int) - expected).max() <= 4
    stored = noise(channels=4)
    photo = open_photo(encode(stored, "PNG", exif=exif_bytes(orientation)))
    np.testing.assert_array_equal(photo.alpha, UPRIGHT[orientation](stored)[..., 3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_keeps_what_is_harmless(tmp_path, kind):
    content = encode(smooth(), kind, exif=exif_bytes(6))
    for secret in (b"SERIAL-4711", b"secret maker"):
        assert secret in content
    photo = open_photo(content)
    path = tmp_path / "a.png"
    save_png(path, photo.rgb, exif=photo.exif)
    with Image.open(path) as image:
        exif = image.getexif()
        inner = exif.get_ifd(IFD.Exif)
    assert (exif[TAG.Make], exif[TAG.Model], exif[TAG.Orientation]) == ("Maker", "Model X", 1)
    if kind != "TIFF":  # Pillow writes a TIFF's own texts in ASCII
        assert exif[TAG.Copyright].encode("latin-1") == "© Ünïcode".encode()
    assert float(inner[TAG.FNumber]) == pytest.approx(2.8)
    assert inner[TAG.DateTimeOriginal] == "2020:01:02 03:04:05"
    assert IFD.GPSInfo not in exif
    assert not exif.get_ifd(IFD.GPSInfo)
    for secret in (b"SERIAL-4711", b"secret maker", b"\x88\x25"):
        assert secret not in photo.exif
    assert open_photo(path).exif == photo.exif  # a second pass changes nothing


def test_exif_thumbnail_is_dropped():
    thumbnail = encode(noise(8, 8), "JPEG")
    ifd0 = struct.pack("<HHHI4sI", 1, TAG.Model, 2, 3, b"ab\0\0", 26)
    ifd1 = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + ifd0 + ifd1 + thumbnail
    with Image.open(io.BytesIO(encode(smooth(), "JPEG", exif=exif))) as image:
        assert image.getexif().get_ifd(IFD.IFD1)[514] == len(thumbnail)
    photo = open_photo(encode(smooth(), "JPEG", exif=exif))
    assert b"ab\0" in photo.exif
    assert len(photo.exif) < 80


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("garbage", [b"garbage", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\xff\xff\xff\xff", b"\0"])
def test_garbage_exif(garbage):
    photo = open_photo(encode(smooth(), "PNG", exif=b"Exif\0\0" + garbage))
    np.testing.assert_array_equal(photo.rgb, smooth())
    assert photo.exif is None


def test_no_exif_is_none():
    assert open_photo(encode(smooth(), "PNG")).exif is None
    only_gps = Image.Exif()
    only_gps[IFD.GPSInfo] = {1: "N"}
    assert open_photo(encode(smooth(), "PNG", exif=only_gps)).exif is None


# ---- depths, modes, alpha


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "big-endian TIFF", "mode I"])
def test_16_bit_gray_is_scaled(kind):
    values = np.array([[0, 128, 129, 255, 32768, 65406, 65535]], np.uint16)
    expected = [0, 0, 1, 1, 128, 254, 255]
    image = Image.fromarray(values)
    if kind == "big-endian TIFF":
        data = values.astype(">u2").tobytes()
        entries = (
            (256, 7),
            (257, 1),
            (258, 16),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, 1),
            (279, len(data)),
        )
        table = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
        ifd = struct.pack(">H", len(entries)) + table + bytes(4)
        photo = open_photo(b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + ifd)
    elif kind == "mode I":
        photo = open_photo(Image.fromarray(values.astype(np.int32)))
    else:
        photo = open_photo(encode(image, kind))
    assert photo.rgb[0, :, 0].tolist() == expected
    assert (photo.rgb == photo.rgb[..., :1]).all()
    assert photo.notes == ()


def test_16_bit_rgb_png():
    rows = b"\0" + struct.pack(">6H", 0, 32768, 65535, 128, 65535, 0)
    assert open_photo(png((2, 1), 16, 2, rows)).rgb.tolist() == [[[0, 128, 255], [0, 255, 0]]]


def test_32_bit_gray_is_scaled_by_its_range():
    photo = open_photo(encode(Image.fromarray(np.array([[-100, 0, 100_000]], np.int32)), "TIFF"))
    assert photo.rgb[0, :, 0].tolist() == [0, 0, 255]
    assert "-100" in photo.notes[0]
    assert "100000" in photo.notes[0]


def test_float_tiff_is_finite():
    def opened(*values: float) -> Photo:
        return open_photo(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))

    assert opened(0, 0.25, 0.5, 1).rgb[0, :, 0].tolist() == [0, 64, 128, 255]
    assert opened(0, 0.5).notes == ()
    photo = opened(0, np.nan, np.inf, -np.inf, 0.5)
    assert photo.rgb[0, :, 0].tolist() == [0, 0, 255, 0, 128]
    assert "NaN" in photo.notes[0]
    photo = opened(-3, 7, 2, np.nan)
    assert photo.rgb[0, :, 0].tolist() == [0, 255, 128, 0]
    assert "-3 to 7" in photo.notes[0]
    assert (opened(np.nan, np.nan).rgb == 0).all()
    assert (opened(5, 5).rgb == 0).all()
    assert opened(-3.4e38, 3.4e38).rgb[0, :, 0].tolist() == [0, 255]


def gray_of(rgb: np.ndarray) -> np.ndarray:
    return rgb @ (0.299, 0.587, 0.114)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("CMYK", "TIFF", {}),
        ("CMYK", "JPEG", {"quality": 100, "subsampling": 0}),  # with Adobe's marker: stored inverted
        ("YCbCr", "TIFF", {}),
        ("YCbCr", "JPEG", {"quality": 100, "subsampling": 0}),
        ("LAB", "TIFF", {}),
    ],
)
def test_color_spaces_have_the_gray_of_the_rgb_route(mode, kind, options):
    photo = open_photo(encode(Image.fromarray(smooth()).convert(mode), kind, **options))
    assert np.abs(gray_of(photo.rgb) - gray_of(smooth())).max() <= 3


def test_cmyk_jpeg_is_inverted_only_with_adobes_marker():
    image = Image.fromarray(smooth()).convert("CMYK")
    content = encode(image, "JPEG", quality=100, subsampling=0, exif=exif_bytes(6))
    at = content.index(b"\xff\xee")  # the APP14 segment
    without = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4]) :]
    upright = UPRIGHT[6](smooth()).astype(int)
    assert np.abs(open_photo(content).rgb - upright).max() <= 6
    inks = 255 - np.asarray(image).astype(int)  # what a reader that does not know Adobe's way finds
    plain = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    assert np.abs(open_photo(without).rgb - UPRIGHT[6](plain)).max() <= 6


ALPHA = noise(channels=1)[..., 0]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG"), ("LA", "TIFF"), ("PA", "TIFF")],
)
def test_alpha_is_kept(mode, kind):
    image = Image.fromarray(smooth())
    image = image.quantize(64).convert("PA") if mode == "PA" else image.convert(mode)
    image.putalpha(Image.fromarray(ALPHA))
    photo = open_photo(encode(image, kind, **LOSSLESS[kind] | ({"exact": True} if kind == "WEBP" else {})))
    np.testing.assert_array_equal(photo.alpha, ALPHA)
    np.testing.assert_array_equal(photo.rgb, np.asarray(image.convert("RGBA"))[..., :3])


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(mode):
    image = Image.fromarray(smooth()).convert("LA" if mode == "La" else "RGBA")
    image.putalpha(Image.fromarray(ALPHA | 128))
    photo = open_photo(image.convert(mode))
    np.testing.assert_array_equal(photo.alpha, ALPHA | 128)
    assert np.abs(photo.rgb.astype(int) - np.asarray(image.convert("RGB"))).max() <= 3


def test_palette_transparency():
    rows = b"\0\0\1\2"
    colors = (b"PLTE", bytes((255, 0, 0, 0, 255, 0, 0, 0, 255)))
    photo = open_photo(png((3, 1), 8, 3, rows, colors, (b"tRNS", bytes((10, 128)))))
    assert photo.rgb.tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    assert photo.alpha.tolist() == [[10, 128, 255]]
    assert open_photo(png((3, 1), 8, 3, rows, colors, (b"tRNS", b"\0"))).alpha.tolist() == [[0, 255, 255]]
    assert open_photo(png((3, 1), 8, 3, rows, colors)).alpha is None


@pytest.mark.parametrize(
    ("bits", "color", "row", "key", "gray"),
    [
        (1, 0, b"\x40", struct.pack(">H", 1), [0, 255, 0]),
        (2, 0, b"\x34", struct.pack(">H", 3), [0, 255, 85]),
        (4, 0, b"\x0a\xb0", struct.pack(">H", 10), [0, 170, 187]),
        (8, 0, b"\x05\x06\x07", struct.pack(">H", 6), [5, 6, 7]),
        (16, 0, struct.pack(">3H", 5, 32768, 32769), struct.pack(">H", 32768), [0, 128, 128]),
        (8, 2, bytes((0, 0, 0, 9, 8, 7, 9, 8, 8)), struct.pack(">3H", 9, 8, 7), None),
        (
            16,
            2,
            struct.pack(">9H", 0, 0, 0, 0x1234, 8, 7, 0x3434, 8, 8),
            struct.pack(">3H", 0x1234, 8, 7),
            None,
        ),
    ],
)
def test_the_transparent_color_of_a_png(bits, color, row, key, gray):
    photo = open_photo(png((3, 1), bits, color, b"\0" + row, (b"tRNS", key)))
    assert photo.alpha.tolist() == [[255, 0, 255]]
    if gray:
        assert photo.rgb[0, :, 0].tolist() == gray


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_1_bit(kind):
    bits = noise(channels=1)[..., 0] > 127
    photo = open_photo(encode(Image.fromarray(bits), kind))
    np.testing.assert_array_equal(photo.rgb, np.repeat(bits[..., None] * np.uint8(255), 3, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (33, 47), (65_500, 1)])
def test_odd_sizes(tmp_path, size):
    rgb = noise(size[1], size[0])
    save_png(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(open_photo(tmp_path / "a.png").rgb, rgb)
    assert open_photo(encode(rgb, "JPEG")).rgb.shape == rgb.shape


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames(kind):
    frames = [Image.fromarray(smooth()), Image.fromarray(255 - smooth()), Image.fromarray(noise())]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS[kind])
    photo = open_photo(content)
    np.testing.assert_array_equal(photo.rgb, smooth())
    assert "only the first is used" in photo.notes[0]


def test_mpo_is_a_jpeg():
    frames = [Image.fromarray(smooth()), Image.fromarray(255 - smooth())]
    content = encode(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100, subsampling=0)
    photo = open_photo(content)
    assert np.abs(photo.rgb.astype(int) - smooth()).max() <= 4
    assert photo.notes == ()
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "MPO"
        assert open_photo(image).notes == ()


# ---- colour profiles


def adobe_to_srgb(rgb: np.ndarray) -> np.ndarray:
    """Adobe RGB to sRGB by the formulas, through XYZ (D50); correct for colours that sRGB has."""
    to_xyz = np.array(list(ADOBE_COLORANTS.values())).T
    srgb = np.array(list(SRGB_COLORANTS.values())).T
    linear = ((rgb / 255) ** (563 / 256)) @ (np.linalg.inv(srgb) @ to_xyz).T
    inside = ((linear >= 0) & (linear <= 1)).all(-1)
    linear = linear.clip(0, 1)
    values = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.where(inside[..., None], values * 255, np.nan)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_adobe_rgb_becomes_srgb(kind):
    rgb = noise()
    photo = open_photo(encode(rgb, kind, icc_profile=ADOBE_RGB, **LOSSLESS[kind]))
    expected = adobe_to_srgb(rgb)
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.3
    assert np.abs(photo.rgb - expected)[inside].max() <= 2
    assert np.abs(photo.rgb.astype(int) - rgb).max() > 20
    direct = ImageCms.profileToProfile(
        Image.fromarray(rgb),
        ImageCms.ImageCmsProfile(io.BytesIO(ADOBE_RGB)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert np.abs(photo.rgb.astype(int) - np.asarray(direct)).max() <= 1
    assert photo.notes == ()


def test_a_profile_leaves_alpha_alone():
    rgba = noise(channels=4)
    photo = open_photo(encode(rgba, "PNG", icc_profile=ADOBE_RGB))
    np.testing.assert_array_equal(photo.alpha, rgba[..., 3])
    np.testing.assert_array_equal(photo.rgb, open_photo(encode(rgba[..., :3].copy(), "PNG", icc_profile=ADOBE_RGB)).rgb)


def test_srgb_profiles_change_nothing():
    v = np.linspace(0, 1, 1024)
    table = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    by_hand = profile(b"RGB ", table, SRGB_COLORANTS)  # like that of most cameras, without a telling name
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(by_hand)), ImageCms.createProfile("sRGB")
    converted = np.asarray(ImageCms.profileToProfile(Image.fromarray(noise()), source, target))
    assert 0 < np.abs(converted.astype(int) - noise()).max() <= 2  # the rounding that must be avoided
    for srgb in (by_hand, to_image(noise()).info["icc_profile"]):
        photo = open_photo(encode(noise(), "PNG", icc_profile=srgb))
        np.testing.assert_array_equal(photo.rgb, noise())
        assert photo.notes == ()


def test_a_gray_profile():
    photo = open_photo(encode(np.array([[0, 55, 128, 255]], np.uint8), "PNG", icc_profile=GRAY_1_0))
    assert (photo.rgb == photo.rgb[..., :1]).all()
    assert np.abs(photo.rgb[0, :, 0] - np.array([0, 128, 188, 255])).max() <= 1  # linear light in sRGB's curve
    assert photo.notes == ()


def test_profiles_that_do_not_fit_are_ignored():
    gray = noise(channels=1)[..., 0]
    photo = open_photo(encode(gray, "PNG", icc_profile=ADOBE_RGB))
    np.testing.assert_array_equal(photo.rgb[..., 1], gray)
    assert "RGB on a picture in GRAY" in photo.notes[0]
    photo = open_photo(encode(noise(), "PNG", icc_profile=GRAY_1_0))
    np.testing.assert_array_equal(photo.rgb, noise())
    assert "GRAY on a picture in RGB" in photo.notes[0]
    for garbage in (b"garbage", ADOBE_RGB[:200], bytes(600), ADOBE_RGB[:128] + bytes(400)):
        photo = open_photo(encode(noise(), "PNG", icc_profile=garbage))
        np.testing.assert_array_equal(photo.rgb, noise())
        assert photo.notes == ("damaged colour profile ignored",)


def test_profiles_in_threads():
    contents = [encode(np.roll(noise(64, 64), shift, 0), "PNG", icc_profile=ADOBE_RGB) for shift in range(24)]
    alone = [open_photo(content).rgb for content in contents]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda content: open_photo(content).rgb, contents))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- other doors in


def test_every_kind_of_source(tmp_path):
    content = encode(noise(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with open(path, "rb") as file, Image.open(path) as image:
        for source in (path, str(path), content, bytearray(content), file, io.BytesIO(content), image):
            photo = open_photo(source)
            np.testing.assert_array_equal(photo.rgb, noise())
            assert photo.rgb.flags.writeable
            assert photo.rgb.flags.c_contiguous


def test_a_pillow_image_is_left_as_it_was():
    image = Image.open(io.BytesIO(encode(noise(), "PNG", exif=exif_bytes(6))))
    before = image.tobytes(), dict(image.info)
    assert open_photo(image).rgb.shape == (28, 20, 3)
    assert open_photo(image).rgb.shape == (28, 20, 3)
    assert (image.tobytes(), image.info) == before
    with pytest.raises(PhotoError, match="no pixels"):
        open_photo(Image.new("RGB", (0, 4)))


def test_from_array():
    for rgb in (noise(), noise()[::-1], np.asfortranarray(noise())):
        photo = from_array(rgb)
        np.testing.assert_array_equal(photo.rgb, rgb)
        assert photo.alpha is None
        assert not np.shares_memory(photo.rgb, rgb)
    rgba = noise(channels=4)
    np.testing.assert_array_equal(from_array(rgba).alpha, rgba[..., 3])
    np.testing.assert_array_equal(from_array(rgba).rgb, rgba[..., :3])
    for gray in (rgba[..., 0], rgba[..., :1]):
        np.testing.assert_array_equal(from_array(gray).rgb, np.repeat(rgba[..., :1], 3, 2))
    assert from_array(np.array([[0, 32768, 65535]], np.uint16)).rgb[0, :, 0].tolist() == [0, 128, 255]
    for kind in (np.float16, np.float32, np.float64):
        assert from_array(np.array([[0, 0.5, 1]], kind)).rgb[0, :, 0].tolist() == [0, 128, 255]
    assert from_array(np.array([[-1e-7, 1 + 1e-7]])).rgb[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros(5, np.uint8), "shape"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((3, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4), bool), "bool"),
        (np.array([["a"]]), "type"),
        (np.full((4, 4), np.nan), "nan"),
        (np.array([[0.0, np.inf]]), "inf"),
        (np.array([[0.0, 255.0]]), "255"),
        (np.array([[-0.5, 0.5]]), "-0.5"),
        (np.broadcast_to(np.uint8(0), (20_000, 20_000)), "120 megapixels"),
    ],
)
def test_from_array_refuses(array, rule):
    with pytest.raises(PhotoError, match=rule):
        from_array(array)


# ---- writing


def test_a_png_round_trip_is_bit_exact(tmp_path):
    rgba, path = noise(channels=4), tmp_path / "out.png"
    save_png(path, rgba[..., :3], alpha=rgba[..., 3])
    first = path.read_bytes()
    photo = open_photo(path)
    np.testing.assert_array_equal(photo.rgb, rgba[..., :3])
    np.testing.assert_array_equal(photo.alpha, rgba[..., 3])
    save_png(path, photo.rgb, alpha=photo.alpha)
    assert path.read_bytes() == first
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        tag = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    assert "sRGB" in ImageCms.getProfileDescription(tag)
    assert ImageCms.getProfileDescription(tag) != ""
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_written_bytes_do_not_depend_on_the_time(tmp_path):
    code = "from Project7.photo import _srgb_profile; print(_srgb_profile().hex())"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    tag = to_image(noise()).info["icc_profile"]
    assert tag.hex() == run.stdout.strip()
    assert tag[24:36] == bytes((7, 208, 0, 1, 0, 1)) + bytes(6)
    assert len(tag) < 1000


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    save_png(path, smooth())
    before = path.read_bytes()
    with pytest.raises(ProjectError, match=r"\(H, W, 3\)"):
        save_png(path, smooth().astype(np.float32))
    with pytest.raises(ProjectError, match="alpha"):
        save_png(path, smooth(), alpha=np.zeros((3, 3), np.uint8))

    def failing(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(ProjectError, match=r"out\.png could not be written: Input/output error"):
        save_png(path, noise())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.png"]


def test_writing_where_no_folder_is(tmp_path):
    with pytest.raises(ProjectError, match=r"gone/a\.png could not be written: No such file") as error:
        save_png(tmp_path / "gone" / "a.png", smooth())
    assert "tmp-" not in str(error.value).rsplit("/", 1)[1]


def test_a_full_disk_is_named(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np; from Project7.photo import save_png;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "save_png(sys.argv[1], np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parent.parent)
    assert result.returncode == 1
    assert "ProjectError" in result.stderr
    assert "a.png could not be written" in result.stderr.splitlines()[-1]
    assert "bytes" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_side_by_side():
    row = side_by_side([smooth(20, 28), noise(20, 5), smooth(20, 7)], gap=3)
    assert row.shape == (20, 28 + 3 + 5 + 3 + 7, 3)
    np.testing.assert_array_equal(row[:, :28], smooth(20, 28))
    assert (row[:, 28:31] == 255).all()
    np.testing.assert_array_equal(row[:, 31:36], noise(20, 5))
    np.testing.assert_array_equal(side_by_side([noise()]), noise())
    for wrong in ([], [noise(4), noise(5)]):
        with pytest.raises(ProjectError, match="height"):
            side_by_side(wrong)


def test_messages_are_one_printable_line(tmp_path):
    for name in ("new\nline.png", os.fsdecode(b"caf\xe9.png")):
        (tmp_path / name).write_bytes(b"%PDF")
        with pytest.raises(PhotoError) as error:
            open_photo(tmp_path / name)
        assert str(error.value).isprintable()


def test_photo_imports_no_torch():
    code = "import sys, Project7.photo; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_written_in_the_format_of_its_name_tagged_srgb_and_nearly_as_it_is(tmp_path, suffix):
    rgb = np.zeros((40, 30, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 250, 30).astype(np.uint8)
    rgb[20:, :, 2] = 200  # a sharp edge between colours, which subsampled chroma would smear
    save_photo(tmp_path / f"a{suffix}", rgb)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix]
        assert "icc_profile" in image.info
        found = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(found - rgb).mean() < (0.01 if suffix == ".png" else 4)


def test_transparency_stays_in_webp_and_is_white_in_jpeg(tmp_path):
    rgb, alpha = np.full((8, 8, 3), 30, np.uint8), np.zeros((8, 8), np.uint8)
    for suffix in (".webp", ".jpg"):
        save_photo(tmp_path / f"a{suffix}", rgb, alpha=alpha)
    with Image.open(tmp_path / "a.webp") as image:
        assert np.asarray(image.convert("RGBA"))[..., 3].max() == 0
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.asarray(image).min() > 250


def test_a_side_that_a_format_cannot_hold_is_said(tmp_path):
    with pytest.raises(ProjectError, match="WEBP files have at most 16383 pixels per side, not 20000; use PNG"):
        save_photo(tmp_path / "a.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_damaged_scans_print_nothing_of_their_own(capfd):
    """libtiff, tifffile and Pillow would each write lines on stderr that mean nothing to a person."""
    seeded, content = random.Random(3), io.BytesIO()
    gradient = np.arange(60 * 50 * 3, dtype=np.uint32).reshape(60, 50, 3)
    Image.fromarray((gradient * 7 % 251).astype(np.uint8)).save(content, "TIFF", compression="tiff_lzw")
    refused = 0
    for _ in range(60):
        damaged = bytearray(content.getvalue())
        for _ in range(8):
            damaged[seeded.randrange(len(damaged))] = seeded.randrange(256)
        try:
            open_photo(bytes(damaged))
        except PhotoError:
            refused += 1
    assert refused > 10
    assert capfd.readouterr() == ("", "")
