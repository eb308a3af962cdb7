"""Between a photo of any size and the small copy of it that a network sees: lightness down, chroma up.

The full-size lightness is kept as it is; chroma that was found on the small copy is laid onto it along its edges
(guided_filter.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color
from Project7.batch import keyed_generator
from Project7.guided_filter import bicubic_matrix, enlarge_rows, line_coefficients
from Project7.photo import Photo, from_array, open_photo, photo_digest

_ROWS = 512 * 1024  # number of pixels of the full-size photo that are coloured at a time
_CLEANED = 768  # pixels of the long side at which grain is looked for


def as_photo(image: Any) -> Photo:
    """A photo from a path (~ is the home folder), bytes, an open file, a Pillow image, an array, or a tensor
    (3 | 1 | 4, H, W) of uint8 or of float in [0, 1]. Raises PhotoError; TypeError for anything else."""
    if isinstance(image, Photo):
        return image
    if isinstance(image, Tensor):
        if image.ndim == 4 and len(image) == 1:
            image = image[0]
        image = (image.movedim(0, -1) if image.ndim == 3 else image).detach().cpu()
        return from_array((image.float() if image.dtype in (torch.float16, torch.bfloat16) else image).numpy())
    if isinstance(image, np.ndarray):
        return from_array(image)
    if isinstance(image, str | Path):
        return open_photo(Path(image).expanduser())
    if isinstance(image, bytes | bytearray | memoryview | PIL.Image.Image) or hasattr(image, "read"):
        return open_photo(image)
    raise TypeError(
        f"a photo is a path, bytes, an open file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), not "
        f"{type(image).__module__}.{type(image).__qualname__}"
    )


def photo_noise(photo: Photo, seeds: Sequence[int]) -> list[torch.Generator]:
    """Generators keyed by seed and photo. Keyed by the seed alone, photos of the same shape would share their noise,
    and a seed whose noise happens to lean towards purple would tint a whole folder."""
    digest = photo_digest(photo)
    return [keyed_generator(f"{seed}/{digest}") for seed in seeds]


def full_lightness(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> L (1, 1, H, W) in [-1, 1], some rows at a time."""
    L = torch.empty(1, 1, *rgb.shape[:2])
    for rows in bands(*rgb.shape[:2]):
        L[:, :, rows] = color.lightness(color.channels_first(rgb[rows])[None])
    return L


def deep_lightness(values: np.ndarray) -> Tensor:
    """(H, W) or (H, W, 3) uint16, gray or colours in sRGB -> L (1, 1, H, W) in [-1, 1]."""
    height, width = values.shape[:2]
    L = torch.empty(1, 1, height, width)
    for rows in bands(height, width):
        rgb = torch.from_numpy(values[rows].astype(np.float32) / 65535).reshape(-1, width, values[0, 0].size)
        L[:, :, rows] = color.lightness(rgb.movedim(-1, 0).expand(1, 3, -1, -1))
    return L


def shrink(L: Tensor, size: tuple[int, ...]) -> Tensor:
    """L or ab (B, C, H, W) at the working size; a picture that has this size already is returned as it is."""
    if tuple(L.shape[-2:]) == size:
        return L
    return F.interpolate(L, size, mode="bilinear", antialias=True)


def no_larger(x: Tensor, photo: tuple[int, int]) -> Tensor:
    """A result (1, C, h, w) at the working size, reduced to the size of the photo (H, W) if that is no larger."""
    return shrink(x, photo) if all(full <= small for full, small in zip(photo, x.shape[-2:], strict=True)) else x


def without_grain(L: Tensor, strength: float) -> Tensor:
    """L (1, 1, H, W) without the grain and the dust of an old photo, for the network.

    It is cleaned at a reduced size, for speed (non-local means: Buades et al. 2005, after a median against specks), and
    blended in by `strength` in [0, 1].
    """
    if not strength:
        return L
    from scipy.ndimage import median_filter
    from skimage.restoration import denoise_nl_means

    scale = min(1.0, _CLEANED / max(L.shape[-2:]))
    small = shrink(L, tuple(max(1, round(side * scale)) for side in L.shape[-2:]))
    plain, sigma = median_filter(small[0, 0].numpy(), size=3), noise_level(small)
    if min(plain.shape) >= 7 and sigma > 0:
        plain = denoise_nl_means(plain, patch_size=5, patch_distance=6, h=0.5 * sigma, fast_mode=True)
    cleaned = F.interpolate(torch.from_numpy(plain).float()[None, None], L.shape[-2:], mode="bilinear")
    return (L + strength * (cleaned - L)).clamp(-1, 1)


def noise_level(L: Tensor) -> float:
    """The standard deviation of the noise in L (1, 1, H, W) (Immerkaer 1996, Fast Noise Variance Estimation)."""
    if min(L.shape[-2:]) < 3:
        return 0.0
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])[None, None]
    return float(F.conv2d(L, kernel).abs().mean()) * math.sqrt(math.pi / 2) / 6


def paint(L: Tensor, L_small: Tensor, ab: Tensor, ab_mean: Tensor, ab_std: Tensor, *, deep: bool = False) -> np.ndarray:
    """The full-size L (1, 1, H, W) with the chroma ab (1, 2, h, w) found on L_small -> (H, W, 3) uint8, or uint16 if
    `deep`."""
    height, width = L.shape[-2:]
    picture = np.empty((height, width, 3), dtype=np.uint16 if deep else np.uint8)
    show = _show_deep if deep else _show
    ab = no_larger(ab, (height, width))
    if ab.shape[-2:] == L.shape[-2:]:
        picture[:] = show(color.join(L, ab, ab_mean, ab_std))
        return picture
    k, c = line_coefficients(ab, L_small)
    to_rows, to_columns = bicubic_matrix(height, ab.shape[-2]), bicubic_matrix(width, ab.shape[-1])
    for rows in bands(height, width):
        chroma = enlarge_rows(k, c, L[:, :, rows], to_rows[rows], to_columns)
        picture[rows] = show(color.join(L[:, :, rows], chroma, ab_mean, ab_std))
    return picture


def _show(lab: Tensor) -> np.ndarray:
    return color.channels_last(color.show(lab))[0]


def _show_deep(lab: Tensor) -> np.ndarray:
    return color.to_uint16(color.displayed(lab))[0]


def bands(height: int, width: int) -> list[slice]:
    """The rows of a picture in bands of bounded memory."""
    rows = max(1, _ROWS // width)
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]
