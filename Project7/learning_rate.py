"""The learning rate of every step: a pure function, so that there is no scheduler to save or to restore."""

import math

from Project7.training_config import TrainingConfig


def learning_rate(training: TrainingConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) in a schedule of `steps` steps.

    constant and cosine rise linearly over `warmup_steps`; one-cycle (Smith & Topin 2018) rises from 1/25 of the peak
    along a half cosine over the first 10 % of the steps and falls to almost 0, as torch's OneCycleLR does with
    pct_start=0.1.
    """
    highest = training.learning_rate
    if training.lr_schedule == "one-cycle":
        top = max(1.0, 0.1 * steps - 1)
        if step <= top:
            return _half_cosine(highest / 25, highest, step / top)
        return _half_cosine(highest, highest / 25e4, min(1.0, (step - top) / max(1.0, steps - 1 - top)))
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.lr_schedule == "cosine":
        left = max(1, steps - training.warmup_steps)
        return warm * _half_cosine(highest, 0.0, min(1.0, max(0, step - training.warmup_steps) / left))
    return warm * highest


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
