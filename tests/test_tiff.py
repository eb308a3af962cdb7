"""tiff.py: TIFFs as scanners, microscopes and painting programs write them are read correctly."""

import io

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from Project7.photo import PhotoError, open_photo
from Project7.sixteen_bit import as_png

Y, X = np.mgrid[0:12, 0:20]
GRAY = ((X * 9 + Y * 5) / 230).clip(0, 1)  # (H, W) from 0 to 1
RGB = np.stack([GRAY, GRAY[::-1], 1 - GRAY], -1)
U16, U32 = 65535, 2**32 - 1


def written(values, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def whole(shares, most, kind):
    return np.rint(shares * most).astype(kind)


KINDS = {
    "gray-16": (written(whole(GRAY, U16, "u2")), GRAY),
    "gray-16-big-endian": (written(whole(GRAY, U16, ">u2"), byteorder=">"), GRAY),
    "gray-16-white-is-zero": (written(whole(1 - GRAY, U16, "u2"), photometric="miniswhite"), GRAY),
    "gray-12-in-16": (written(whole(GRAY, 4095, "u2")), GRAY),
    "gray-half": (written(GRAY.astype("f2")), GRAY),
    "gray-double": (written(GRAY.astype("f8")), GRAY),
    "gray-16-alpha": (
        written(whole(np.stack([GRAY, np.full_like(GRAY, 0.5)], -1), U16, "u2"), photometric="minisblack",
                planarconfig="contig", extrasamples=["unassalpha"]), GRAY),
    "rgb-16": (written(whole(RGB, U16, "u2"), photometric="rgb"), RGB),
    "rgb-16-planes": (
        written(whole(np.moveaxis(RGB, -1, 0), U16, "u2"), photometric="rgb", planarconfig="separate"), RGB),
    "rgb-32": (written(whole(RGB, U32, "u4"), photometric="rgb"), RGB),
    "rgb-float": (written(RGB.astype("f4"), photometric="rgb"), RGB),
    "rgb-float-deflate": (written(RGB.astype("f4"), photometric="rgb", compression="zlib"), RGB),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_what_was_meant(kind):
    content, meant = KINDS[kind]
    photo = open_photo(content)
    meant = np.broadcast_to(meant.reshape(*meant.shape[:2], -1), (*meant.shape[:2], 3)) * 255
    assert np.abs(photo.rgb - meant).max() <= 1
    assert (photo.alpha is not None) == ("alpha" in kind)
    if "alpha" in kind:
        assert np.abs(photo.alpha - 127.5).max() <= 1
    if "12" in kind:
        assert "read as 12 bits" in photo.notes[0]


NOISE = np.random.default_rng(0).integers(0, 65536, (33, 47, 3), dtype=np.uint16)
FORTY_EIGHT = {
    "png": as_png(NOISE, None, {}),
    "png-alpha": as_png(NOISE, np.full((33, 47), 128, np.uint8), {}),
    "tiff": written(NOISE, photometric="rgb"),
    "tiff-big-endian": written(NOISE, photometric="rgb", byteorder=">"),
    "tiff-deflate": written(NOISE, photometric="rgb", compression="zlib", predictor=True),
    "tiff-deflate-big-endian": written(NOISE, photometric="rgb", compression="zlib", byteorder=">"),
    "tiff-strips": written(NOISE, photometric="rgb", rowsperstrip=5),
    "tiff-tiles": written(NOISE, photometric="rgb", tile=(16, 16)),
}


@pytest.mark.parametrize("kind", FORTY_EIGHT)
def test_16_bits_per_channel_are_read_in_full(kind):
    photo = open_photo(FORTY_EIGHT[kind])
    assert (photo.deep == NOISE).all()
    assert (photo.rgb == NOISE >> 8).all()
    assert (photo.alpha is not None) == ("alpha" in kind)


def test_a_turned_scan_of_48_bits_is_turned_in_full():
    photo = open_photo(written(NOISE, photometric="rgb", extratags=[(274, "H", 1, 6, True)]))
    assert (photo.deep == np.rot90(NOISE, -1)).all()


def test_48_bits_in_a_profile_of_their_own_are_kept_where_they_are_gray():
    gray = np.repeat(NOISE[..., :1], 3, axis=2)
    wide = linear_profile()
    photo = open_photo(written(gray, photometric="rgb", iccprofile=wide))
    assert photo.deep.shape == gray.shape[:2]
    apart = np.abs(photo.deep / 257 - photo.rgb[..., 0])[gray[..., 0] > 8000]  # the darkest levels are far apart
    assert apart.max() < 3
    assert open_photo(written(NOISE, photometric="rgb", iccprofile=wide)).deep is None


def linear_profile() -> bytes:
    """LittleCMS's sRGB profile with a linear curve."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    start = profile.index(b"para")
    profile[start + 8 : start + 10] = bytes(2)  # ICC.1, parametricCurveType 0: Y = X ^ g
    profile[start + 12 : start + 16] = (1 << 16).to_bytes(4, "big")
    return bytes(profile)


def test_it_is_upright_and_keeps_its_resolution():
    turned = written(whole(1 - GRAY, U16, "u2"), photometric="miniswhite", resolution=(300, 300), resolutionunit="inch",
                     extratags=[(274, "H", 1, 6, True)])  # fmt: skip
    photo = open_photo(turned)
    assert photo.rgb.shape == (20, 12, 3)
    assert np.abs(photo.rgb[..., 0] - np.rot90(GRAY, -1) * 255).max() <= 1
    assert photo.dpi == pytest.approx((300, 300))


def test_a_small_first_page_is_not_the_photo_and_a_photo_marked_small_is_one():
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        pages.write(whole(RGB[::4, ::4], 255, "u1"), photometric="rgb", subfiletype=1)
        pages.write(whole(RGB, 255, "u1"), photometric="rgb")
    assert open_photo(file.getvalue()).rgb.shape == (12, 20, 3)
    assert open_photo(written(whole(RGB, 255, "u1"), photometric="rgb", subfiletype=1)).rgb.shape == (12, 20, 3)


def test_what_is_not_read_is_named():
    complex_values = written(GRAY.astype("c8"))
    with pytest.raises(PhotoError, match=r"is a TIFF of .* which cannot be read; save it with 8 or 16 bits"):
        open_photo(complex_values)
