"""Diagnoses a run from its curves and pictures: findings, each with its numbers, its meaning and its cure.

`diagnose` reads a `Record`: the history of a run (from training_history.json, or of a running one) and its windows,
which are means over some tens of steps; the spread within windows says how much of a change is noise. The module does
not import torch.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from Project7.config import RunConfig
from Project7.loss_config import LOSS_WEIGHTS, LossConfig
from Project7.training_config import TrainingConfig

CRITIC_TERMS = ("adversarial", "feature_matching")  # not a measure of progress, because the critic changes
GRAY = 10.0  # colorfulness below which a photo is nearly gray
MATURE = 1000  # steps before which colours are not judged, because they are still developing
_MANY_GRAY = 0.4  # share of the training photos
_SWING = 0.1  # of the level: a smaller swing of the loss is not an oscillation
_NOISE = 4.0  # standard errors: a smaller change is noise
_BOLD_RATE = 3e-3  # a higher learning rate is the first suspect, whatever the symptom
_UNUSUAL = 100  # a learning rate this many times above or below the usual one is unusual
_IGNORANT = 0.75  # of the variance of the targets; the error of trained models is well below 0.5
_HIGHEST = {"ab": 0.3, "ab_chrominance": 0.3, "l_luminance": 0.15}  # upper bounds of the roots of the terms


@dataclasses.dataclass(frozen=True)
class Finding:
    """One ailment. `sure` is certain, likely or possible; `collapse`: the model is being destroyed, not just slow."""

    ailment: str
    seen: str
    meaning: str
    cure: str
    sure: str
    collapse: bool = False

    def line(self) -> str:
        return f"{self.ailment} ({self.sure}): {self.seen}. {self.cure}."


@dataclasses.dataclass(frozen=True)
class Window:
    """The means of some consecutive steps: the loss, as validation computes it (without the discriminator's part), the
    mean and the highest norm of the gradient before clipping, and the number of steps left out."""

    step: int  # the last step of the window
    steps: int
    loss: float
    loss_std: float
    grad_norm: float
    grad_max: float
    skipped: int = 0

    @property
    def error(self) -> float:
        """Standard error of the mean loss."""
        return self.loss_std / math.sqrt(max(1, self.steps))


@dataclasses.dataclass(frozen=True)
class Record:
    """The data of a run."""

    name: str  # of the model, for the cures
    config: RunConfig | None
    history: Sequence[dict[str, Any]]  # one entry per epoch
    windows: Sequence[Window]  # of the latest objective

    @property
    def latest(self) -> dict[str, Any]:
        return self.history[-1] if self.history else {}

    @property
    def step(self) -> int:
        return max([int(number(self.latest.get("step")) or 0), *(w.step for w in self.windows)])


def steps_of(entry: dict[str, Any]) -> int:
    """The number of optimizer steps at the end of an epoch; 0 if the entry does not say."""
    return int(number(entry.get("step")) or 0)


def record_of(
    name: str, config: RunConfig | None, history: Sequence[dict[str, Any]], more: Sequence[Sequence[float]] = ()
) -> Record:
    """The record of a history. `more`: windows since its last entry.

    It contains only what was trained with the latest objective, because losses of different objectives do not compare.
    """
    same = [entry for entry in history if _same_objective(entry, history[-1])]
    windows = []
    for before, entry in zip([{}, *same], same, strict=False):
        windows += _windows(entry, steps=steps_of(entry) - steps_of(before))
    return Record(name, config, same, [*windows, *(window for row in more if (window := stored_window(row)))])


def stages(
    name: str, config: RunConfig | None, history: Sequence[dict[str, Any]], more: Sequence[Sequence[float]] = ()
) -> list[Record]:
    """A record per stage of a run, a part with one objective, in order. The arguments are those of `record_of`."""
    changes = [n for n in range(1, len(history)) if not _same_objective(history[n - 1], history[n])]
    borders = [0, *changes, len(history)]
    parts = [record_of(name, config, history[low:high]) for low, high in itertools.pairwise(borders)]
    return [*parts[:-1], record_of(name, config, history[borders[-2] :], more)]


def _same_objective(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two entries have the same objective: by its key, or by its name in entries of earlier versions."""
    keys = entry.get("objective_key"), other.get("objective_key")
    return keys[0] == keys[1] if all(keys) else entry.get("objective") == other.get("objective")


def stored_window(row: Any) -> Window | None:
    """A window from its stored form: fields by name, or in order in earlier versions; None for anything else."""
    names = [field.name for field in dataclasses.fields(Window)]
    values = [row.get(name) for name in names] if isinstance(row, dict) else row
    if not isinstance(values, list | tuple) or len(values) != len(names) or any(number(v) is None for v in values):
        return None
    step, steps, loss, loss_std, grad_norm, grad_max, skipped = values
    return Window(int(step), int(steps), loss, loss_std, grad_norm, grad_max, int(skipped))


def _windows(entry: dict[str, Any], steps: int) -> list[Window]:
    """The windows of an epoch; one window for the whole epoch if it has none (an older history)."""
    found = entry.get("windows")
    if isinstance(found, list):
        return [window for row in found if (window := stored_window(row))]
    numbers = [number(entry.get(key)) for key in ("step", "train_loss", "train_loss_std", "grad_norm")]
    if numbers[0] is None or numbers[1] is None:
        return []
    return [Window(int(numbers[0]), max(1, steps), numbers[1], numbers[2] or 0.0, numbers[3] or 0.0, numbers[3] or 0.0)]


def read_log(logs: Path) -> list[list[float]]:
    """Stored windows of ten points each from the TensorBoard folder of a run that broke off in its first epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, dict[int, float]] = {"train/loss": {}, "train/grad_norm": {}}
    curves |= {f"train/weighted_{name}": {} for name in CRITIC_TERMS}
    for file in sorted(logs.glob("events.*")) if logs.is_dir() else []:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for tag in set(curves) & set(events.Tags()["scalars"]):
            curves[tag] |= {point.step: point.value for point in events.Scalars(tag)}
    losses, norms, *critic = curves.values()
    losses = {step: loss - sum(part.get(step, 0.0) for part in critic) for step, loss in losses.items()}
    steps = sorted(step for step in losses if step in norms)
    windows = []
    for some in [steps[i : i + 10] for i in range(0, len(steps) - len(steps) % 10, 10)]:
        values = np.array([[losses[s], norms[s]] for s in some])
        finite = values[np.isfinite(values).all(axis=1)]
        if len(finite):
            loss, norm = finite.T
            windows.append(
                [some[-1], len(finite), loss.mean(), loss.std(), norm.mean(), norm.max(), len(some) - len(finite)]
            )
    return [[float(value) for value in window] for window in windows]


def diagnose(record: Record) -> list[Finding]:
    """All findings, the most serious first, without those that follow from a more serious one."""
    named: dict[str, Finding] = {}
    for finding in [check(record) for check in CHECKS]:
        if finding:
            named.setdefault(finding.ailment, finding)
    for grave, follows in _IMPLIED.items():
        if grave in named:
            named = {name: f for name, f in named.items() if not {name, name.split()[-1]} & follows}
    findings = named.values()
    return sorted(findings, key=lambda f: (not f.collapse, ("certain", "likely", "possible").index(f.sure)))


# -- the numbers -----------------------------------------------------------------------------------------------------


def not_finite(record: Record) -> Finding | None:
    """Too many steps were left out because their gradient was NaN or infinite."""
    steps = sum(w.steps for w in record.windows)
    skipped = sum(w.skipped for w in record.windows)
    fp16 = record.config and record.config.training.mixed_precision == "fp16"  # fp16 normally skips some steps
    no_score = bool(record.history) and "val_loss" in record.latest and record.latest["val_loss"] is None
    if not no_score and (skipped < 3 or skipped < (0.05 if fp16 else 0.001) * (steps + skipped)):
        return None
    seen = f"{skipped} of {steps + skipped} steps had no finite gradient and were left out"
    if no_score:
        seen += "; the validation loss is not a number"
    return Finding(
        "NaN",
        seen,
        "numbers overflow: the steps are too large, or the precision is too low",
        f"{slower(record, 4)}, or --mixed-precision no",
        "certain" if no_score or skipped > 0.01 * steps else "likely",
        collapse=no_score,
    )


def divergence(record: Record) -> Finding | None:
    """The loss has been far lower, and has stayed up since."""
    windows = record.windows
    if len(windows) < 6:
        return None
    now = sorted(windows[-3:], key=lambda w: w.loss)[1]
    best = min(windows[:-3], key=lambda w: w.loss)
    rise = now.loss - best.loss
    # The median noise relative to the loss, because windows that explode would hide behind their own spread.
    share = float(np.median([w.error / w.loss for w in windows if w.loss > 0] or [0.0]))
    lowest = min(w.loss for w in windows[-3:])
    if not (now.loss > 1.5 * best.loss and lowest - best.loss > 6 * share * math.hypot(lowest, best.loss)):
        return None
    return Finding(
        "divergence",
        f"the loss was {best.loss:.3g} at step {best.step} and is {now.loss:.3g} now, {rise / best.loss:.0%} more",
        "training destroys what the model had learnt: the learning rate is too high",
        f"{slower(record, 4)}; or a new model with --on-collapse rollback",
        "certain" if now.loss > 2 * best.loss else "likely",
        collapse=True,
    )


def exploding_gradients(record: Record) -> Finding | None:
    norms = [w.grad_norm for w in record.windows]
    if len(norms) < 8:
        return None
    usual, now = float(np.median(norms[1 : len(norms) // 2 + 1])), float(np.median(norms[-3:]))
    if not now > 10 * usual > 0:
        return None
    return Finding(
        "exploding gradients",
        f"the norm of the gradient was {usual:.3g} and is {now:.3g} now, {now / usual:.0f} times as much",
        "each step follows only the clipped gradient of a few pictures; divergence is likely to follow",
        f"{slower(record, 3)}, or a new model with a lower --gradient-clip",
        "likely",
    )


def oscillation(record: Record) -> Finding | None:
    """The loss repeatedly goes up and down by more than a tenth and by more than noise."""
    windows = merged(record.windows)[2:]  # the first steps of a run fall steeply
    windows = windows[-max(8, len(windows) // 2) :]
    if len(windows) < 6:
        return None
    turns = turning_points(windows)
    if len(turns) < 4:
        return None
    low, high = min(turns[-4:]), max(turns[-4:])
    batch = record.config.training.batch_size if record.config else 0
    smaller = f"; or a new model with --batch-size 8 (it is {batch})" if batch > 16 else ""
    return Finding(
        "oscillation",
        f"the loss went up and down {len(turns)} times in the last {len(windows)} windows, lately between {low:.3g} "
        f"and {high:.3g}; noise explains {_NOISE * windows[-1].error:.1g}",
        "steps overshoot: the learning rate is too high, or its warm-up was too short",
        f"{slower(record, 2.5, schedule='one-cycle')}{smaller}",
        "likely",
    )


def merged(windows: Sequence[Window], most: int = 40) -> list[Window]:
    """At most `most` windows, made by merging neighbours, with one spread for all: among many short windows some pair
    is always far apart, and a spread measured in ten steps is only a guess."""
    if not windows:
        return []
    with np.errstate(over="ignore"):
        spread = float(
            np.sqrt(np.average(np.square([w.loss_std for w in windows]), weights=[w.steps for w in windows]))
        )
    together = []
    for some in np.array_split(np.arange(len(windows)), min(most, len(windows))):
        part = [windows[i] for i in some]
        steps = sum(w.steps for w in part)
        loss, norm = (sum(w.steps * getattr(w, n) for w in part) / steps for n in ("loss", "grad_norm"))
        highest, skipped = max(w.grad_max for w in part), sum(w.skipped for w in part)
        together.append(Window(part[-1].step, steps, loss, spread, norm, highest, skipped))
    return together


def turning_points(windows: Sequence[Window]) -> list[float]:
    """The losses at which the curve turned, by more than a tenth of its level and more than four standard errors.

    An extreme counts as a turning point once the curve has come back from it by that much.
    """
    turns: list[float] = []
    extreme, direction = windows[0], 0
    for window in windows[1:]:
        change = window.loss - extreme.loss
        enough = abs(change) > max(_SWING * extreme.loss, _NOISE * _error(window, extreme))
        if direction == 0:
            if enough:
                extreme, direction = window, int(math.copysign(1, change))
        elif change * direction >= 0:
            extreme = window
        elif enough:
            turns.append(extreme.loss)
            extreme, direction = window, -direction
    return turns


def plateau(record: Record) -> Finding | None:
    """The loss does not fall, although the windows are long enough to detect one per cent."""
    windows = record.windows
    if len(windows) < 12 or record.step < MATURE:
        return None
    if windows[0].step > 3 * (windows[0].steps + windows[0].skipped):
        return None  # it started from a trained model, so its first loss is not known
    quarter = len(windows) // 4
    first, third, fourth = windows[:2], windows[-2 * quarter : -quarter], windows[-quarter:]
    level, before, now = (float(np.mean([w.loss for w in part])) for part in (first, third, fourth))
    error = math.hypot(*(math.sqrt(sum(w.error**2 for w in part)) / len(part) for part in (third, fourth)))
    if not (now > 0.95 * level and before - now < 2 * error and 2 * error < 0.01 * now):
        return None
    wider = record.config.model.wider_cure() if record.config else "a wider model"
    faster = f"--learning-rate {record.config.training.learning_rate * 3:.1g}" if record.config else "--learning-rate"
    return Finding(
        "plateau",
        f"the loss began at {level:.3g} and is {now:.3g}; over the last half it fell by {before - now:.2g}, "
        f"less than the noise of {2 * error:.1g}",
        "the model learns nothing: its learning rate is too low, it is too small, or the photos have no colour",
        f"{faster} with --lr-schedule constant; then {wider}; look at the photos with: project7 data",
        "likely",
    )


def ignorance(record: Record) -> Finding | None:
    """A diffusion model, whose targets have unit variance, with nearly the error of always answering 0."""
    mse = number(_dict(record.latest, "terms").get("mse"))
    if not record.config or not record.config.model.UNIT_TARGETS:
        return None
    if mse is None or mse < _IGNORANT or record.step < MATURE:
        return None
    if record.config.model.noise_shift > 4:  # then most timesteps are pure noise, and say nothing
        return None
    found = colours(record)
    if found and not 0.5 < variance_of_truth(found, record.config.model) < 1.5:
        return None
    return Finding(
        "plateau",
        f"the squared error is {mse:.2f} after {record.step} steps, and would be 1 if the network always answered 0",
        "the model learns nothing: its learning rate is far too high, or far too low",
        f"a new model with --learning-rate 1e-4 (it is {record.config.training.learning_rate:g})",
        "certain",
    )


def overfitting(record: Record) -> Finding | None:
    """The validation loss rises for three epochs in a row or more, while the training loss falls."""
    entries = [e for e in record.history if number(e.get("val_loss")) and number(e.get("train_loss"))]
    if len(entries) < 5:
        return None
    best = min(range(len(entries)), key=lambda i: entries[i]["val_loss"])
    learnt = [
        e["train_loss"] - sum(number(_dict(e, "weighted_terms").get(n)) or 0 for n in CRITIC_TERMS) for e in entries
    ]
    tail = [entry["val_loss"] for entry in entries[best:]]
    rising = (
        len(tail) > 3 and tail[-1] > 1.02 * tail[0] and all(b > a for a, b in zip(tail[-4:], tail[-3:], strict=False))
    )
    falling = learnt[-1] < 0.99 * learnt[best]
    if not (rising and falling):
        return None
    return Finding(
        "overfitting",
        f"the validation loss rose from {tail[0]:.3g} (epoch {entries[best].get('epoch', best + 1)}) to "
        f"{tail[-1]:.3g}, while the training loss fell from {learnt[best]:.3g} to {learnt[-1]:.3g}",
        "the photos are learnt by heart: there are too few of them for this model and training time",
        "stop here (best_model.pth is from before), train on more photos, or cut more squares per photo: --crops 8",
        "certain" if tail[-1] > 1.1 * tail[0] else "likely",
    )


def stalled(record: Record) -> Finding | None:
    """The validation loss has not improved for ten epochs and 40 % of the run, at a constant learning rate."""
    losses = [loss for entry in record.history if (loss := number(entry.get("val_loss"))) is not None]
    if len(losses) < max(12, len(record.history)) or (
        record.config and record.config.training.lr_schedule != "constant"
    ):
        return None
    since = len(losses) - 1 - losses.index(min(losses))
    if since < max(10, 0.4 * len(losses)):
        return None
    return Finding(
        "stalled",
        f"the validation loss has not been lower than {min(losses):.4g} for {since} epochs",
        "the model no longer improves at this learning rate",
        f"end with a falling rate: --resume {record.name} --epochs 5 --lr-schedule cosine",
        "possible",
    )


# -- the balance of the terms ----------------------------------------------------------------------------------------


def unbalanced(record: Record) -> Finding | None:
    """One term of the loss is far larger than another."""
    terms = _dict(record.latest, "weighted_terms")
    weighted = {name: abs(value) for name, value in terms.items() if number(value) is not None}
    config = record.config
    if config and config.loss:
        return unbalanced_loss(config, config.loss, record.name, weighted)
    own, rest = weighted.get("mse") or weighted.get("classification"), ("perceptual", "adversarial")
    loud = [(weighted[name] / own, name) for name in rest if own and name in weighted and weighted[name] > 5 * own]
    if not loud:
        return None
    times, name = max(loud)
    weight = getattr(config.objective, f"{name}_weight") / times if config and config.objective else 0.01
    return Finding(
        "unbalanced terms",
        f"{name} counts {times:.0f} times as much as the method's own loss ({weighted[name]:.3g} against {own:.3g})",
        "the network is hardly trained for its own task any more",
        f"--resume {record.name} --{name}-weight {weight:.1g}",
        "likely",
    )


def unbalanced_loss(config: RunConfig, loss: LossConfig, name: str, weighted: dict[str, float]) -> Finding | None:
    terms = LOSS_WEIGHTS[loss.loss]
    if not loss.ab_weight and not loss.lab_weight:
        return Finding(
            "unbalanced terms",
            "--ab-weight is 0",
            "nothing teaches the network which colours are right",
            f"--resume {name} --ab-weight {terms['ab_weight']:g}",
            "certain",
        )
    chroma = sum(weighted.get(n, 0) for n in ("ab", "ab_chrominance", "lab", "saturation"))
    perceptual = weighted.get("perceptual", 0)
    if chroma and perceptual > 10 * chroma:
        raised = loss.ab_weight * perceptual / chroma / 4
        return Finding(
            "unbalanced terms",
            f"the colour terms count {chroma:.3g}, {perceptual / chroma:.0f} times less than perceptual "
            f"({perceptual:.3g})",
            "the network learns textures that look right, but not colours",
            f"--resume {name} --ab-weight {raised:.1g}, or --perceptual-weight {loss.perceptual_weight / 3:.1g}",
            "likely",
        )
    lightness = weighted.get("l_luminance", 0)
    if config.model.outputs == "lab" and chroma and lightness > chroma:
        return Finding(
            "unbalanced terms",
            f"lightness counts {lightness:.3g} and colour only {chroma:.3g}",
            "the network repairs lightness and neglects colour, which should count 2 to 4 times as much",
            f"--resume {name} --l-weight {(loss.l_weight or 1) * chroma / lightness / 3:.1g}, or a higher --ab-weight",
            "likely",
        )
    return None


def unusual_terms(record: Record) -> Finding | None:
    """The root of a squared error is far above that of trained models."""
    terms = _dict(record.latest, "val_terms")
    restores = record.config is not None and getattr(record.config.model, "outputs", "ab") == "lab"
    loss = record.config.loss if record.config else None
    if not loss or record.step < MATURE:
        return None
    for name, highest in _HIGHEST.items():
        value = number(terms.get(name))
        if name == "l_luminance" and not restores:
            continue
        if value is not None and math.sqrt(value) > highest:
            weight = "l_weight" if name == "l_luminance" else "ab_weight"
            return Finding(
                "unusual error",
                f"the root of {name} is {math.sqrt(value):.2f} after {record.step} steps; usual is at most {highest:g}",
                "the answers are further from the truth than a gray picture would be",
                f"--resume {record.name} --{weight.replace('_', '-')} {(getattr(loss, weight) or 1) * 1.5:.2g}; or "
                f"{slower(record, 3)}",
                "likely",
            )
    return None


def discriminator_has_won(record: Record) -> Finding | None:
    terms = _dict(record.latest, "terms")
    critic, truth, estimate = (number(terms.get(n)) for n in ("critic", "critic_of_truth", "critic_of_estimate"))
    counts = "adversarial" in _dict(record.latest, "weighted_terms")  # before, it trains alone and often wins
    if not counts or critic is None or truth is None or estimate is None or critic > 0.1 or truth - estimate < 2:
        return None
    rate = record.config.objective.gan_learning_rate if record.config and record.config.objective else 2e-4
    return Finding(
        "discriminator has won",
        f"its hinge loss is {critic:.2g}: it tells true colours ({truth:+.1f}) from estimated ones ({estimate:+.1f}) "
        "every time",
        "its opinion no longer says which way colours would look truer",
        f"--resume {record.name} --gan-learning-rate {rate / 4:.1g}, or a lower --adversarial-weight",
        "likely",
    )


# -- the colours -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Colours:
    """The colours of the fixed validation pictures in the latest entry. Mean ab per picture: (K, 2), Lab units."""

    colorfulness: float
    colorfulness_truth: float
    means: np.ndarray
    means_truth: np.ndarray
    spread: float  # within a picture
    spread_truth: float


def colours(record: Record) -> Colours | None:
    """The colours of the latest entry; None if there are none yet, too few steps, or only gray photos."""
    found = colours_of(record.latest) if record.step >= MATURE else None
    return found if found and found.colorfulness_truth > GRAY else None


def colours_of(entry: dict[str, Any]) -> Colours | None:
    keys = ("colorfulness", "colorfulness_truth", "picture_ab", "picture_ab_truth", "ab_spread", "ab_spread_truth")
    try:
        found = [np.array(entry.get(key), dtype=float) for key in keys]
    except (TypeError, ValueError):  # not numbers at all
        return None
    shapes = [values.shape for values in found]
    usable = all(np.isfinite(values).all() for values in found) and len(shapes[2]) == 2 and shapes[2][0] > 1
    if not usable or shapes[2] != shapes[3] or shapes[2][1] != 2 or any(shapes[i] for i in (0, 1, 4, 5)):
        return None
    single = {i: float(found[i]) for i in (0, 1, 4, 5)}
    return Colours(single[0], single[1], found[2], found[3], single[4], single[5])


def variance_of_truth(found: Colours, model: Any) -> float:
    """The variance of the true ab in the network's range, which is about 1 for natural photos."""
    off = found.means_truth - np.array(model.ab_mean)
    return float((np.square(off).mean() + found.spread_truth**2) / np.square(model.ab_std).mean())


def constant_output(record: Record) -> Finding | None:
    found = colours(record)
    if (
        not found
        or found.spread > 0.1 * found.spread_truth
        or _between(found.means) > 0.1 * _between(found.means_truth)
    ):
        return None
    a, b = found.means.mean(axis=0)
    return Finding(
        "constant output",
        f"all pictures get one flat colour (a {a:+.0f}, b {b:+.0f}): within a picture ab varies by {found.spread:.1f}, "
        f"the truth by {found.spread_truth:.1f}",
        "the network ignores the photo",
        colour_cure(record),
        "certain",
        collapse=True,
    )


def one_tint(record: Record) -> Finding | None:
    found = colours(record)
    if not found:
        return None
    middle, lengths = found.means.mean(axis=0), np.hypot(*found.means.T)
    together = float(np.hypot(*found.means.sum(axis=0)) / max(lengths.sum(), 1e-9))  # 1: all of one hue
    off = np.hypot(*(middle - found.means_truth.mean(axis=0)))  # an early model is brown, like the mean truth
    alike = _between(found.means) < (0.15 if off > 6 else 0.1) * _between(found.means_truth)
    if not (np.hypot(*middle) > 4 and together > 0.95 and alike) or still_coming(record, found):
        return None
    return Finding(
        "one tint",
        f"all pictures are {hue(*middle)} (a {middle[0]:+.0f}, b {middle[1]:+.0f}): their mean colours differ by "
        f"{_between(found.means):.1f}, those of the truth by {_between(found.means_truth):.1f}",
        "the network gives one colour to everything, the safest answer that it has found",
        colour_cure(record),
        "likely",
        collapse=True,
    )


def still_coming(record: Record, found: Colours) -> bool:
    """Whether the pictures differ more than at two thirds of the steps: early in training, a regression model answers
    with nearly one colour, and improves from there."""
    earlier = [colours_of(e) for e in record.history if 0 < (number(e.get("step")) or 0) <= record.step * 2 / 3]
    before = next((c for c in reversed(earlier) if c), None)
    if before is None:
        return _between(found.means) > 0.07 * _between(found.means_truth)
    return _between(found.means) > 1.05 * _between(before.means)


def colourless(record: Record) -> Finding | None:
    found = colours(record)
    if not found or found.colorfulness > 0.2 * found.colorfulness_truth:
        return None
    return Finding(
        "colourless",
        f"the colorfulness is {found.colorfulness:.1f}, that of the truth {found.colorfulness_truth:.1f}, after "
        f"{record.step} steps",
        "the network answers with the average of all colours, which is gray",
        colour_cure(record),
        "likely",
        collapse=True,
    )


def bias(record: Record) -> Finding | None:
    """The colours are shifted in one direction (sepia, purple, green ...), by more than chance explains."""
    found = colours(record)
    if not found:
        return None
    off = found.means - found.means_truth
    mean, error = off.mean(axis=0), off.std(axis=0, ddof=1) / math.sqrt(len(off))
    if not (np.hypot(*mean) > 8 and np.hypot(*mean) > _NOISE * np.hypot(*error)):
        return None
    name = {"yellow": "sepia", "orange": "sepia"}.get(hue(*mean), hue(*mean))
    return Finding(
        f"{name} bias",
        f"the pictures are on average a {mean[0]:+.0f}, b {mean[1]:+.0f} off the truth (chance explains "
        f"{_NOISE * np.hypot(*error):.0f})",
        "the network is too cautious, or its loss favours one hue",
        colour_cure(record),
        "likely",
    )


def over_saturated(record: Record) -> Finding | None:
    found = colours(record)
    if not found or found.colorfulness < max(1.5 * found.colorfulness_truth, found.colorfulness_truth + 15):
        return None
    config = record.config
    critic = config is not None and config.objective is not None and config.objective.gan
    return Finding(
        "over-saturation",
        f"the colorfulness is {found.colorfulness:.0f}, that of the truth {found.colorfulness_truth:.0f}",
        "colours are stronger than in real photos",
        "a lower --adversarial-weight" if critic else config.model.calmer_cure() if config else "longer training",
        "likely",
    )


def gray_data(record: Record) -> Finding | None:
    share = number(record.latest.get("gray_share"))
    return None if share is None else gray_share_finding(share)


def gray_share_finding(share: float) -> Finding | None:
    """The finding for a share of nearly gray training photos; None if the share is small."""
    if share < _MANY_GRAY:
        return None
    return Finding(
        "gray data",
        f"{share:.0%} of the training photos are nearly gray (colorfulness below {GRAY:g})",
        "gray photos teach gray answers",
        f"train on the others: --min-colorfulness {GRAY:g}",
        "certain",
    )


def unusual_rate(record: Record) -> Finding | None:
    """The learning rate in the settings is far from the usual one; it needs no curve, because none exists at first."""
    if not record.config:
        return None
    rate, usual = record.config.training.learning_rate, TrainingConfig().learning_rate
    if usual / _UNUSUAL < rate < usual * _UNUSUAL:
        return None
    high = rate > usual
    return Finding(
        "bold learning rate" if high else "timid learning rate",
        f"the learning rate {rate:g} is {f'{rate / usual:.0f} times' if high else f'1/{usual / rate:.0f} of'} the "
        f"usual {usual:g}",
        "the weights jump over what they should learn" if high else "the weights hardly move",
        f"a new model with --learning-rate {usual:g}",
        "likely",
    )


CHECKS: tuple[Callable[[Record], Finding | None], ...] = (
    not_finite,
    divergence,
    constant_output,
    one_tint,
    colourless,
    exploding_gradients,
    oscillation,
    discriminator_has_won,
    gray_data,
    unusual_rate,
    unbalanced,
    unusual_terms,
    bias,
    over_saturated,
    overfitting,
    ignorance,
    plateau,
    stalled,
)
_IMPLIED = {
    "constant output": {"one tint", "colourless", "bias"},
    "one tint": {"colourless", "bias"},
    "divergence": {"exploding gradients", "oscillation", "plateau", "stalled"},
}


# -- cures and words -------------------------------------------------------------------------------------------------


def slower(record: Record, times: float, *, schedule: str | None = None) -> str:
    """A lower learning rate, as flags of a resumed run, with the run's schedule unless another one is given."""
    if not record.config:
        return "a lower --learning-rate"
    rate = record.config.training.learning_rate / times
    schedule = schedule or record.config.training.lr_schedule
    return f"--resume {record.name} --learning-rate {rate:.2g} --lr-schedule {schedule}"


def colour_cure(record: Record) -> str:
    """The cure for missing colours: a lower learning rate if it is high, else the method's own cure."""
    config = record.config
    if config is None:
        return "train longer, or at a lower --learning-rate"
    training = config.training
    if training.learning_rate > _BOLD_RATE:
        return f"a new model with --learning-rate 1e-4 (it is {training.learning_rate:g})"
    return config.model.colour_cure(config, record.name, slower(record, 3))


def hue(a: float, b: float) -> str:
    """The name of a direction in the ab plane."""
    names = ("magenta-red", "orange", "yellow", "green", "green", "blue-green", "blue", "purple")
    return names[round(math.degrees(math.atan2(b, a)) / 45) % 8]


def _between(means: np.ndarray) -> float:
    """How much the pictures' mean colours (K, 2) differ: the root mean square distance to their mean."""
    return float(np.sqrt(np.square(means - means.mean(axis=0)).sum(axis=1).mean()))


def _error(a: Window, b: Window) -> float:
    return math.hypot(a.error, b.error)


def _dict(entry: dict[str, Any], key: str) -> dict[str, Any]:
    """The dictionary under a key of an entry; empty if a history from elsewhere holds something else."""
    found = entry.get(key)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None, whatever a file may hold."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None
