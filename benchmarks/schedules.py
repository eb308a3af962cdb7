#!/usr/bin/env python
"""Compares prediction types, noise schedules and scales of ab, with equal networks, images and steps; held-out photos.

python benchmarks/schedules.py --data PATH [--steps 170] [--only v-zsnr ...]
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks.stages import answers
from Project7 import color
from Project7.config import RunConfig
from Project7.dataset import open_dataset
from Project7.metrics import ab_rmse, colorfulness, energy_score, psnr
from Project7.model_config import DiffusionConfig
from Project7.model_folder import ModelFolder
from Project7.trainer import Run, make_accelerator
from Project7.training_config import DataConfig, TrainingConfig

CLASSIC_SCALE = {"ab_mean": (0.0, 0.0), "ab_std": (110.0, 110.0)}
UNIT_SCALE = {"ab_std": (12.6, 17.7)}
CHOICES = {
    "v-zsnr": UNIT_SCALE,
    "v-shift2": {**UNIT_SCALE, "noise_shift": 2.0},
    "v-shift3": {**UNIT_SCALE, "noise_shift": 3.0},
    "v-shift6": {**UNIT_SCALE, "noise_shift": 6.0},
    "v-shift10": {**UNIT_SCALE, "noise_shift": 10.0},
    "v-zsnr-third": {"ab_std": (38.0, 53.0)},
    "v-zsnr-minsnr": {**UNIT_SCALE, "min_snr_gamma": 5.0},
    "v-zsnr-ab110": CLASSIC_SCALE,
    "v-cosine": {**UNIT_SCALE, "zero_terminal_snr": False, "beta_schedule": "squaredcos_cap_v2"},
    "eps-linear": {**UNIT_SCALE, "prediction_type": "epsilon"},
    "eps-linear-third": {"ab_std": (38.0, 53.0), "prediction_type": "epsilon"},
    "eps-linear-minsnr": {**UNIT_SCALE, "prediction_type": "epsilon", "min_snr_gamma": 5.0},
    "eps-linear-ab110": {"prediction_type": "epsilon", **CLASSIC_SCALE},
}


def train_model(choice: dict, images, *, steps: int, features: tuple[int, ...], learning_rate: float):
    """The EMA model after `steps` steps of batch 64."""
    epochs = -(-steps * 64 // len(images[0].images))
    config = RunConfig(
        model=DiffusionConfig(features=features, chroma_scale=2, **choice),
        training=TrainingConfig(
            batch_size=64,
            warmup_steps=30,
            epochs=epochs,
            learning_rate=learning_rate,
            ema_decay=0.99,
            mixed_precision="bf16",
            image_interval=0,
            lr_schedule="cosine",
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(config, ModelFolder(Path(folder) / "m"), images, make_accelerator(config.training), None)
        run.state.schedule_steps = steps
        with contextlib.closing(run.progress()) as progress:
            next(step for step in progress if step.step == steps)
    return run.ema


@torch.no_grad()
def judge(model, truth: torch.Tensor, *, sampler: str = "ddim", steps: int = 20, samples: int = 2) -> dict[str, float]:
    """Measures of `samples` answers for each of the photos `truth` (B, 3, H, W) uint8."""
    pictures = answers(model, truth, samples, sampler=sampler, steps=steps)
    found = np.stack([color.rgb_to_lab(color.channels_first(p))[:, 1:].numpy() for p in pictures])
    true_ab, true_rgb = color.rgb_to_lab(truth)[:, 1:].numpy(), color.channels_last(truth)
    return {
        "energy": float(energy_score(found, true_ab).mean()) if samples > 1 else float("nan"),
        "ab_rmse": ab_rmse(found[0], true_ab),
        "ab_rmse_of_mean": ab_rmse(found.mean(0), true_ab),
        "psnr": float(psnr(pictures[0], true_rgb).mean()),
        "colorfulness": float(colorfulness(pictures[0]).mean()),
        "tint_a": float((found[0][:, 0] - true_ab[:, 0]).mean()),
        "tint_b": float((found[0][:, 1] - true_ab[:, 1]).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=170)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--features", default="24,48,96")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--samplers", nargs="+", default=["ddim"])
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    arguments = parser.parse_args()
    images = open_dataset(DataConfig(data=arguments.data, val_limit=arguments.photos), seed=0)
    truth = color.channels_first(np.array(images[1].images))
    features = tuple(map(int, arguments.features.split(",")))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; truth: colorfulness "
          f"{colorfulness(np.array(images[1].images)).mean():.1f}")  # fmt: skip
    print("| choice | energy | ab RMSE | ab RMSE of the mean | PSNR | colorfulness | tint a, b | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.only:
        start = time.perf_counter()
        model = train_model(
            CHOICES[name], images, steps=arguments.steps, features=features, learning_rate=arguments.learning_rate
        )
        for sampler in arguments.samplers:
            m = judge(model, truth, sampler=sampler)
            cells = [f"{m[key]:.2f}" for key in ("energy", "ab_rmse", "ab_rmse_of_mean", "psnr", "colorfulness")]
            tint, seconds = f"{m['tint_a']:+.1f}, {m['tint_b']:+.1f}", time.perf_counter() - start
            print(f"| {name}, {sampler} | {' | '.join(cells)} | {tint} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
