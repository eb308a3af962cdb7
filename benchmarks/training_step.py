#!/usr/bin/env python
"""Compares a training step of this toolkit with a bare loop, and with the loop that a tutorial would show.

    python benchmarks/training_step.py --data PATH [--features 64,128,256,512] [--chroma-scale 1] [--rounds 10]

ours: the whole trainer, with its loader, flips, colour conversion, EMA, checks, windows and logging. bare: the same
U-Net and loss on a batch that is in memory as L and ab, backward, clipping, AdamW. tutorial: a Dataset that decodes a
JPEG with Pillow and converts it with scikit-image, a DataLoader without workers, loss.item() and a progress line at
each step. The three take turns in one process, some steps each: compare the ratios.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from skimage.color import rgb2lab
from torch.utils.data import DataLoader, Dataset

from Project7 import color
from Project7.batch import Batch, BatchRandom
from Project7.config import RunConfig
from Project7.dataset import open_dataset
from Project7.diffusion_model import DiffusionColorizer
from Project7.image_set import ImageSet
from Project7.model_config import DiffusionConfig
from Project7.model_folder import ModelFolder
from Project7.report import Report
from Project7.trainer import make_accelerator, train
from Project7.training_config import DataConfig, TrainingConfig

STEPS = 4  # steps of each loop before the next one's turn


def ours(config: RunConfig, images: tuple[ImageSet, ImageSet], folder: Path) -> Iterator[None]:
    """The trainer and its report, as a training script runs them."""
    run = train(config, ModelFolder(folder), images, accelerator=make_accelerator(config.training))
    with contextlib.closing(run), Report(ModelFolder(folder), config, Console(file=io.StringIO())) as report:
        for progress in run:
            report.show(progress)
            yield


def bare(config: RunConfig, images: ImageSet) -> Iterator[None]:
    """Nothing but the network: every step on the same batch."""
    model, count = DiffusionColorizer(config.model), config.training.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rgb = color.channels_first(np.array(images.images[:count]))
    L, ab = color.split(rgb, model.ab_mean, model.ab_std)
    step = 0
    while True:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.mixed_precision == "bf16"):
            loss = model(Batch(L, ab, BatchRandom(0, step, 0, count, count))).loss.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        yield


class Tutorial(Dataset):
    """The usual dataset of a tutorial: each picture is decoded and converted when it is requested."""

    def __init__(self, files: list[Path], size: int):
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = Image.open(self.files[index]).convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        lab = torch.from_numpy(rgb2lab(np.array(picture))).permute(2, 0, 1).float()
        return lab[:1] / 50 - 1, lab[1:] / 110


def tutorial(config: RunConfig, files: list[Path]) -> Iterator[None]:
    model, count = DiffusionColorizer(config.model), config.training.batch_size
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loader = DataLoader(Tutorial(files, config.data.image_size), batch_size=count, shuffle=True, drop_last=True)
    step = 0
    while True:
        for L, ab in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=config.training.mixed_precision == "bf16"):
                loss = model(Batch(L, ab, BatchRandom(0, step, 0, count, count))).loss.mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            print(f"step {step} loss {loss.item():.4f}", file=io.StringIO())
            step += 1
            yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", type=lambda text: tuple(map(int, text.split(","))), default=(64, 128, 256, 512))
    parser.add_argument("--chroma-scale", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    config = RunConfig(
        model=DiffusionConfig(features=arguments.features, chroma_scale=arguments.chroma_scale),
        data=DataConfig(data=arguments.data, limit=1024, val_limit=16),
        training=TrainingConfig(
            batch_size=arguments.batch_size, mixed_precision=arguments.mixed_precision, image_interval=0, epochs=1000
        ),
    )
    images = open_dataset(config.data, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for n, picture in enumerate(images[0].images):
            files.append(Path(folder) / f"{n}.jpg")
            Image.fromarray(picture).save(files[-1], quality=95)
        loops = {
            "bare": bare(config, images[0]),
            "ours": ours(config, images, Path(folder) / "run"),
            "tutorial": tutorial(config, files),
        }
        for loop in loops.values():
            next(loop)  # allocates buffers and chooses kernels
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(arguments.rounds):
            for name, loop in loops.items():
                begin = time.perf_counter()
                for _ in range(STEPS):
                    next(loop)
                seconds[name].append((time.perf_counter() - begin) / STEPS)
        for loop in loops.values():
            loop.close()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.mixed_precision}, {config.model}")
    print("| loop | step | images/s | time, ratio to bare |\n| --- | --- | --- | --- |")
    for name, times in seconds.items():
        ratio = statistics.median(t / b for t, b in zip(times, seconds["bare"], strict=True))
        middle = statistics.median(times)
        print(f"| {name} | {1000 * middle:.0f} ms | {arguments.batch_size / middle:.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
