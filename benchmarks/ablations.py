#!/usr/bin/env python
"""Trains a small model once as it is and once with each part left out or changed, for the same time, and compares them.

    python benchmarks/ablations.py train --data PATH --to FOLDER [--minutes 20] [--limit 20000] [--only NAME ...]
    python benchmarks/ablations.py measure --data PATH --to FOLDER [--photos 1000] [--only NAME ...]

`--minutes` are processor minutes of the training process, counted from its first step: photos that were decoded before
and features of the encoder that were cached before are not counted. Set OMP_NUM_THREADS=1 for minutes of one core.
What is there already is not trained again.

`measure` takes one sample without guidance of each, so that nothing but the training differs; then what can be read out
of the first one: guidance, several answers, and a warm start, in which sampling begins at a later step from the head's
mean with the noise of that step. All get the same noise.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks.choosing import classes, pictures, readouts
from Project7 import color, metrics, program
from Project7.colorize import Colorizer
from Project7.dataset import open_photos
from Project7.evaluate import generator
from Project7.feature_networks import load_network
from Project7.frechet import feed, find_judge, frechet
from Project7.samplers import make_sampler, scalable_noise

COMMON = {
    "--image-size": 64,
    "--features": "64,128,192",
    "--encoder-size": 128,
    "--head-entropy": None,
    "--cache-features": None,
    "--no-mirror": None,
    "--batch-size": 64,
    "--mixed-precision": "bf16",
    "--learning-rate": 5e-4,
    "--weight-decay": 0.05,
    "--ema-decay": 0.998,
    "--epochs": 100,
    "--val-limit": 200,
    "--image-interval": 0,
}
LEFT_OUT = dict.fromkeys(("--encoder-size", "--head-entropy", "--cache-features"), "")
# the name of a row -> what differs from COMMON; "" takes a flag away
VARIANTS: dict[str, dict] = {
    "as it is": {},
    "no encoder": LEFT_OUT | {"--encoder": "none", "--head": "none"},
    "encoder sees 224 px": {"--encoder-size": 224},
    "head predicts the mean": {"--head": "mean", "--head-entropy": ""},
    "no head": {"--head": "none", "--head-entropy": ""},
    "head without its entropy": {"--head-entropy": ""},
    "no shift of the noise": {"--noise-shift": 1},
    "chroma on 8 x 8 cells": {"--chroma-scale": 8},
}


def flags(variant: dict) -> list[str]:
    found = COMMON | variant
    return [str(part) for flag, value in found.items() if value != "" for part in (flag, value) if part is not None]


def train(name: str, arguments: argparse.Namespace) -> None:
    """Trains one variant and stops it, which saves it, when its time has passed."""
    folder = arguments.to / name.replace(" ", "-")
    if (folder / "last_model.pth").exists():
        return
    command = [sys.executable, str(ROOT / "Project7/train_diffusion.py"), "--models-dir", str(arguments.to)]
    command += ["--name", folder.name, "--data", arguments.data, "--limit", str(arguments.limit), "--yes"]
    process = subprocess.Popen([*command, *flags(VARIANTS[name])], stdout=subprocess.PIPE, text=True)
    begun = None
    for line in process.stdout:
        print(f"{name}: {line}", end="", flush=True)
        if line.startswith("device"):  # the last line before the first step
            begun = used(process)
            break
    while process.poll() is None and used(process) - begun < arguments.minutes * 60:
        time.sleep(1)
    process.terminate()
    print(process.communicate()[0], flush=True)


def used(process: subprocess.Popen) -> float:
    """Processor seconds of a process, its finished children included."""
    return sum(psutil.Process(process.pid).cpu_times()[:4])


# -- measuring -------------------------------------------------------------------------------------------------------


class Ruler:
    """The photos of a comparison, and one line of the table for an answer to them."""

    def __init__(self, data: str, count: int):
        self.photos = open_photos(data, size=64, split="val", limit=count)
        self.truth = np.array(self.photos.images)
        self.L, self.ab = color.rgb_to_lab(color.channels_first(self.truth)).split([1, 2], dim=1)
        self.judge, self.network = load_network("judge"), find_judge()
        feed(self.network.metric, self.truth, real=True)
        self.seen = classes(self.judge, self.truth)
        print(f"{count} photos, colorfulness of the truth {metrics.colorfulness(self.truth).mean():.1f}")
        print("| | images | unexplained | PSNR | ab RMSE | colorfulness | Fréchet | class |\n|" + " --- |" * 8)

    def line(self, name: str, colorizer: Colorizer, ab: torch.Tensor, more: tuple[str, str] = ("", "")) -> None:
        """ab: (N, 2, h, w) in Lab units, on the chroma grid."""
        rgb = pictures(colorizer, self.photos, color.lightness(color.channels_first(self.truth)), ab)
        found = color.rgb_to_lab(color.channels_first(rgb))[:, 1:].numpy()
        cells = [
            f"{metrics.psnr(rgb, self.truth).mean():.2f}",
            f"{metrics.ab_rmse(found, self.ab.numpy()):.2f}",
            f"{metrics.colorfulness(rgb).mean():.1f}",
            f"{frechet(self.network, rgb):.2f}",
            f"{(classes(self.judge, rgb) == self.seen).float().mean():.3f}",
        ]
        print(f"| {' | '.join([name, *more, *cells])} |", flush=True)


class Drawn:
    """The context of all photos for one model, in batches, and samples from it."""

    def __init__(self, colorizer: Colorizer, ruler: Ruler, batch: int = 50):
        self.model, self.parts = colorizer.model, []
        for start in range(0, len(ruler.truth), batch):
            L = color.lightness(color.channels_first(ruler.truth[start : start + batch]))
            self.parts.append((L, colorizer.look(list(L.split(1))), ruler.photos.names[start : start + batch]))

    def samples(self, count: int = 1, **how) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Samples (N, K, 2, h, w) in Lab units; the head's mean, and the log-likelihoods (N, K), if there is a head."""
        found = []
        for L, maps, names in self.parts:
            noise = [generator(0, 0, name) for name in names]
            ab, context = self.model.draw(L, noise, None, maps, candidates=count, **how)
            found.append((self.model.to_lab(ab), *self.told(self.model.to_lab(ab), context.answer)))
        return tuple(None if part[0] is None else torch.cat(part) for part in zip(*found, strict=True))

    def told(self, ab: torch.Tensor, answer: torch.Tensor | None):
        if answer is None:
            return None, None
        head = self.model.head
        if not hasattr(head, "log_likelihood"):
            return head.mean(answer), None
        return head.mean(answer), torch.stack([head.log_likelihood(answer, one) for one in ab.unbind(1)], dim=1)

    def warm(self, skipped: int, steps: int = 10) -> torch.Tensor:
        """Samples (N, 2, h, w) that start at step number `skipped` from the head's mean."""
        model, found = self.model, []
        for L, maps, names in self.parts:
            context = model.context(L, maps, model.no_hints(L) if model.config.hints else None)
            mean = model.from_lab(model.head.mean(context.answer))
            sampler = make_sampler("dpm++", model.noise_scheduler, steps=steps)
            sampler.set_begin_index(skipped)
            noise = scalable_noise(mean.shape, [generator(0, 0, name) for name in names])
            x_t = sampler.add_noise(mean, noise, sampler.timesteps[skipped].expand(len(L)))
            predict = model.guided(L, None, context.known, None, 1.0)
            for t in sampler.timesteps[skipped:]:
                x_t = sampler.step(predict(x_t, t), t, x_t).prev_sample
            found.append(model.to_lab(x_t))
        return torch.cat(found)


@torch.no_grad()
def measure(arguments: argparse.Namespace) -> None:
    ruler = Ruler(arguments.data, arguments.photos)
    ruler.line("gray", first(arguments), torch.zeros(len(ruler.truth), 2, 16, 16))
    for name in arguments.only:
        folder = arguments.to / name.replace(" ", "-")
        if not (folder / "last_model.pth").exists():
            continue
        colorizer = Colorizer.load(folder / "last_model.pth", device="cpu")
        steps = torch.load(folder / "last_model.pth", weights_only=True, mmap=True)["progress"]["step"]
        samples, mean, _ = Drawn(colorizer, ruler).samples()
        unexplained = "" if mean is None else f"{explained(mean, ruler.ab):.3f}"
        ruler.line(name, colorizer, samples[:, 0], (f"{steps * COMMON['--batch-size']:,}", unexplained))
    read_out(first(arguments), ruler)


def first(arguments: argparse.Namespace) -> Colorizer:
    return Colorizer.load(arguments.to / next(iter(VARIANTS)).replace(" ", "-") / "last_model.pth", device="cpu")


def explained(mean: torch.Tensor, ab: torch.Tensor) -> float:
    """The share of the variance of the true ab, on the grid of `mean`, that is left about it."""
    truth = torch.nn.functional.adaptive_avg_pool2d(ab, mean.shape[-2:])
    return ((mean - truth).square().mean() / truth.var(dim=(0, 2, 3)).mean()).item()


def read_out(colorizer: Colorizer, ruler: Ruler) -> None:
    drawn = Drawn(colorizer, ruler)
    for guidance in (2.0, 3.0, 4.0):
        ruler.line(f"guidance {guidance:g}", colorizer, drawn.samples(guidance=guidance)[0][:, 0])
    found = readouts(*drawn.samples(4, guidance=3.0))
    for name in (
        "agreement",
        "likelihood",
        "likelihood, calm 0.5, with the head",
        "mean of the samples",
        "mean of the head",
    ):
        ruler.line(f"guidance 3, four: {name}", colorizer, found[name])
    for skipped in (2, 4, 6):
        ruler.line(f"warm start, {skipped} of 10 steps left out", colorizer, drawn.warm(skipped))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("train", "measure"))
    parser.add_argument("--data", required=True, help="Tiny ImageNet")
    parser.add_argument("--to", type=Path, required=True, help="folder for the models")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.job == "measure":
        measure(arguments)
    for name in arguments.only if arguments.job == "train" else ():
        train(name, arguments)


if __name__ == "__main__":
    sys.exit(program.run(main))
