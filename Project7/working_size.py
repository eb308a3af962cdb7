"""The sizes of the pictures that a network sees of a photo: the working picture, and the view of an encoder."""

import math

_LONGEST = 4  # the sides of what a network sees differ at most by this factor: a 65,500 x 1 strip stays cheap
_AREA = 2.0  # training squares: a larger working picture is unlike any, and a panorama becomes a rainbow
# Of the size in training: for smaller photos. With an encoder a cell of chroma is many pixels wide, and a smaller
# picture would have too few cells for its colours (benchmarks/RESULTS.md, "Small photos").
_SMALLEST, _SMALLEST_SEEN = 1 / 2, 3 / 4


def working_shape(
    size: tuple[int, ...], trained: int, working_size: int | None = None, *, sees: bool
) -> tuple[int, int]:
    """The shape of the picture of a photo (H, W) that the network sees; `working_size` is its short side.

    The default is the size in training. A smaller photo is enlarged no more than it needs: to half of that size; for a
    model with an encoder (`sees`) to three quarters, or, if it is larger than these, to all of it, because a grid of
    cells between the two would be padded.
    """
    whole = working_size or trained
    smallest = math.ceil((_SMALLEST_SEEN if sees else _SMALLEST) * whole)
    largest = whole if sees and min(size) > smallest else min(whole, *size)
    short = working_size or max(smallest, largest)
    scale = min(short / min(size), _LONGEST * whole / max(size))
    if sees and working_size is None:
        scale = min(scale, whole * math.sqrt(_AREA / (size[0] * size[1])))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def view_shape(photo: tuple[int, ...], size: int) -> tuple[int, int]:
    """The sides of the view of a photo (H, W): its short side is about `size`, both are 32 n + 1."""
    scale = min(size / min(photo), _LONGEST * size / max(photo))
    height, width = (32 * max(1, round(side * scale / 32)) + 1 for side in photo)
    return height, width
