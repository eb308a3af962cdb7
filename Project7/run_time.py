"""How long a run will take: measured by a few of its own steps, whose results are thrown away."""

import contextlib
import copy
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from Project7.config import RunConfig
from Project7.image_set import ImageSet
from Project7.model_folder import ModelFolder
from Project7.run_history import batch_processes
from Project7.trainer import train

_STEPS = 4  # steps that are measured, after a first one in which buffers are allocated
_SECONDS = 20.0  # after which the measurement ends
_VALIDATING = 0.35  # time of a batch of validation, which has no gradient, as a share of a training step


@dataclasses.dataclass(frozen=True)
class RunTime:
    """Seconds per epoch, including its validation, and the number of epochs left."""

    epoch: float  # NaN if there was no time to measure it
    epochs: int


def measure(config: RunConfig, images: tuple[ImageSet, ImageSet], *, accelerator, resume=None, **how: Any) -> RunTime:
    """Takes some steps of the run in a temporary folder. The arguments are those of `trainer.train`."""
    quiet = {"image_interval": 0, "on_collapse": "warn", "compile": False, "save_minutes": 1e6}
    trial = config.model_copy(update={"training": config.training.model_copy(update=quiet)})
    ends: list[float] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        trial_resume = copy.deepcopy(resume)  # a run changes the tensors that it is given
        folder = ModelFolder(Path(place) / "trial")
        run = train(trial, folder, images, accelerator=accelerator, resume=trial_resume, **how)
        with contextlib.closing(run):
            for progress in run:
                if progress.phase == "train" and not progress.entry:
                    ends.append(time.perf_counter())
                if len(ends) > _STEPS or time.perf_counter() - begin > _SECONDS or progress.entry:
                    break
    accelerator.free_memory()
    step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else math.nan
    settings = config.training
    processes = batch_processes(resume, now=accelerator.num_processes)
    batch = settings.batch_size * settings.gradient_accumulation * processes
    steps = math.ceil(len(images[0].images) / batch) + _VALIDATING * len(images[1].images) / batch
    return RunTime(step * steps, settings.epochs - (resume.get("epoch", 0) if resume else 0))


def in_words(time: RunTime) -> str:
    """The estimate in words: an epoch takes about 2 minutes here, all 50 about 2 hours."""
    if not math.isfinite(time.epoch):
        return "too short a run, or too slow a machine, to be measured beforehand"
    whole = "" if time.epochs == 1 else f", all {time.epochs} about {duration(time.epoch * time.epochs)}"
    return f"an epoch takes about {duration(time.epoch)} here{whole}"


def duration(seconds: float) -> str:
    """A duration in words: 40 seconds, 3 minutes, 2.5 hours, 4 days."""
    for unit, size, most in (("second", 1, 90), ("minute", 60, 90), ("hour", 3600, 48), ("day", 86400, math.inf)):
        value = seconds / size
        if value < most:
            shown = f"{value:.1f}" if unit in ("hour", "day") and value < 10 else f"{max(1, round(value))}"
            return f"{shown} {unit}{'' if shown == '1' else 's'}"
    raise AssertionError
