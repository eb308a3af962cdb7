#!/usr/bin/env python
"""Measures a classification model's annealed mean by temperature, and whether its confidence is reliable.

    python benchmarks/temperature.py MODEL_FOLDER --data PATH [--photos 300] [--picture FILE.jpg]

Prints a row per temperature and per variety (several answers), and the reliability curve; draws gray | T ... | truth.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from benchmarks.stages import answers, measures
from Project7 import color
from Project7.checkpoints import load_model
from Project7.dataset import open_dataset
from Project7.sheet import sheet
from Project7.training_config import DataConfig

TEMPERATURES = (1.0, 0.77, 0.58, 0.38, 0.29, 0.14, 0.0)
CLOSE = 10.0  # Lab units within which a colour counts as right


@torch.no_grad()
def reliability(model, truth: torch.Tensor) -> list[str]:
    """The rows of the reliability table: the pixels by stated confidence, the share that is right, and their error."""
    stated, error = [], []
    for start in range(0, len(truth), 50):
        L, ab = color.split(truth[start : start + 50], model.ab_mean, model.ab_std)
        off = model.to_lab(model.colorize(L)) - model.to_lab(ab)
        stated.append(model.confidence(L).flatten())
        error.append(off.norm(dim=1).flatten())
    stated, error = torch.cat(stated), torch.cat(error)
    rows = []
    for low in np.arange(0, 1, 0.1):
        inside = (stated >= low) & (stated < low + 0.1)
        if inside.any():
            right = (error[inside] < CLOSE).float().mean()
            cells = [f"{low:.1f} to {low + 0.1:.1f}", f"{inside.float().mean():.1%}", f"{stated[inside].mean():.2f}"]
            rows.append(f"| {' | '.join(cells)} | {right:.2f} | {error[inside].mean():.1f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    model, config = load_model(arguments.model / "best_model.pth")
    settings = DataConfig(data=arguments.data, image_size=config.data.image_size, val_limit=arguments.photos, limit=16)
    images = np.array(open_dataset(settings, seed=0)[1].images)
    truth = color.channels_first(images)
    gray = color.channels_last(color.gray(truth))
    heading = "energy | ab RMSE | of the mean | dark | middle | light | PSNR | colorfulness | tint a, b |"
    print(f"| temperature | {heading}\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(f"| gray | {' | '.join(measures(gray[None], images))} |")
    columns = [gray]
    for temperature in TEMPERATURES:
        columns.append(answers(model, truth, 1, temperature=temperature)[0])
        print(f"| {temperature:g} | {' | '.join(measures(columns[-1][None], images))} |", flush=True)
    print(f"\n| variety, 4 answers | {heading}\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for variety in (0.5, 1.0, 1.5):
        found = answers(model, truth, 4, variety=variety)
        print(f"| {variety:g} | {' | '.join(measures(found, images))} |", flush=True)
    print("\n| confidence | pixels | stated | right | mean error |\n| --- | --- | --- | --- | --- |")
    print("\n".join(reliability(model, truth)))
    if arguments.picture:
        columns = [c[:12] for c in [*columns, images]]
        Image.fromarray(sheet(columns, smallest=96)).save(arguments.picture, quality=88)


if __name__ == "__main__":
    main()
