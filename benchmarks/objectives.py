#!/usr/bin/env python
"""Measures what each recipe's objective costs in addition to the squared error of its network, in time and in memory.

python benchmarks/objectives.py [--rounds 8] [--batch-size 16] [--image-size 64] [--features 64,128,256,512]

The objectives of one network take turns in one process, step by step, so that other load on the machine affects all of
them alike: compare the ratios. Peak memory is measured in a separate process for each. Perceptual networks are random
here, which costs the same as trained ones.
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

from Project7.config import RunConfig
from Project7.image_set import ImageSet
from Project7.loss_config import LossConfig
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.trainer import Run, make_accelerator
from Project7.training_config import ObjectiveConfig, TrainingConfig

CRITIC = {"gan": True, "gan_start": 0, "gan_warmup": 0}
LOSS = {"perceptual_net": "random"}
# network -> objective -> the terms added to the network's own squared error (or cross-entropy), which comes first
NETWORKS: dict[str, dict[str, ObjectiveConfig | LossConfig | None]] = {
    "diffusion": {
        "squared error": None,
        "+ perceptual": ObjectiveConfig(**LOSS),
        "+ PatchGAN": ObjectiveConfig(perceptual_weight=0.0, **CRITIC),
        "+ perceptual + PatchGAN": ObjectiveConfig(**LOSS, **CRITIC),
        "+ perceptual at every timestep": ObjectiveConfig(**LOSS, image_share=1.0),
        "+ PatchGAN at every timestep": ObjectiveConfig(perceptual_weight=0.0, image_share=1.0, **CRITIC),
    },
    "regression": {
        "squared error": None,
        "simple": LossConfig(loss="simple", **LOSS),
        "weighted": LossConfig(loss="weighted"),
        "enhanced": LossConfig(loss="enhanced", **LOSS),
    },
    "classification": {"classes": None, "+ perceptual": ObjectiveConfig(**LOSS)},
}


def make_run(network: str, objective: str, arguments: argparse.Namespace) -> Run:
    """A run that is ready for its first step, on random pictures, whose content does not affect the time."""
    models = {
        "diffusion": DiffusionConfig(features=arguments.features, chroma_scale=arguments.chroma_scale),
        "regression": RegressionConfig(chroma_scale=arguments.chroma_scale),
        "classification": ClassificationConfig(),
    }
    added = NETWORKS[network][objective]
    config = RunConfig(
        model=models[network],
        training=TrainingConfig(batch_size=arguments.batch_size, mixed_precision=arguments.mixed_precision),
        objective=added if isinstance(added, ObjectiveConfig) else None,
        loss=added if isinstance(added, LossConfig) else None,
    )
    size = (arguments.batch_size * 4, arguments.image_size, arguments.image_size, 3)
    pictures = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    images = ImageSet(pictures, ("",) * len(pictures), ("",) * len(pictures), "", None)
    start = None
    if network == "classification":  # any palette will do
        start = {"centres": torch.randn(config.model.bins, 2) * 30, "counts": torch.ones(config.model.bins)}
    run = Run(config, ModelFolder(Path("unused")), (images, images), make_accelerator(config.training), None, start)
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


def peak_memory(network: str, objective: str, arguments: argparse.Namespace) -> float:
    """Peak memory of three steps in MiB: that of the GPU if there is one, else of the process."""
    run = make_run(network, objective, arguments)
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
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(*arguments.memory_of, arguments))
        return

    # This must come first, because a process inherits the peak of the one that started it.
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of"]
    memory = {
        (network, name): float(
            subprocess.run([*command, network, name], stdout=subprocess.PIPE, text=True, check=True).stdout
        )
        for network in arguments.networks
        for name in NETWORKS[network]
    }
    device = "CUDA" if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}, {arguments.mixed_precision}\n")
    print("| network | objective | step | time, ratio | peak memory | more |\n|" + " --- |" * 6)
    for network in arguments.networks:
        seconds = step_seconds(network, arguments)
        first = next(iter(seconds))
        for name, times in seconds.items():
            ratio = statistics.median(t / p for t, p in zip(times, seconds[first], strict=True))
            peak, more = memory[network, name], memory[network, name] - memory[network, first]
            times_ms = f"{1000 * statistics.median(times):.0f} ms | {ratio:.2f}"
            print(f"| {network} | {name} | {times_ms} | {peak:.0f} MiB | {more:+.0f} MiB |", flush=True)


def step_seconds(network: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """objective -> the seconds of its steps; the objectives take turns."""
    runs = {name: make_run(network, name, arguments) for name in NETWORKS[network]}
    for run in runs.values():
        step(run)  # allocates buffers and chooses kernels
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            seconds[name].append(step(run))
    return seconds


if __name__ == "__main__":
    main()
