#!/usr/bin/env python
"""Measures the same held-out photos after each stage of a training: a table, and a picture.

    python benchmarks/stages.py MODEL_FOLDER ... --data PATH [--photos 200] [--samples 2] [--picture FILE.jpg]

All models get the same noise. The errors of one sample are split by the lightness of the pixel (dark: L below 33,
light: L above 67).
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from Project7 import color
from Project7.checkpoints import load_model
from Project7.dataset import open_dataset
from Project7.metrics import ab_rmse, colorfulness, energy_score, psnr
from Project7.sheet import sheet
from Project7.training_config import DataConfig

BANDS = {"dark": (0, 33), "middle": (33, 67), "light": (67, 101)}


@torch.no_grad()
def answers(model, truth: torch.Tensor, samples: int, **options) -> np.ndarray:
    """(K, B, H, W, 3) uint8: `samples` answers for each photo of `truth` (B, 3, H, W)."""
    rows = []
    for seed in range(samples):
        parts = []
        for start in range(0, len(truth), 50):
            L, _ = color.split(truth[start : start + 50], model.ab_mean, model.ab_std)
            noise = [torch.Generator().manual_seed(seed * 10_000 + start + i) for i in range(len(L))]
            with torch.autocast("cpu", torch.bfloat16):
                ab = model.colorize(L, generator=noise, **options)
            parts.append(color.channels_last(color.show(color.join(L, ab, model.ab_mean, model.ab_std))))
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def measures(pictures: np.ndarray, images: np.ndarray) -> list[str]:
    """The cells of one row: pictures (K, B, H, W, 3), truth (B, H, W, 3)."""
    lab = color.rgb_to_lab(color.channels_first(images)).numpy()
    ab = np.stack([color.rgb_to_lab(color.channels_first(p))[:, 1:].numpy() for p in pictures])
    error = np.square(ab[0] - lab[:, 1:]).mean(axis=1)  # (B, H, W)
    bands = [error[(lab[:, 0] >= low) & (lab[:, 0] < high)].mean() ** 0.5 for low, high in BANDS.values()]
    tint = (ab[0] - lab[:, 1:]).mean(axis=(0, 2, 3))
    return [
        f"{energy_score(ab, lab[:, 1:]).mean():.2f}",
        f"{ab_rmse(ab[0], lab[:, 1:]):.2f}",
        f"{ab_rmse(ab.mean(0), lab[:, 1:]):.2f}",
        *(f"{band:.2f}" for band in bands),
        f"{psnr(pictures[0], images).mean():.2f}",
        f"{colorfulness(pictures[0]).mean():.1f}",
        f"{tint[0]:+.1f}, {tint[1]:+.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    settings = DataConfig(data=arguments.data, val_limit=arguments.photos, limit=16)
    images = np.array(open_dataset(settings, seed=0)[1].images)
    truth = color.channels_first(images)
    gray = color.channels_last(color.gray(truth))
    print(
        "| model | energy | ab RMSE | of the mean | dark | middle | light | PSNR | colorfulness | tint a, b |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    print(f"| truth | | | | | | | | {colorfulness(images).mean():.1f} | |")
    print(f"| gray | {' | '.join(measures(gray[None], images))} |")
    columns = [gray]
    for folder in arguments.models:
        found = answers(load_model(folder / "best_model.pth")[0], truth, arguments.samples)
        print(f"| {folder.name} | {' | '.join(measures(found, images))} |", flush=True)
        columns.append(found[0])
    if arguments.picture:
        columns.append(images)
        halves = [sheet([column[part] for column in columns], smallest=96) for part in (slice(0, 10), slice(10, 20))]
        gap = np.full((halves[0].shape[0], 16, 3), 255, np.uint8)
        Image.fromarray(np.concatenate([halves[0], gap, halves[1]], axis=1)).save(arguments.picture, quality=88)


if __name__ == "__main__":
    main()
