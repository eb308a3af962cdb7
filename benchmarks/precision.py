#!/usr/bin/env python
"""Compares float32 with bfloat16, and on CUDA also channels_last, torch.compile and the share of the device's peak.

    python benchmarks/precision.py [--rounds 5] [--batch-size 16] [--peak TFLOPS]

Measures a training step and a colouring pass of the default diffusion network at 64 px. The variants take turns;
compare the ratios. The share of the peak counts the multiply-adds of the convolutions and matrix products (as torch
counts them), three times the forward pass for a step. --peak is the device's dense peak in the precision of the row.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch.utils.flop_counter import FlopCounterMode

from Project7.batch import Batch, BatchRandom
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig
from Project7.trainer import compile_networks


def make_ways(device: str) -> dict[str, tuple[torch.dtype, bool, bool]]:
    """name -> (dtype, channels_last, compiled)"""
    ways = {"float32": (torch.float32, False, False), "bfloat16": (torch.bfloat16, False, False)}
    if device == "cuda":
        ways["bfloat16, channels_last"] = (torch.bfloat16, True, False)
        ways["bfloat16, channels_last, compiled"] = (torch.bfloat16, True, True)
    else:
        ways["bfloat16, channels_last"] = (torch.bfloat16, True, False)
    return ways


def make_model(config: DiffusionConfig, device: str, channels_last: bool, compiled: bool):
    model = build_model(config).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled:
        compile_networks(model)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def seconds_of(work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--chroma-scale", type=int, default=1)
    parser.add_argument("--peak", type=float, help="TFLOPS of the device in bfloat16")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, count = DiffusionConfig(chroma_scale=arguments.chroma_scale), arguments.batch_size
    L = torch.rand(count, 1, 64, 64, device=device) * 2 - 1
    batch = Batch(L, torch.randn(count, 2, 64, 64, device=device), BatchRandom(0, 0, 0, count, count, device))

    def step(model, optimizer, dtype) -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = model(batch).loss.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def colour(model, dtype) -> None:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            model.colorize(L, generator=torch.Generator().manual_seed(0), steps=2)

    ways = make_ways(device)
    models = {name: make_model(config, device, *way[1:]) for name, way in ways.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        models["float32"][0](batch)
    trained: dict[str, list[float]] = {name: [] for name in ways}
    coloured: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(arguments.rounds + 1):
        for name, (dtype, *_) in ways.items():
            model, optimizer = models[name]
            taken = [seconds_of(lambda m=model, o=optimizer, d=dtype: step(m, o, d), device)]
            taken.append(seconds_of(lambda m=model, d=dtype: colour(m, d), device))
            if round_:
                trained[name].append(taken[0])
                coloured[name].append(taken[1] / 2)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}; {counter.get_total_flops() / count / 1e9:.1f} GFLOP an image forward\n")
    print("| precision | step, images/s | ratio | TFLOPS | share of the peak | colouring, evaluations/s | ratio |")
    print("|" + " --- |" * 7)
    first = next(iter(ways))
    for name in ways:
        steps, passes = statistics.median(trained[name]), statistics.median(coloured[name])
        ratio = [statistics.median(a / b for a, b in zip(x[first], x[name], strict=True)) for x in (trained, coloured)]
        tflops = 3 * counter.get_total_flops() / steps / 1e12
        share = f"{tflops / arguments.peak:.0%}" if arguments.peak else ""
        print(f"| {name} | {count / steps:.1f} | {ratio[0]:.2f} | {tflops:.2f} | {share} | {count / passes:.1f} | "
              f"{ratio[1]:.2f} |")  # fmt: skip


if __name__ == "__main__":
    main()
