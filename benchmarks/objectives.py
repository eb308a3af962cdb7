#!/usr/bin/env python
"""What do the perceptual and the adversarial term cost on top of the squared error, in time and in memory?

python benchmarks/objectives.py [--rounds 8] [--batch-size 16] [--image-size 64] [--features 64,128,256,512]

Steps of all objectives take turns in one process, so that what else the machine does falls on all alike: read the
ratios. Peak memory is measured in a process of its own for each.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from Project7.config import DiffusionConfig, ObjectiveConfig, RunConfig, TrainingConfig
from Project7.dataset import ImageSet
from Project7.model_folder import ModelFolder
from Project7.trainer import Run, make_accelerator

CRITIC = {"gan": True, "gan_start": 0, "gan_warmup": 0}
OBJECTIVES = {
    "squared error": None,
    "+ perceptual": {},
    "+ PatchGAN": {"perceptual_weight": 0.0, **CRITIC},
    "+ perceptual + PatchGAN": CRITIC,
    "+ perceptual at every timestep": {"image_share": 1.0},
    "+ PatchGAN at every timestep": {"perceptual_weight": 0.0, "image_share": 1.0, **CRITIC},
}


def make_run(name: str, arguments: argparse.Namespace) -> Run:
    """A run that is ready for its first step, on random pictures: their content does not change the time."""
    settings = OBJECTIVES[name]
    config = RunConfig(
        model=DiffusionConfig(features=arguments.features, chroma_scale=arguments.chroma_scale),
        training=TrainingConfig(batch_size=arguments.batch_size, mixed_precision=arguments.mixed_precision),
        objective=None if settings is None else ObjectiveConfig(perceptual_net="random", **settings),
    )
    size = (arguments.batch_size * 4, arguments.image_size, arguments.image_size, 3)
    pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    images = ImageSet(pictures, ("",) * len(pictures), ("",) * len(pictures), "", None)
    run = Run(config, ModelFolder(Path("unused")), (images, images), make_accelerator(config.training), None)
    run.objective.begin(0)
    run.state.critic_start, run.state.schedule_steps = 0, 10_000
    return run


def step(run: Run) -> float:
    """Seconds of one optimizer step."""
    count = run.settings.batch_size
    rgb = torch.from_numpy(np.array(run.training.images[:count]))
    start = time.perf_counter()
    run.state.position = 0
    run.optimizer_step(count, np.arange(count), rgb)
    if run.accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(name: str, arguments: argparse.Namespace) -> float:
    """MiB at the peak of three steps: of the GPU, else of the process."""
    run = make_run(name, arguments)
    for _ in range(3):
        step(run)
    if run.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--features", type=lambda text: tuple(map(int, text.split(","))), default=(64, 128, 256, 512))
    parser.add_argument("--chroma-scale", type=int, default=1)
    parser.add_argument("--mixed-precision", default="no")
    parser.add_argument("--memory-of", choices=OBJECTIVES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, arguments))
        return

    # First of all: a process inherits the peak of the one that started it.
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of"]
    memory = {
        n: float(subprocess.run([*command, n], stdout=subprocess.PIPE, text=True, check=True).stdout)
        for n in OBJECTIVES
    }
    runs = {name: make_run(name, arguments) for name in OBJECTIVES}
    for run in runs.values():
        step(run)  # buffers are allocated, kernels chosen
    seconds = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds[name].append(step(run))
    device = next(iter(runs.values())).accelerator.device
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {arguments.mixed_precision}")
    print("| objective | step | time, ratio | peak memory | more |\n| --- | --- | --- | --- | --- |")
    plain = seconds["squared error"]
    for name, times in seconds.items():
        ratio = statistics.median(t / p for t, p in zip(times, plain, strict=True))
        more = memory[name] - memory["squared error"]
        step_ms = 1000 * statistics.median(times)
        print(f"| {name} | {step_ms:.0f} ms | {ratio:.2f} | {memory[name]:.0f} MiB | {more:+.0f} MiB |")


if __name__ == "__main__":
    main()
