"""Collapse, when training destroys what the model has learnt: detection, agreement of the processes, and rollback."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from Project7 import health
from Project7.config import RunConfig
from Project7.errors import ProjectError
from Project7.model_folder import ModelFolder
from Project7.run_history import RunState
from Project7.training_config import TrainingConfig

BAD_STEPS_IN_A_ROW = 20  # the run has failed after so many steps without a finite gradient
ROLLBACKS = 2  # at most, per run
ROLLBACK_RATE = 0.4  # factor on the learning rate after each rollback


class TrainingFailed(ProjectError):
    """Training failed numerically. The last good state is in the model's folder."""


class Collapsed(TrainingFailed):
    """Training destroys what the model has learnt. A lower learning rate may help."""


def check_divergence(state: RunState, training: TrainingConfig, folder: ModelFolder) -> None:
    """Raises Collapsed if too many steps in a row had no finite gradient."""
    if state.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
        raise Collapsed(
            f"No finite gradient in {BAD_STEPS_IN_A_ROW} steps in a row (step {state.step}, learning rate "
            f"{training.learning_rate:g}): the run has diverged and stops. The best and the last good weights are "
            f"kept in {folder.path}; train again with a lower --learning-rate."
        )


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The findings of health.py after an epoch."""

    findings: Sequence[health.Finding]
    news: tuple[str, ...]  # sentences about findings that are new in this epoch
    collapse: str | None  # a sentence about the collapse, if there is one
    suspicious: bool  # the latest loss is far above the lowest, but certainty about a divergence needs more windows


def diagnose(name: str, config: RunConfig, history: Sequence[dict[str, Any]]) -> Diagnosis:
    """The diagnosis of a history (one entry per epoch) whose last entry has no findings yet."""
    record = health.record_of(name, config, history)
    findings = health.diagnose(record)
    known = {f["ailment"] for entry in history[-2:-1] for f in entry.get("findings", [])} | {"gray data"}
    losses = [window.loss for window in record.windows]
    return Diagnosis(
        findings,
        tuple(f"Health: {finding.line()}" for finding in findings if finding.ailment not in known),
        next((finding.line() for finding in findings if finding.collapse), None),
        bool(losses) and losses[-1] > 1.5 * min(losses),
    )


def agreed(collapse: str | None, accelerator: Accelerator) -> str | None:
    """The verdict that all processes share: only the main one has pictures to judge by."""
    if accelerator.num_processes == 1:
        return collapse
    vote = accelerator.reduce(torch.tensor(float(collapse is not None), device=accelerator.device), "sum")
    return (collapse or "Another process found a collapse.") if vote.item() else None


def may_roll_back(state: RunState, training: TrainingConfig) -> bool:
    return training.on_collapse == "rollback" and len(state.rollbacks) < ROLLBACKS
