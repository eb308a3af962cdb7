#!/usr/bin/env python
"""Measures how much of ab a diffusion model explains at each timestep, and how much of that depends on L.

    python benchmarks/per_timestep.py MODEL_FOLDER --data PATH [--photos 200]

Prints the squared error of the estimate of x_0 as a share of the variance of x_0, with each photo's own L and with that
of another photo.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from Project7 import color
from Project7.checkpoints import load_model
from Project7.dataset import open_dataset
from Project7.training_config import DataConfig

TIMESTEPS = (0.999, 0.98, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1)  # as shares of the schedule


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=200)
    arguments = parser.parse_args()
    model, config = load_model(arguments.model / "best_model.pth")
    settings = DataConfig(data=arguments.data, image_size=config.data.image_size, val_limit=arguments.photos, limit=16)
    images = np.array(open_dataset(settings, seed=0)[1].images)
    L, ab = color.split(color.channels_first(images), model.ab_mean, model.ab_std)
    x_0 = model.shrink(ab)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    print("| t | signal | error / variance | with another photo's L |\n| --- | --- | --- | --- |")
    for share in TIMESTEPS:
        t = torch.full((len(L),), int(share * config.model.timesteps))
        signal, sigma = model.signal_and_noise(t)
        x_t = signal * x_0 + sigma * noise
        errors = [
            (model.x_0_hat(model.denoise(x_t, t, lightness), x_t, t) - x_0).square().mean() / x_0.square().mean()
            for lightness in (L, L.roll(1, dims=0))
        ]
        print(f"| {t[0]} | {signal[0].item():.3f} | {errors[0]:.3f} | {errors[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
