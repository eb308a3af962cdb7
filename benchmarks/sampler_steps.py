#!/usr/bin/env python
"""Quality by the number of network evaluations, for every sampler, compared with ancestral DDPM in all timesteps.

    python benchmarks/sampler_steps.py MODEL_FOLDER --data PATH [--photos 60] [--samples 2] [--steps 1 2 3 5 10 ...]

All samplers get the same photos and the same initial noise. `energy` is the energy score; the interval is that of its
difference from ancestral DDPM in percent, by the paired bootstrap.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from Project7 import evaluate
from Project7.answer_config import SAMPLERS, EvaluateConfig
from Project7.colorize import Colorizer
from Project7.dataset import open_photos


def row(name: str, steps: int | str, found: evaluate.Measures, reference: evaluate.Measures, seconds: float) -> str:
    mean, whole = evaluate.summarize(found), evaluate.summarize(reference)["energy_score"]
    low, high = (100 * bound / whole for bound in evaluate.intervals(found, reference)["energy_score"])
    numbers = [f"{mean[key]:.2f}" for key in ("energy_score", "ab_rmse", "ab_rmse_of_mean")]
    interval = f"{100 * (mean['energy_score'] / whole - 1):+.1f} % ({low:+.1f} to {high:+.1f})"
    cells = [name, str(steps), *numbers, interval, f"{mean['colorfulness']:.1f}", f"{1000 * seconds:.0f} ms"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 50, 100])
    parser.add_argument("--ancestral", type=int, default=1000, help="steps of the ancestral DDPM to compare with")
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    photos = open_photos(arguments.data, size=arguments.size, limit=arguments.photos)
    truth = np.array(photos.images)
    colorizer = Colorizer.load(arguments.model / "best_model.pth", precision="bf16")

    def measured(sampler: str, steps: int) -> tuple[evaluate.Measures, float]:
        settings = EvaluateConfig(samples=arguments.samples, sampler=sampler, steps=steps, precision="bf16")
        answer = evaluate.answer(colorizer, photos, settings)
        return evaluate.measure(answer.pictures, truth), answer.seconds

    reference, seconds = measured("ddpm", arguments.ancestral)
    real = reference["colorfulness_truth"].mean()
    print(f"{len(truth)} photos, {arguments.samples} samples each; colorfulness of the truth {real:.1f}\n")
    heads = ("sampler", "evaluations", "energy", "ab RMSE", "ab RMSE of the mean", "energy beside ancestral")
    print(f"| {' | '.join(heads)} | colorfulness | per photo |\n|{' --- |' * 8}")
    for answer in evaluate.baselines(photos):
        found = evaluate.measure(np.repeat(answer.pictures, arguments.samples, axis=0), truth)
        print(row(answer.name, "", found, reference, 0.0), flush=True)
    print(row("ddpm (ancestral)", arguments.ancestral, reference, reference, seconds), flush=True)
    for sampler in arguments.samplers:
        for steps in arguments.steps:
            found, seconds = measured(sampler, steps)
            print(row(sampler, steps, found, reference, seconds), flush=True)


if __name__ == "__main__":
    main()
