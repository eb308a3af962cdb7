"""Enlarges chroma along the edges of L: the fast guided filter (He & Sun 2015, "Fast Guided Filter").

In a small window chroma is modelled as a linear function of lightness, ab = k * L + c. The coefficients are found at
the small size, where the network worked, and applied to the full-size L, so that colour ends where the object ends. The
cost at full size is one bicubic enlargement and one multiply-add per pixel. benchmarks/RESULTS.md compares it on real
photos with nearest neighbour, bilinear and bicubic enlargement.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def line_coefficients(ab: Tensor, L: Tensor, *, radius: int = 1, eps: float = 0.05) -> tuple[Tensor, Tensor]:
    """The lines ab = k * L + c around each pixel (He & Sun 2015, eq. 5, 6 and 8).

    ab: (B, 2, h, w); L: (B, 1, h, w) in [-1, 1]. `eps` is the variance of L below which a window counts as flat.
    Returns k and c, each (B, 2, h, w). The filter's residual is put into c, so that k * L + c is exactly ab at this
    size and none of the network's colour is smoothed away.
    """
    mean_L, mean_ab = _box(L, radius), _box(ab, radius)
    variance = _box(L * L, radius) - mean_L * mean_L
    k = (_box(L * ab, radius) - mean_L * mean_ab) / (variance + eps)
    k = _box(k, radius)
    return k, ab - k * L


def enlarge(ab: Tensor, L_small: Tensor, L: Tensor) -> Tensor:
    """ab (B, 2, h, w), which belongs to L_small (B, 1, h, w), enlarged to the size of L (B, 1, H, W)."""
    if ab.shape[-2:] == L.shape[-2:]:
        return ab
    k, c = line_coefficients(ab.float(), L_small.float())
    k, c = (F.interpolate(x, L.shape[-2:], mode="bicubic") for x in (k, c))
    return k * L + c


def shrink(ab: Tensor, scale: int) -> Tensor:
    """ab (B, C, H, W) -> (B, C, h, w), the means of scale x scale cells; sides are padded to multiples of `scale`."""
    return ab if scale == 1 else F.avg_pool2d(pad_to_multiple(ab, scale), scale)


def expand(ab: Tensor, L: Tensor, scale: int) -> Tensor:
    """The reverse of `shrink`, along the edges of L (B, 1, H, W): ab (B, C, h, w) -> (B, C, H, W)."""
    if scale == 1:
        return ab
    full = pad_to_multiple(L, scale)
    return enlarge(ab, F.avg_pool2d(full, scale), full)[..., : L.shape[-2], : L.shape[-1]]


def enlarge_rows(k: Tensor, c: Tensor, L_rows: Tensor, to_rows: Tensor, to_columns: Tensor) -> Tensor:
    """`enlarge` for some rows of a photo that is too big to hold at once.

    k, c: (1, 2, h, w) from `line_coefficients`; L_rows: (1, 1, R, W); to_rows: (R, h), those rows of
    `bicubic_matrix(H, h)`; to_columns: (W, w), all of `bicubic_matrix(W, w)`. Returns (1, 2, R, W).
    """
    return (to_rows @ k @ to_columns.T) * L_rows + to_rows @ c @ to_columns.T


def bicubic_matrix(large: int, small: int) -> Tensor:
    """The (large, small) matrix that enlarges a line of `small` pixels, so that rows can be computed one by one."""
    return F.interpolate(torch.eye(small)[None, None], (large, small), mode="bicubic")[0, 0]


def _box(x: Tensor, radius: int) -> Tensor:
    """Mean over a (2 radius + 1) square, counting only what lies inside the picture."""
    return F.avg_pool2d(x, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeats the last row and column until both sides are multiples of `multiple`."""
    down, right = (-side % multiple for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
