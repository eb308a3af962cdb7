#!/usr/bin/env python
"""Does the doctor find what is wrong, and nothing in healthy runs? Small runs, each with one bad setting or with none.

    python benchmarks/ailments.py --data PATH [--only NAME ...] [--seeds 2]

Prints one row per run: what was provoked, what the doctor found in any epoch or at the end, whether that is right.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses

import numpy as np
import torch
from rich.console import Console

from Project7 import color, health
from Project7.config import RunConfig
from Project7.dataset import open_dataset
from Project7.loss_config import LossConfig
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.preparation import starting_weights
from Project7.trainer import Collapsed, Run, make_accelerator
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

SIZE, PHOTOS = 32, 1000
TRAINING = {"batch_size": 8, "learning_rate": 1e-3, "epochs": 10, "image_interval": 0, "ema_decay": 0.99}
REGRESSION = RegressionConfig(model_channels=8, channel_multipliers=(1, 2, 4))
DIFFUSION = DiffusionConfig(features=(16, 32), chroma_scale=2)
CLASSES = ClassificationConfig(width=8, blocks=(1, 1, 1, 1), bins=64)
NO_NETWORK = {"perceptual_net": "random"}


def run_config(model=REGRESSION, *, loss=None, objective=None, **training) -> RunConfig:
    """A small run. loss, objective: settings as a dict."""
    loss = LossConfig(**NO_NETWORK, **loss) if loss is not None else None
    objective = ObjectiveConfig(**NO_NETWORK, **objective) if objective is not None else None
    parts = {"loss": loss, "objective": objective, "training": TrainingConfig(**TRAINING | training)}
    return RunConfig(model=model, data=DataConfig(image_size=SIZE, limit=PHOTOS), **parts)


def tinted(images: np.ndarray, a: float, b: float, *, chroma: float = 1.0) -> np.ndarray:
    """Photos whose ab is multiplied by `chroma` and shifted, as uint8."""
    lab = color.rgb_to_lab(color.channels_first(images))
    lab[:, 1:] = lab[:, 1:] * chroma + torch.tensor([a, b])[:, None, None]
    return color.channels_last(color.show(lab))


WEIGHTED, ENHANCED = {"loss": "weighted"}, {"loss": "enhanced"}
# what is provoked: (the ailments of which the doctor must find one, the run, the change of the training photos)
SICK = {
    "learning rate 500 times too high": (
        {"oscillation", "divergence", "NaN", "constant output"},
        run_config(learning_rate=0.5),
    ),
    "learning rate 50 times too high": (
        {"oscillation", "divergence", "NaN", "exploding gradients", "plateau"},
        run_config(DIFFUSION, learning_rate=0.05),
    ),
    "no clipping, learning rate 1": (
        {"NaN", "divergence", "exploding gradients", "oscillation", "constant output"},
        run_config(learning_rate=1.0, gradient_clip=1e9),
    ),
    "learning rate 10,000 times too low": (
        {"plateau", "constant output"},
        run_config(loss=WEIGHTED, learning_rate=1e-7, epochs=10),
    ),
    "ab weight 0": ({"unbalanced terms"}, run_config(loss={**ENHANCED, "ab_weight": 0})),
    "saturation alone": (
        {"unbalanced terms", "one tint"},
        run_config(loss={**ENHANCED, "ab_weight": 0, "perceptual_weight": 0, "saturation_weight": 1}),
    ),
    "perceptual weight 50": ({"unbalanced terms"}, run_config(loss={"perceptual_weight": 50})),
    "lightness weight 50": (
        {"unbalanced terms"},
        run_config(REGRESSION.model_copy(update={"outputs": "lab"}), loss={**ENHANCED, "l_weight": 50}),
    ),
    "gray photos": ({"gray data"}, run_config(loss=WEIGHTED, epochs=2), lambda x: tinted(x, 0, 0, chroma=0)),
    "sepia photos": ({"sepia bias", "one tint"}, run_config(loss=WEIGHTED), lambda x: tinted(x, 8, 25, chroma=0.3)),
    "purple photos": ({"purple bias", "one tint"}, run_config(loss=WEIGHTED), lambda x: tinted(x, 20, -25, chroma=0.3)),
    "vivid photos": (
        {"over-saturation"},
        run_config(DIFFUSION, epochs=12),
        lambda x: tinted(x, 0, 0, chroma=3),
    ),
    "60 photos": ({"overfitting"}, run_config(epochs=120), lambda x: x[:60]),
    "discriminator 10 times too fast": (
        {"discriminator has won", "unbalanced terms"},
        run_config(
            objective={
                "gan": True,
                "gan_width": 16,
                "perceptual_weight": 0,
                "gan_learning_rate": 2e-3,
                "gan_start": 0,
                "image_share": 1.0,
                "adversarial_weight": 0.001,
            },
        ),
    ),
}
HEALTHY = {
    "train_diffusion.py": run_config(DIFFUSION),
    "train_diffusion_v2.py": run_config(DIFFUSION, objective={"perceptual_weight": 0.1}),
    "train_diffusion_v2.py --gan": run_config(DIFFUSION, objective={"gan": True, "gan_start": 200, "gan_width": 16}),
    "train_classification.py": run_config(CLASSES),
    "train_colorization_simple.py": run_config(loss={}),
    "train_colorization_simple.py --loss weighted": run_config(loss=WEIGHTED),
    "train_colorization_simple.py --loss enhanced": run_config(loss=ENHANCED),
    "train_image_restoration.py": run_config(REGRESSION.model_copy(update={"outputs": "lab"}), loss=ENHANCED),
}


def examined(config: RunConfig, images, change=None) -> tuple[set[str], str]:
    """Trains, and returns the ailments that were found in any epoch or at the end, and how the run ended."""
    training = images[0]
    if change:
        training = dataclasses.replace(training, images=change(np.array(training.images)))
    start = starting_weights(config, (training, images[1]), Console(quiet=True))
    with tempfile.TemporaryDirectory() as folder:
        parts = (training, images[1])
        run = Run(config, ModelFolder(Path(folder) / "run"), parts, make_accelerator(config.training), None, start)
        ending = f"{config.training.epochs} epochs"
        try:
            for _ in run.progress():
                pass
        except Collapsed as failure:
            ending = str(failure).split(" (")[0]
    record = health.record_of("run", config, run.history, run.state.windows)
    found = {f["ailment"] for entry in run.history for f in entry["findings"]}
    found |= {f.ailment for f in health.diagnose(record)} | ({"NaN"} if "finite" in ending else set())
    return found, ending


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", nargs="*", help="parts of the names of runs")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds for each healthy run")
    arguments = parser.parse_args()
    settings = DataConfig(data=arguments.data, image_size=SIZE, limit=PHOTOS, val_limit=64)
    images = open_dataset(settings, seed=0)
    cases = [(name, *case) for name, case in SICK.items()]
    for seed in range(arguments.seeds):
        for name, config in HEALTHY.items():
            training = config.training.model_copy(update={"seed": seed})
            cases.append((f"{name}, seed {seed}", set(), config.model_copy(update={"training": training})))
    print("| run | must be found | found | right | end |\n| --- | --- | --- | --- | --- |")
    for name, expected, config, *change in cases:
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        found, ending = examined(config, images, *change)
        right = bool(found & expected) if expected else not found
        cells = (name, " or ".join(sorted(expected)) or "nothing", ", ".join(sorted(found)) or "nothing")
        print(f"| {' | '.join(cells)} | {'yes' if right else '**no**'} | {ending} |", flush=True)


if __name__ == "__main__":
    main()
