"""Chooses the precision that trains faster on this machine, by measuring the model itself."""

import math
import time

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from Project7 import color
from Project7.batch import Batch, BatchRandom
from Project7.config import RunConfig
from Project7.methods import build_model
from Project7.palette import Palette
from Project7.processes import PATIENCE

ENOUGH = 1.15  # speed-up below which float32 is kept, because it is more exact
_PICTURES = 8  # pictures per measured step: with fewer, the overhead hides the gain
_ROUNDS = 3
_CLEARLY = 1.3  # speed-up of a single convolution from which it is worth measuring a training step
_HOPELESS = 0.7  # speed-up of a single convolution below which no training step can gain


def settle_precision(config: RunConfig) -> tuple[RunConfig, str]:
    """Replaces `--mixed-precision auto` by the faster of float32 and bfloat16, and returns the configuration with a
    sentence about the choice; any other setting is returned unchanged, with "".

    On CUDA the choice is bfloat16 if the device supports it. Some CPUs support it only slowly, so on other devices a
    training step is timed in both. Several processes follow the first.
    """
    if config.training.mixed_precision != "auto":
        return config, ""
    wanted = config.training.device
    on_cpu = wanted == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.device.type == "cuda":
        gain = quick_gain(state.device)
        said = "this GPU has it" if gain >= ENOUGH else "this GPU has no bfloat16"
    else:
        gain = broadcast_object_list([bfloat16_gain(config, state.device)])[0]
        said = f"bfloat16 is {gain:.1f} times as fast as float32 here"
    choice = "bf16" if gain >= ENOUGH else "no"
    training = config.training.model_copy(update={"mixed_precision": choice})
    return config.model_copy(update={"training": training}), f"precision: {choice} ({said})"


def advice(chosen: str, device: torch.device, *, new: bool) -> str:
    """A sentence if another precision than the `chosen` one is likely to train faster on `device`, else "".

    new: whether the model is a new one; one that is resumed keeps float32 without a word.
    """
    if chosen == "no" and new and quick_gain(device) >= _CLEARLY:
        return "bfloat16 may train faster here: --mixed-precision auto measures it and takes the faster one."
    if chosen == "bf16" and (gain := quick_gain(device)) < _HOPELESS:
        return (
            f"bf16 is slow on this device: a convolution takes {1 / gain:.1f} times as long as in float32; "
            "--mixed-precision no trains faster, also for a model that was begun in bf16."
        )
    return ""


def quick_gain(device: torch.device) -> float:
    """How many times as fast as float32 bfloat16 is likely to be, found within milliseconds."""
    if device.type == "cuda":  # where it is emulated, it is about as fast as float32
        return math.inf if torch.cuda.is_bf16_supported(including_emulation=False) else 1.0
    return convolution_gain(device)


def bfloat16_gain(config: RunConfig, device: torch.device) -> float:
    """How many times as fast a training step is in bfloat16 as in float32, by the best times of alternating steps.

    A processor without bfloat16 takes a minute for such a step; a single convolution shows that beforehand.
    """
    if (gain := convolution_gain(device)) < _HOPELESS:
        return gain
    with torch.random.fork_rng():
        model = build_model(config.model).to(device)
    for module in model.modules():
        if set_palette := getattr(module, "set_palette", None):  # any will do
            bins = config.model.bins
            set_palette(Palette(torch.randn(bins, 2) * 30, torch.ones(bins, dtype=torch.float64)))
    size = config.data.image_size
    rgb = torch.randint(256, (_PICTURES, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    L, ab = color.split(rgb.to(device), model.ab_mean, model.ab_std)
    batch = Batch(L, ab, BatchRandom(0, 0, 0, _PICTURES, _PICTURES, str(device)))
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for number in range(_ROUNDS + 1):
        for dtype, times in seconds.items():
            taken = step_seconds(model, batch, dtype)
            if number:  # the first time buffers are allocated and kernels chosen
                times.append(taken)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def convolution_gain(device: torch.device) -> float:
    """How many times as fast a convolution is in bfloat16 as in float32, by the best of a few tries each."""
    kernel = torch.ones(32, 32, 3, 3, device=device)
    pictures = torch.ones(4, 32, 32, 32, device=device)
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        times = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            torch.nn.functional.conv2d(pictures.to(dtype), kernel.to(dtype), padding=1)
            if device.type == "mps":
                torch.mps.synchronize()
            times.append(time.perf_counter() - begin)
        best[dtype] = min(times)
    return best[torch.float32] / best[torch.bfloat16]


def step_seconds(model: nn.Module, batch: Batch, dtype: torch.dtype) -> float:
    begin = time.perf_counter()
    with torch.autocast(batch.L.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(batch).loss.mean()
    loss.backward()
    model.zero_grad()
    if batch.L.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin
