#!/usr/bin/env python
"""Measures what a colour hint does to its pixel, to its surface, and to the rest of the photo.

    python benchmarks/hints_hold.py MODEL --data PATH [--photos 200] [--size 128] [--spots 1 3 8]

The surfaces are found in the true photo (Felzenszwalb & Huttenlocher 2004). On each of the largest ones, a spot far
from the edges is given a hint whose hue is turned by a third of the colour circle from the true one, so that the model
cannot have guessed it. Distances are in Lab units of ab: at the spot; on the same surface, at least 5 % of the photo's
side away; and the change of all other surfaces relative to the answer without hints.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import color, program
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.hints import find_spots
from Project7.photo import from_array

TURN = 2 * math.pi / 3


def surfaces(rgb: np.ndarray, count: int) -> list[tuple[np.ndarray, int, int]]:
    """The largest surfaces of a photo: mask (H, W), and x and y of its innermost pixel."""
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import felzenszwalb

    side = min(rgb.shape[:2])
    labels = felzenszwalb(rgb, scale=side, sigma=0.8, min_size=side * side // 100)
    largest = np.argsort(-np.bincount(labels.ravel()))[:count]
    found = []
    for label in largest:
        inside = labels == label
        depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        found.append((inside, int(x), int(y)))
    return found


def told_colour(lab: np.ndarray) -> str:
    """Another hue at the same lightness, strong enough to be seen: Lab (3,) -> #rrggbb."""
    chroma, hue = max(25.0, float(np.hypot(*lab[1:]))), math.atan2(lab[2], lab[1]) + TURN
    told = torch.tensor([lab[0], chroma * math.cos(hue), chroma * math.sin(hue)], dtype=torch.float32)
    rgb = color.show(told[:, None, None])[:, 0, 0].tolist()
    return "#" + "".join(f"{channel:02x}" for channel in rgb)


def measure(colorizer: Colorizer, rgb: np.ndarray, count: int) -> tuple[list[float], list[float], list[float]]:
    """The errors at the spots and on their surfaces, and the changes of the other surfaces."""
    lab = color.rgb_to_lab(color.channels_first(rgb)).numpy()
    places = surfaces(rgb, count)
    hints = [(x, y, told_colour(lab[:, y, x])) for _, x, y in places]
    photo = from_array(color.channels_last(color.gray(color.channels_first(rgb))))
    without, told = (
        color.rgb_to_lab(color.channels_first(np.asarray(colorizer.colorize(photo, hints=h))))[1:].numpy()
        for h in ((), hints)
    )
    spots = find_spots(hints, rgb.shape[:2], color.lightness(color.channels_first(photo.rgb)[None]))
    at, same, others = [], [], np.ones(rgb.shape[:2], bool)
    rows, columns = np.indices(rgb.shape[:2])
    for (inside, x, y), spot in zip(places, spots, strict=True):
        off = np.hypot(*(told - np.array(spot.ab)[:, None, None]))
        at.append(float(off[y, x]))
        away = np.hypot(rows - y, columns - x)
        there = inside & (away > 0.05 * min(rgb.shape[:2])) & (away < 0.25 * min(rgb.shape[:2]))
        same += [float(off[there].mean())] if there.any() else []
        others &= ~inside
    change = np.hypot(*(told - without))[others]
    return at, same, [float(change.mean()), float((change > 10).mean())] if change.size else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder, or a .pth file")
    parser.add_argument("--data", required=True, help="photos with their colours")
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--spots", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--cache-dir", type=Path)
    arguments = parser.parse_args()
    colorizer = Colorizer.load(arguments.model, device="cpu")
    where = {"limit": arguments.photos, "cache_dir": arguments.cache_dir}
    photos = open_photos(arguments.data, size=arguments.size, **where)
    print("hints  at the spot (within 5)  same surface  other surfaces: mean change, share changed by over 10")
    for count in arguments.spots:
        found = [measure(colorizer, np.array(rgb), count) for rgb in photos.images]
        at, same = (np.concatenate([one[k] for one in found]) for k in (0, 1))
        change = np.array([one[2] for one in found if one[2]])
        print(
            f"{count:5}  {at.mean():11.1f} ({(at < 5).mean():.0%})  {same.mean():12.1f}"
            f"  {change[:, 0].mean():16.1f}, {change[:, 1].mean():.1%}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(program.run(main))
