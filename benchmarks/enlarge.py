#!/usr/bin/env python
"""Measures how well chroma is enlarged: true ab of real photos is shrunk, and enlarged by each method; RMSE in Lab.

python benchmarks/enlarge.py --photos imagenet-sample-256.zip
"""

import argparse
import io
import sys
import zipfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F

from Project7 import color
from Project7.guided_filter import enlarge
from Project7.photo import open_photo

METHODS = {
    "nearest": lambda ab, small, L: F.interpolate(ab, L.shape[-2:], mode="nearest"),
    "bilinear": lambda ab, small, L: F.interpolate(ab, L.shape[-2:], mode="bilinear"),
    "bicubic": lambda ab, small, L: F.interpolate(ab, L.shape[-2:], mode="bicubic"),
    "guided_filter.enlarge": enlarge,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="a zip of photos")
    parser.add_argument("--every", type=int, default=18, help="take every n-th photo")
    arguments = parser.parse_args()
    mean, std = torch.zeros(2), torch.ones(2)
    errors: dict[tuple[str, int], list[torch.Tensor]] = {}
    with zipfile.ZipFile(arguments.photos) as archive:
        for name in sorted(archive.namelist())[:: arguments.every]:
            rgb = open_photo(io.BytesIO(archive.read(name))).rgb
            rgb = rgb[: rgb.shape[0] // 8 * 8, : rgb.shape[1] // 8 * 8]
            L, ab = color.split(color.channels_first(rgb)[None], mean, std)
            for factor in (2, 4, 8):
                size = [side // factor for side in L.shape[-2:]]
                small_L, small_ab = (F.interpolate(x, size, mode="bilinear", antialias=True) for x in (L, ab))
                for method, enlarged in METHODS.items():
                    error = (enlarged(small_ab, small_L, L) - ab).square().mean()
                    errors.setdefault((method, factor), []).append(error)
    print(f"{len(next(iter(errors.values())))} photos")
    print("| method | 2 times | 4 times | 8 times |\n| --- | --- | --- | --- |")
    for method in METHODS:
        row = [torch.stack(errors[method, factor]).mean().sqrt().item() for factor in (2, 4, 8)]
        print(f"| {method} | " + " | ".join(f"{value:.2f}" for value in row) + " |")


if __name__ == "__main__":
    main()
