"""What a run records: where it stands, the means of its steps, and one entry of the history per epoch."""

import dataclasses
import math
from typing import Any

from Project7 import health
from Project7.atomic_file import as_json
from Project7.checkpoints import CheckpointError
from Project7.comparison import Comparison

WEIGHTED = "weighted_"  # prefix of the name of a term that is multiplied by its weight in the objective
WINDOWS = 20  # windows per epoch, of at least ten steps each: health.py reads their means


@dataclasses.dataclass
class RunState:
    """Where a run stands: everything that is neither weights nor configuration."""

    epoch: int = 0  # epochs finished
    position: int = 0  # images of the current epoch that have been trained on
    step: int = 0  # optimizer steps done
    accumulation: int = 1  # micro-steps per step; doubled when memory runs out
    best_val_loss: float = math.inf
    scored_under: str = ""  # the identity of the objective that best_val_loss was measured under
    stage: int = 0  # of a two-stage training: 1, then 2; 0 if there are no stages
    critic_start: int = -1  # the step at which the discriminator began; -1: not yet
    schedule_start: int = 0  # the step at which the learning-rate schedule began
    schedule_steps: int = 0  # its length
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # of the current epoch's measures
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # number of steps that had each measure
    window: dict[str, float] = dataclasses.field(default_factory=dict)  # sums of the window that is not full yet
    windows: list[Any] = dataclasses.field(default_factory=list)  # of the current epoch, as health.Window
    rate_scale: float = 1.0  # of the learning rate; lowered by each rollback
    rollbacks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0  # spent in the current epoch
    skipped_in_a_row: int = 0

    def forget_means(self) -> None:
        """Clears the sums, because a mean must not mix two objectives."""
        self.sums, self.counts, self.window, self.windows = {}, {}, {}, []

    def next_epoch(self) -> None:
        self.epoch, self.position, self.seconds = self.epoch + 1, 0, 0.0
        self.sums, self.counts, self.windows = {}, {}, []  # the unfinished window continues across epochs


def batch_processes(checkpoint: dict[str, Any] | None, *, now: int) -> int:
    """How many processes' batches make a step: those that the run began with, however many go on with it.

    now: the answer for a new run, and for a checkpoint of an earlier version, which does not say.
    """
    stored = (checkpoint or {}).get("processes", now)
    if not isinstance(stored, int) or stored < 1:
        raise CheckpointError(
            f"The checkpoint says that {stored!r} processes trained it; use the file as it was written."
        )
    return stored


def count_step(state: RunState, measures: dict[str, float]) -> None:
    """Adds a step to the epoch's sums; a step without a finite gradient or loss counts as skipped."""
    sums = state.sums
    if _is_bad(measures):
        sums["skipped"] = sums.get("skipped", 0) + 1
        state.skipped_in_a_row += 1
        return
    state.skipped_in_a_row = 0
    values = {name: value for name, value in measures.items() if name != "skipped"}
    values |= {"steps": 1, "loss_squared": measures["loss"] ** 2}
    for name, value in values.items():
        sums[name] = sums.get(name, 0) + value
        state.counts[name] = state.counts.get(name, 0) + 1


def count_window(state: RunState, measures: dict[str, float], *, step: int, steps_per_epoch: int) -> None:
    """Adds step number `step` to the unfinished window, and begins a new one when that is full."""
    window = state.window
    if _is_bad(measures):
        values = {"skipped": 1.0}
    else:
        loss = measures["loss"] - sum(measures.get(WEIGHTED + name, 0) for name in health.CRITIC_TERMS)
        values = {"steps": 1, "loss": loss, "loss_squared": loss**2, "grad_norm": measures["grad_norm"]}
        window["grad_max"] = max(window.get("grad_max", 0.0), measures["grad_norm"])
    for name, value in values.items():
        window[name] = window.get(name, 0) + value
    taken = window.get("steps", 0)
    if taken < max(10, math.ceil(steps_per_epoch / WINDOWS)):
        return
    loss, squared, norm = (window[name] / taken for name in ("loss", "loss_squared", "grad_norm"))
    spread = max(0.0, squared - loss**2) ** 0.5
    full = health.Window(step, int(taken), loss, spread, norm, window["grad_max"], int(window.get("skipped", 0)))
    state.windows.append(dataclasses.asdict(full))
    state.window = {}


def _is_bad(measures: dict[str, float]) -> bool:
    return bool(measures["skipped"]) or not math.isfinite(measures["loss"])


def history_entry(
    state: RunState, validation: dict[str, float], comparison: Comparison | None, **facts: Any
) -> dict[str, Any]:
    """The epoch in numbers that JSON can hold; means are over the steps with a finite gradient.

    validation: the means of the validation. comparison: that of the fixed pictures, if this process made it. facts:
    further entries from the caller.
    """
    sums = state.sums
    steps = sums.get("steps", 0)
    # A term that began late is averaged over its own steps, but its part of the loss over all steps.
    over = {n: steps if n.startswith(WEIGHTED) else state.counts.get(n, steps) for n in sums}
    mean = {name: value / over[name] if over[name] else math.nan for name, value in sums.items()}
    terms = {n: mean[n] for n in sums if n not in ("steps", "skipped", "loss", "loss_squared", "grad_norm")}
    entry = {
        "epoch": state.epoch + 1,
        "step": state.step,
        "train_loss": mean.get("loss", math.nan),
        "val_loss": validation["loss"],
        "best_val_loss": state.best_val_loss,
        "terms": {n: v for n, v in terms.items() if not n.startswith(WEIGHTED)},
        "weighted_terms": {n.removeprefix(WEIGHTED): v for n, v in terms.items() if n.startswith(WEIGHTED)},
        "val_terms": {n: v for n, v in validation.items() if n not in ("loss", "count")},
        "train_loss_std": max(0.0, mean.get("loss_squared", 0) - mean.get("loss", 0) ** 2) ** 0.5,
        "grad_norm": mean.get("grad_norm", math.nan),
        "skipped_steps": int(sums.get("skipped", 0)),
        "windows": state.windows,
    }
    if state.rollbacks:
        entry["rollbacks"] = state.rollbacks
    if state.stage:
        entry["stage"] = state.stage
    return as_json(entry | facts | (comparison.numbers() if comparison else {}))
