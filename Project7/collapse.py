"""When training destroys what it had learnt: how that is found, whether the processes agree, and what may be done."""

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

BAD_STEPS_IN_A_ROW = 20  # so many steps without a finite gradient, and the run has failed
ROLLBACKS = 2  # at most, in a run
ROLLBACK_RATE = 0.4  # the learning rate is multiplied by this after each


class TrainingFailed(ProjectError):
    """The numbers went wrong. The last good state is in the folder."""


class Collapsed(TrainingFailed):
    """Training destroys what it had learnt. A lower learning rate may help."""


def check_divergence(state: RunState, training: TrainingConfig, folder: ModelFolder) -> None:
    """Raises Collapsed where too many steps in a row had no finite gradient."""
    if state.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
        raise Collapsed(
            f"No finite gradient in {BAD_STEPS_IN_A_ROW} steps in a row (step {state.step}, learning rate "
            f"{training.learning_rate:g}): the run has diverged and stops. The best and the last good weights are "
            f"kept in {folder.path}; train again with a lower --learning-rate."
        )


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What health.py finds after an epoch."""

    findings: Sequence[health.Finding]
    news: tuple[str, ...]  # sentences about what the epoch before did not have
    collapse: str | None  # a sentence about the collapse, where there is one
    suspicious: bool  # the latest loss is far above the lowest: a divergence needs more windows before it is certain


def diagnose(name: str, config: RunConfig, history: Sequence[dict[str, Any]]) -> Diagnosis:
    """Looks at a history (of epochs) whose last entry has no findings yet."""
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
    """The same verdict for all processes: only the main one has pictures to judge by."""
    if accelerator.num_processes == 1:
        return collapse
    vote = accelerator.reduce(torch.tensor(float(collapse is not None), device=accelerator.device), "sum")
    return (collapse or "Another process found a collapse.") if vote.item() else None


def may_roll_back(state: RunState, training: TrainingConfig) -> bool:
    return training.on_collapse == "rollback" and len(state.rollbacks) < ROLLBACKS
