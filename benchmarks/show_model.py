#!/usr/bin/env python
"""Shows a trained diffusion model on held-out photos: a grid, its loss curve, and the measures of every sampler.

    python benchmarks/show_model.py MODEL_FOLDER --data PATH [--photos 100] [--samples 3] [--output benchmarks]

Writes <name>-grid.jpg (gray | three seeds | truth) and <name>-loss.png to the output folder, and prints the table.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.schedules import judge
from Project7 import color
from Project7.checkpoints import load_model
from Project7.dataset import open_dataset
from Project7.metrics import ab_rmse, colorfulness, energy_score, psnr
from Project7.photo import save_png
from Project7.sheet import sheet
from Project7.training_config import DataConfig

SAMPLERS = [("ddim", 5), ("ddim", 10), ("ddim", 20), ("dpm++", 5), ("dpm++", 10), ("dpm++", 20), ("unipc", 10),
            ("unipc", 20), ("ddpm", 20)]  # fmt: skip


def draw_grid(model, truth: torch.Tensor, path: Path, *, sampler: str, steps: int) -> None:
    """Draws 16 photos in two columns of gray | seed 0 | seed 1 | seed 2 | truth."""
    L, _ = color.split(truth, model.ab_mean, model.ab_std)
    columns = [color.gray(truth)]
    for seed in range(3):
        noise = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(L))]
        ab = model.colorize(L, generator=noise, sampler=sampler, steps=steps)
        columns.append(color.show(color.join(L, ab, model.ab_mean, model.ab_std)))
    pictures = [color.channels_last(column) for column in [*columns, truth]]
    halves = [sheet([column[part] for column in pictures], smallest=96) for part in (slice(0, 8), slice(8, 16))]
    page = np.concatenate([halves[0], np.full((halves[0].shape[0], 16, 3), 255, np.uint8), halves[1]], axis=1)
    Image.fromarray(page).save(path, quality=90, subsampling=0)


def draw_curve(history: list[dict], path: Path) -> None:
    """Plots the training and validation loss by epoch, with Pillow alone."""
    width, height, margin = 480, 240, 40
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    losses = [entry[key] for entry in history for key in ("train_loss", "val_loss")]
    low, high = min(losses), max(losses)
    x = lambda n: margin + (width - 2 * margin) * n / max(1, len(history) - 1)  # noqa: E731
    y = lambda loss: height - margin - (height - 2 * margin) * (loss - low) / max(1e-9, high - low)  # noqa: E731
    draw.line([margin, margin, margin, height - margin, width - margin, height - margin], fill="gray")
    for key, colour, place in (("train_loss", "#888888", 10), ("val_loss", "#c03020", 22)):
        points = [(x(n), y(entry[key])) for n, entry in enumerate(history)]
        draw.line(points, fill=colour, width=2)
        draw.text((width - 140, place), key.replace("_", " "), fill=colour)
    for loss in (low, high):
        draw.text((2, y(loss) - 6), f"{loss:.3f}", fill="black")
    for n, entry in enumerate(history):
        draw.text((x(n) - 3, height - margin + 6), str(entry["epoch"]), fill="black")
    draw.text((width // 2 - 15, height - 16), "epoch", fill="black")
    save_png(path, np.asarray(canvas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    model, config = load_model(arguments.model / "best_model.pth")
    settings = DataConfig(data=arguments.data, image_size=config.data.image_size, val_limit=arguments.photos, limit=16)
    images = np.array(open_dataset(settings, seed=0)[1].images)
    truth = color.channels_first(images)
    draw_grid(model, truth[:16], arguments.output / f"{arguments.model.name}-grid.jpg", sampler="dpm++", steps=20)
    history = json.loads((arguments.model / "training_history.json").read_text())
    draw_curve(history, arguments.output / f"{arguments.model.name}-loss.png")

    true_ab = color.rgb_to_lab(truth)[:, 1:].numpy()
    gray = color.channels_last(color.gray(truth))
    print(
        "| sampler | steps | energy | ab RMSE | ab RMSE of the mean | PSNR | colorfulness | tint a, b | ms per photo |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(f"| truth | | | | | | {colorfulness(images).mean():.1f} | | |")
    error = energy_score(np.zeros((1, *true_ab.shape)), true_ab).mean()
    print(
        f"| gray | | {error:.2f} | {ab_rmse(0 * true_ab, true_ab):.2f} | | {psnr(gray, images).mean():.2f} | 0.0 | | |"
    )
    for sampler, steps in SAMPLERS:
        start = time.perf_counter()
        m = judge(model, truth, sampler=sampler, steps=steps, samples=arguments.samples)
        took = (time.perf_counter() - start) * 1000 / (len(truth) * arguments.samples)
        print(
            f"| {sampler} | {steps} | {m['energy']:.2f} | {m['ab_rmse']:.2f} | {m['ab_rmse_of_mean']:.2f} | "
            f"{m['psnr']:.2f} "
            f"| {m['colorfulness']:.1f} | {m['tint_a']:+.1f}, {m['tint_b']:+.1f} | {took:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
