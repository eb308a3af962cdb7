"""The doctor: what it finds in artificial curves and pictures, when it stays silent, and how it says what it found."""

import dataclasses
import io
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from Project7 import health, recipe, resume
from Project7.config import SECTIONS, RunConfig
from Project7.doctor_report import curves_of, draw_curves, show_diagnosis, sparkline
from Project7.health import MATURE, Finding, Record, Window, diagnose
from Project7.loss_config import LOSS_WEIGHTS, LossConfig
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.training_config import ObjectiveConfig, TrainingConfig

# -- made-up runs ----------------------------------------------------------------------------------------------------


def windows(losses, *, std=0.0, steps=100, norms=1.0, skipped=0) -> list[Window]:
    """Windows with the given means and spread."""
    many = zip(losses, np.broadcast_to(norms, len(losses)), strict=True)
    return [Window((n + 1) * steps, steps, float(x), std, float(g), float(g), skipped) for n, (x, g) in enumerate(many)]


def measured(levels, *, noise, steps, seed) -> list[Window]:
    """Windows as the trainer makes them: means over steps whose losses scatter by `noise`, relative to their level."""
    rng = np.random.default_rng(seed)
    losses = np.abs(np.asarray(levels)[:, None] * rng.normal(1, noise, (len(levels), steps)))
    norms = np.exp(rng.normal(0, 0.2, len(levels)))
    rows = zip(losses.mean(axis=1), losses.std(axis=1), norms, strict=True)
    return [Window((n + 1) * steps, steps, *map(float, (x, s, g, 2 * g))) for n, (x, s, g) in enumerate(rows)]


def falling(count: int, *, to=0.3, pace=8.0) -> np.ndarray:
    """A loss that falls from 1 towards `to`."""
    return to + (1 - to) * np.exp(-pace * np.arange(count) / count)


def record(curve=(), *history, config=None, **entry) -> Record:
    """A record of windows (or of their losses), the earlier epochs, and the content of the latest entry."""
    curve = list(curve)
    curve = windows(curve) if curve and not isinstance(curve[0], Window) else curve
    latest = {"epoch": len(history) + 1, "step": curve[-1].step if curve else 10_000} | entry
    return Record("m", config, [*history, latest], curve)


def said(found: Record) -> set[str]:
    return {finding.ailment for finding in diagnose(found)}


TRUTH = np.random.default_rng(0).normal((2, 9), (10, 14), (8, 2))  # mean colours of eight natural photos


def coloured(means=TRUTH, *, colorfulness=38.0, spread=14.0, step=5000, **more) -> dict:
    """The part of an entry about the fixed pictures: an answer, and a truth of colorfulness 40."""
    pictures = {"picture_ab": np.asarray(means).tolist(), "picture_ab_truth": TRUTH.tolist()}
    spreads = {"ab_spread": spread, "ab_spread_truth": 15.0}
    return {"step": step, "colorfulness": colorfulness, "colorfulness_truth": 40.0} | pictures | spreads | more


def run_config(model=None, *, loss=None, objective=None, **training) -> RunConfig:
    loss = LossConfig(**{"perceptual_net": "random"} | loss) if loss is not None else None
    objective = ObjectiveConfig(**objective) if objective is not None else None
    model = model or (RegressionConfig() if loss else DiffusionConfig())
    return RunConfig(model=model, loss=loss, objective=objective, training=TrainingConfig(**training))


RESTORES = RegressionConfig(outputs="lab")
ENHANCED = {"loss": "enhanced"}
GAN = {"gan": True}
EVERY_EPOCH = [{"epoch": n, "train_loss": 1 - 0.05 * n, "val_loss": 0.5} for n in range(1, 5)]


def epochs(train, val) -> list[dict]:
    return [
        {"epoch": n, "step": 100 * n, "train_loss": t, "val_loss": v}
        for n, (t, v) in enumerate(zip(train, val, strict=True), start=1)
    ]


OVERFITTED = epochs(np.linspace(1, 0.5, 10), [1, 0.9, 0.8, 0.7, 0.65, 0.7, 0.72, 0.75, 0.8, 0.9])
STALLED = epochs([0.5] * 20, [1, 0.9, 0.8, 0.7, *[0.71] * 16])
UP_AND_DOWN = [1, 0.8, 0.6, *[0.4, 0.5] * 12]
TERMS = {"ab": 0.01, "l_luminance": 0.002, "perceptual": 0.02}


def sick(config=None) -> dict[str, tuple[str, Record]]:
    """Each case by what was provoked: the ailment, and a run that has this ailment and no other."""

    def made(curve=(), *history, config=config, **entry):
        return record(curve, *history, config=config, **entry)

    flat = np.tile([0.0, 0.0], (8, 1))
    with_gan = run_config(objective=GAN)
    return {
        "bad steps": ("NaN", made(windows([0.5] * 4, skipped=5))),
        "no validation loss": ("NaN", made([0.5] * 4, val_loss=None)),
        "up again": ("divergence", made([1, 0.8, 0.6, 0.5, 0.4, 1.3, 1.4, 1.5])),
        "steep": ("exploding gradients", made(windows(np.linspace(1, 0.5, 20), norms=np.geomspace(1, 100, 20)))),
        "up and down": ("oscillation", made(UP_AND_DOWN)),
        "nothing learnt": ("plateau", made(windows([0.9] * 24, std=0.02))),
        "always 0": ("plateau", made(terms={"mse": 0.97}, step=2000)),
        "by heart": ("overfitting", Record("m", config, OVERFITTED, [])),
        "no better": ("stalled", Record("m", config, STALLED, [])),
        "loud features": (
            "unbalanced terms",
            made(config=run_config(objective={}), weighted_terms={"mse": 0.1, "perceptual": 2.0}),
        ),
        "loud critic": ("unbalanced terms", made(config=with_gan, weighted_terms={"mse": 0.1, "adversarial": -2.0})),
        "no ab": ("unbalanced terms", made(config=run_config(loss=ENHANCED | {"ab_weight": 0}))),
        "quiet ab": (
            "unbalanced terms",
            made(config=run_config(loss={}), weighted_terms={"ab": 0.01, "lab": 0.01, "perceptual": 0.5}),
        ),
        "loud L": (
            "unbalanced terms",
            made(
                config=run_config(RESTORES, loss=ENHANCED),
                weighted_terms={"ab_chrominance": 0.01, "l_luminance": 0.05, "perceptual": 0.02},
            ),
        ),
        "ab far off": ("unusual error", made(config=run_config(loss={}), val_terms=TERMS | {"ab": 0.16})),
        "L far off": (
            "unusual error",
            made(config=run_config(RESTORES, loss=ENHANCED), val_terms=TERMS | {"l_luminance": 0.04}),
        ),
        "critic knows": (
            "discriminator has won",
            made(
                config=with_gan,
                terms={"critic": 0.01, "critic_of_truth": 1.5, "critic_of_estimate": -1.5, "adversarial": 1.5},
                weighted_terms={"mse": 0.1, "adversarial": 0.015},
            ),
        ),
        "flat colour": ("constant output", made(**coloured(np.add(flat, (20, 25)), spread=0.5, colorfulness=20))),
        "flat gray": ("constant output", made(**coloured(flat, spread=0.1, colorfulness=0.5))),
        "one hue": ("one tint", made(**coloured(np.add(flat, (4, 12)), spread=5))),
        "gray": ("colourless", made(**coloured(TRUTH * 0.15, spread=3, colorfulness=6))),
        "brown": ("sepia bias", made(**coloured(np.add(TRUTH, (3, 15))))),
        "violet": ("purple bias", made(**coloured(np.add(TRUTH, (10, -12))))),
        "grass": ("green bias", made(**coloured(np.add(TRUTH, (-14, 5))))),
        "too bold": ("over-saturation", made(**coloured(colorfulness=70))),
        "too fast": ("bold learning rate", made(config=run_config(learning_rate=3e-2))),
        "too slow": ("timid learning rate", made(config=run_config(learning_rate=5e-7))),
        "gray photos": ("gray data", made(gray_share=0.7)),
    }


SICK = sick(run_config())


@pytest.mark.parametrize("name", SICK)
def test_an_ailment_is_found_and_nothing_else(name):
    ailment, run = SICK[name]
    assert said(run) == {ailment}


def test_each_check_has_a_run_here_that_it_alone_finds_ill():
    """A check without such a run would be untested."""
    for check in health.CHECKS:
        found = [name for name, (ailment, run) in SICK.items() if (f := check(run)) and f.ailment == ailment]
        assert found, check.__name__


@pytest.mark.parametrize("name", SICK)
def test_a_finding_has_numbers_a_meaning_and_a_cure(name):
    (finding,) = diagnose(SICK[name][1])
    assert re.search(r"\d", finding.seen)
    assert finding.meaning
    assert finding.cure
    assert finding.sure in ("certain", "likely", "possible")
    line = finding.line()
    assert line.startswith(f"{finding.ailment} ({finding.sure}): {finding.seen}. ")
    assert line.endswith(".")
    assert "\n" not in line


# -- silence ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    noise=st.floats(0.01, 0.6),
    steps=st.integers(10, 200),
    count=st.integers(1, 150),
    to=st.floats(0.02, 0.6),
    pace=st.floats(2, 20),
)
def test_noise_around_a_falling_curve_is_healthy(seed, noise, steps, count, to, pace):
    """As in the trainer, the spread of a window is measured in as few steps as its mean."""
    curve = measured(falling(count, to=to, pace=pace), noise=noise, steps=steps, seed=seed)
    assert said(record(curve)) == set()


def test_the_noise_of_a_long_run_of_short_windows_is_healthy():
    """A hundred epochs of a small set have two thousand windows of ten steps each. Some pair of them always lies far
    apart, which is not a swing."""
    ill = [seed for seed in range(20) if said(record(measured(falling(2000, pace=20), noise=0.4, steps=10, seed=seed)))]
    assert ill == []


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_cosine_run_is_healthy_at_every_epochs_end(seed):
    """The loss falls to the end, the gradient grows a little as the loss becomes small, and validation stays close."""
    curve = measured(0.15 + 0.85 * falling(400, to=0, pace=6), noise=0.2, steps=30, seed=seed)
    curve = [dataclasses.replace(w, grad_norm=w.grad_norm * (1 + n / 200)) for n, w in enumerate(curve)]
    config = run_config(lr_schedule="cosine", epochs=20)
    history = epochs(*(falling(20, to=to, pace=6) for to in (0.15, 0.17)))
    for n in range(1, 21):
        run = Record("m", config, [*history[: n - 1], history[n - 1] | coloured(step=600 * n)], curve[: 20 * n])
        assert said(run) == set(), n


@pytest.mark.parametrize("seed", range(10))
def test_a_finished_run_is_flat_at_a_low_level_and_healthy(seed):
    levels = np.concatenate([falling(40, to=0.3), np.full(200, 0.3)])
    history = epochs(levels[19::20], levels[19::20])
    run = record(measured(levels, noise=0.1, steps=100, seed=seed), *history, config=run_config(lr_schedule="cosine"))
    assert said(run) == set()


@pytest.mark.parametrize("count", range(6))
def test_so_few_windows_say_nothing(count):
    curve = windows([1, 5, 0.2, 9, 0.1][:count], norms=[1, 50, 2, 900, 3][:count])
    assert said(record(curve)) == set()
    assert said(Record("m", None, [], curve)) == set()


@pytest.mark.parametrize("std", [0.0, 0.05, 0.5, 2.0])
def test_the_noise_of_the_windows_decides_what_is_a_swing(std):
    """The curve is the same; its ups and downs of 0.1 are a swing, or chance."""
    error = std / 10
    found = said(record(windows(UP_AND_DOWN, std=std)))
    assert found == ({"oscillation"} if 4 * math.hypot(error, error) < 0.1 else set())


@pytest.mark.parametrize("std", [0.0, 0.1, 1.0, 2.0])
def test_the_noise_of_the_windows_decides_what_is_a_divergence(std):
    error = std / 10
    found = said(record(windows([1, 0.8, 0.6, 0.5, 0.5, 1.3, 1.3, 1.3], std=std)))
    assert found == ({"divergence"} if 6 * math.hypot(error, error) < 0.8 else set())


@pytest.mark.parametrize("swing", [0.05, 0.09, 0.12, 0.3])
def test_a_swing_of_less_than_a_tenth_is_none(swing):
    found = said(record([1, 0.8, *[0.5, 0.5 * (1 + swing)] * 10]))
    assert found == ({"oscillation"} if swing > 0.1 else set())


@pytest.mark.parametrize("now", [0.55, 0.59, 0.61, 0.9])
def test_a_rise_by_half_is_a_divergence_and_a_smaller_one_is_none(now):
    assert said(record([1, 0.8, 0.6, 0.5, 0.4, now, now, now])) == ({"divergence"} if now > 0.6 else set())


def test_a_spike_that_passes_is_no_divergence():
    assert said(record([1, 0.8, 0.6, 0.5, 0.4, 3, 0.5, 0.4])) == set()
    assert said(record([1, 0.8, 0.6, 0.5, 0.4, 0.4, 3, 0.4])) == set()


def test_a_slow_fall_is_no_plateau():
    """The loss falls by a tenth of a per cent per window, which is seen through its noise."""
    assert said(record(windows(np.linspace(1, 0.96, 40), std=0.03))) == set()


def test_only_a_diffusion_models_error_says_that_it_knows_nothing():
    """The error of a regression model depends on the colours of its photos: 0.9 may be the best possible."""
    for model, mse, expected in (
        (DiffusionConfig(), 0.95, {"plateau"}),
        (DiffusionConfig(), 0.5, set()),
        (RegressionConfig(), 0.95, set()),
        (ClassificationConfig(), 0.95, set()),
    ):
        assert said(record(config=run_config(model), terms={"mse": mse})) == expected
        assert said(record(config=run_config(model), terms={"mse": mse}, step=MATURE - 1)) == set()


def test_a_diffusion_model_of_vivid_photos_is_not_called_ignorant():
    """If the colours are three times as far apart, a model that answers 0 has an error near 9."""
    vivid = coloured(TRUTH * 3, colorfulness=100, colorfulness_truth=105, ab_spread_truth=45.0, spread=42.0)
    vivid |= {"picture_ab_truth": (TRUTH * 3).tolist(), "terms": {"mse": 1.2}}
    assert said(record(falling(20, to=0.3) * 4, config=run_config(), **vivid)) == set()


def test_a_plateau_that_is_too_noisy_to_be_seen_is_not_claimed():
    assert said(record(windows([0.9] * 24, std=0.02))) == {"plateau"}
    assert said(record(windows([0.9] * 24, std=0.5))) == set()


def test_a_trained_model_that_goes_on_under_another_objective_is_on_no_plateau():
    """It starts as good as it can get, and nothing is wrong with the learning rate, the model or the photos."""
    history = [
        {"epoch": n, "step": 1000 * n, "objective": "a" if n < 6 else "b", "train_loss": 0.3} for n in range(1, 9)
    ]
    curve = [dataclasses.replace(w, step=5000 + w.step) for w in windows([0.3] * 30, std=0.02)]
    for number, entry in enumerate(history[5:]):
        entry["windows"] = [dataclasses.astuple(w) for w in curve[10 * number : 10 * number + 10]]
        entry["windows"] = [list(w) for w in entry["windows"]]
    assert said(health.record_of("m", None, history)) == set()


@pytest.mark.parametrize(
    "val",
    [
        [1, 0.8, 0.7, 0.6, 0.55, 0.56, 0.54, 0.57, 0.55, 0.56],  # up and down
        [1, 0.9, 0.8, 0.7, 0.65, 0.60, 0.55, 0.551, 0.552, 0.553],  # hardly up
        [1, 0.9, 0.8, 0.7, 0.65, 0.60, 0.55, 0.5, 0.55, 0.6],  # not for long
    ],
)
def test_validation_that_wavers_is_no_overfitting(val):
    assert said(Record("m", None, epochs(np.linspace(1, 0.5, 10), val), [])) == set()


def test_validation_that_rises_with_training_is_no_overfitting():
    val = [entry["val_loss"] for entry in OVERFITTED]
    assert said(Record("m", None, epochs(val, val), [])) == set()


def test_the_discriminators_opinion_is_not_what_training_learns_by_heart():
    """The adversarial term falls below 0 and lowers the training loss; validation does not measure it."""
    history = epochs(np.linspace(0.6, 0.3, 10), [0.6, 0.5, 0.45, 0.42, 0.4, 0.405, 0.41, 0.415, 0.42, 0.43])
    for entry in history:
        critic = entry["train_loss"] - entry["val_loss"]
        entry["weighted_terms"] = {"mse": entry["val_loss"], "adversarial": critic}
    run = Record("m", run_config(objective=GAN), history, [])
    assert "overfitting" not in said(run)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_a_rate_that_falls_is_not_stalled(schedule):
    assert said(Record("m", run_config(lr_schedule="constant"), STALLED, [])) == {"stalled"}
    assert said(Record("m", run_config(lr_schedule=schedule), STALLED, [])) == set()


def test_a_better_validation_of_late_is_not_stalled():
    assert said(Record("m", None, [*STALLED[:12], *epochs([0.5], [0.69])], [])) == set()


@pytest.mark.parametrize("skipped", [1, 2])
def test_a_bad_step_or_two_are_nothing(skipped):
    run = windows([0.5] * 5)
    run[2] = dataclasses.replace(run[2], skipped=skipped)
    assert said(record(run)) == set()


def test_overflowing_steps_of_fp16_are_normal():
    curve = windows([0.5] * 5, skipped=2)
    assert said(record(curve, config=run_config(mixed_precision="bf16"))) == {"NaN"}
    assert said(record(curve, config=run_config(mixed_precision="fp16"))) == set()


def test_balanced_terms_are_healthy():
    for outputs, name, weighted in (
        ("ab", "simple", {"perceptual": 0.3, "lab": 0.02, "ab": 0.05}),
        ("ab", "enhanced", {"perceptual": 0.15, "l_luminance": 0, "ab_chrominance": 0.06, "saturation": 0.01}),
        ("lab", "enhanced", {"perceptual": 0.1, "l_luminance": 0.003, "ab_chrominance": 0.04, "saturation": 0.01}),
        ("ab", "weighted", {"ab": 0.03}),
    ):
        config = run_config(RegressionConfig(outputs=outputs), loss={"loss": name})
        assert said(record(config=config, weighted_terms=weighted, val_terms=TERMS)) == set(), name
    weighted = {"mse": 0.2, "perceptual": 0.1, "adversarial": -0.01}
    assert said(record(config=run_config(objective=GAN), weighted_terms=weighted)) == set()


def test_good_colours_are_healthy():
    rng = np.random.default_rng(1)
    for _ in range(50):
        means = TRUTH * rng.uniform(0.5, 1.1) + rng.normal(0, 6, TRUTH.shape)
        assert said(record(**coloured(means, colorfulness=rng.uniform(15, 45), spread=rng.uniform(6, 18)))) == set()


def test_few_pictures_that_are_off_by_chance_are_no_bias():
    """The answers of a hundred models scatter around the truth by 20 per picture."""
    rng = np.random.default_rng(2)
    ill = [n for n in range(100) if said(record(**coloured(TRUTH + rng.normal(0, 20, TRUTH.shape))))]
    assert len(ill) <= 1


# -- how old a run is ------------------------------------------------------------------------------------------------

OF_COLOURS = ("flat colour", "flat gray", "one hue", "gray", "brown", "violet", "grass", "too bold")
MATURE_ONLY = (*OF_COLOURS, "ab far off", "L far off")


@pytest.mark.parametrize("name", MATURE_ONLY)
def test_colours_are_judged_from_step_1000_on(name):
    ailment, run = SICK[name]
    for step, expected in {1: set(), MATURE - 1: set(), MATURE: {ailment}}.items():
        assert said(dataclasses.replace(run, history=[run.latest | {"step": step}])) == expected, step


@pytest.mark.parametrize("last", [MATURE - 1, MATURE])
def test_a_plateau_is_one_from_step_1000_on(last):
    flat = [dataclasses.replace(w, step=last * (n + 1) // 30) for n, w in enumerate(windows([0.9] * 30, std=0.02))]
    assert said(record(flat)) == ({"plateau"} if last == MATURE else set())


@pytest.mark.parametrize(
    ("direction", "name"),
    [
        ((1, 0), "magenta-red"),
        ((1, 1), "orange"),
        ((0, 1), "yellow"),
        ((-1, 1), "green"),
        ((-1, 0), "green"),
        ((-1, -1), "blue-green"),
        ((0, -1), "blue"),
        ((1, -1), "purple"),
    ],
)
def test_a_direction_in_the_ab_plane_has_the_name_that_a_person_would_give_it(direction, name):
    assert health.hue(*direction) == name


def test_colours_of_a_gray_set_are_not_judged():
    run = coloured(np.zeros((8, 2)), spread=0.1, colorfulness=0.5, colorfulness_truth=9.0)
    assert said(record(**run)) == set()


@pytest.mark.parametrize("key", ["picture_ab", "picture_ab_truth", "colorfulness", "ab_spread", "ab_spread_truth"])
def test_an_entry_without_some_measure_of_the_pictures_is_not_judged(key):
    """An older history has only colorfulness and the mean of all."""
    for entry in (coloured(np.full((8, 2), 15), spread=0.1), coloured(colorfulness=90.0)):
        assert said(record(**entry)) != set()
        assert said(record(**(entry | {key: None}))) == set()
        del entry[key]
        assert said(record(**entry)) == set()


# -- lightness -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    loss=st.sampled_from(list(LOSS_WEIGHTS)),
    weighted=st.fixed_dictionaries({n: st.floats(0, 10) for n in ("ab", "lab", "saturation", "l_luminance")}),
    perceptual=st.floats(0, 10),
    error=st.floats(0, 4),
)
def test_a_model_of_ab_alone_is_never_told_of_lightness(loss, weighted, perceptual, error):
    config = run_config(RegressionConfig(outputs="ab"), loss={"loss": loss})
    terms = {"l_luminance": error, "ab": error / 3, "ab_chrominance": error / 3}
    run = record(config=config, weighted_terms=weighted | {"perceptual": perceptual}, val_terms=terms)
    for finding in diagnose(run):
        words = " ".join(str(value) for value in dataclasses.astuple(finding))
        assert not re.search(r"--l-weight|lightness|luminance", words), words


# -- what the windows are made from ----------------------------------------------------------------------------------

OLDER = {"epoch": 1, "step": 100, "train_loss": 0.5, "train_loss_std": 0.1, "grad_norm": 2.0}


def test_an_older_history_has_a_window_an_epoch():
    history = [OLDER, OLDER | {"epoch": 2, "step": 300, "train_loss": 0.4}]
    assert health.record_of("m", None, history).windows == [
        Window(100, 100, 0.5, 0.1, 2.0, 2.0),
        Window(300, 200, 0.4, 0.1, 2.0, 2.0),
    ]


def test_a_history_that_became_finer_on_the_way_is_read_whole():
    found = health.record_of("m", None, [OLDER, OLDER | {"step": 120, "windows": [[110, 10, 0.3, 0.1, 1.0, 2.0, 0]]}])
    assert [w.step for w in found.windows] == [100, 110]
    assert found.windows[1] == Window(110, 10, 0.3, 0.1, 1.0, 2.0, 0)
    assert found.step == 120


def test_windows_since_the_last_entry_come_after_its_own():
    found = health.record_of("m", None, [OLDER], more=[[110, 10, 0.3, 0.1, 1.0, 2.0, 0]])
    assert [w.step for w in found.windows] == [100, 110]
    assert found.step == 110


def test_only_what_was_trained_under_the_latest_objective_counts():
    """When terms are added, a loss that is three times as high is not a divergence, and 0.1 is not a loss to return
    to."""
    before = [OLDER | {"epoch": n, "step": 100 * n, "train_loss": 0.1, "objective": "mse"} for n in range(1, 9)]
    after = [OLDER | {"epoch": n, "step": 100 * n, "train_loss": 0.3, "objective": "both"} for n in range(9, 14)]
    found = health.record_of("m", None, before + after)
    assert [w.loss for w in found.windows] == [0.3] * 5

    assert [entry["epoch"] for entry in found.history] == [9, 10, 11, 12, 13]
    assert said(found) == set()
    assert said(health.record_of("m", None, [e | {"objective": "mse"} for e in before + after])) == {"divergence"}


GARBAGE = [
    None,
    True,
    "x",
    "",
    -1,
    0,
    1e308,
    math.nan,
    math.inf,
    [],
    {},
    [1, 2],
    ["x"],
    [[1]],
    [[1, 2], [3]],
    {"a": "b"},
]
KEYS = [
    "epoch", "step", "objective", "train_loss", "train_loss_std", "grad_norm", "val_loss", "windows", "gray_share",
    "terms", "weighted_terms", "val_terms", "rollbacks", "findings", *coloured(),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_garbage_in_an_entry_is_passed_over(key):
    """The history is a file, which another program or a person may have changed."""
    whole = [e | coloured(step=5000 + n) | {"terms": TERMS, "val_terms": TERMS} for n, e in enumerate(OVERFITTED)]
    for config, value in itertools.product((None, run_config(objective=GAN), run_config(loss={})), GARBAGE):
        for places in (range(10), [9]):
            broken = [e | {key: value} if n in places else e for n, e in enumerate(whole)]
            run = health.record_of("m", config, broken)
            assert all(isinstance(finding, Finding) for finding in diagnose(run)), value
            curves_of([run])


@pytest.mark.parametrize("key", KEYS)
def test_an_entry_without_some_key_is_read(key):
    whole = [e | coloured(step=5000 + n) for n, e in enumerate(OVERFITTED)]
    broken = [{k: v for k, v in entry.items() if k != key} for entry in whole]
    assert said(health.record_of("m", None, broken)) <= {"overfitting"}


@pytest.mark.parametrize(
    "found", [[1, 2], "windows", [[1] * 6], [[1] * 8], [[None] * 7], [["1"] * 7], [{}], [None], {}, [[math.nan] * 7]]
)
def test_windows_that_are_none_are_passed_over(found):
    good = [100, 10, 0.5, 0.1, 1.0, 2.0, 0]
    run = health.record_of("m", None, [OLDER | {"windows": found}, OLDER | {"windows": [good]}])
    assert Window(*good) in run.windows
    assert diagnose(run) == []


# -- several findings ------------------------------------------------------------------------------------------------


def test_what_follows_from_a_graver_finding_is_not_said_again():
    curve = windows([1, 0.8, 0.6, 0.5, *[0.4, 0.5] * 8, 2, 2.1, 2.2], norms=[*[1] * 16, *[99] * 7])
    run = Record("m", None, STALLED, curve)
    for check in (health.oscillation, health.exploding_gradients, health.plateau, health.stalled):
        assert check(run), "a fall that was undone is also this"
    assert said(run) == {"divergence"}


def test_no_ailment_is_found_twice():
    run = record(windows([0.97] * 24, std=0.02), config=run_config(), terms={"mse": 0.97})
    assert health.ignorance(run)
    assert health.plateau(run)
    assert [finding.ailment for finding in diagnose(run)] == ["plateau"]


@pytest.mark.parametrize(("a", "b"), [(4, 30), (25, -30), (-30, 5), (30, 0)])
def test_one_colour_for_everything_is_one_finding_whatever_the_colour(a, b):
    flat = np.tile([a, b], (8, 1))
    assert said(record(**coloured(flat, spread=0.5, colorfulness=7))) == {"constant output"}
    assert said(record(**coloured(flat, spread=5, colorfulness=7))) == {"one tint"}


def test_the_gravest_comes_first():
    """Findings that destroy the weights come first, and then the order is by how sure they are."""
    curve = windows([1, 0.8, 0.6, 0.5, 0.4, 0.7, 0.7, 0.7])  # a likely divergence
    latest = STALLED[-1] | coloured(np.zeros((8, 2)), spread=0.1, colorfulness=70) | {"gray_share": 0.9}
    findings = diagnose(Record("m", None, [*STALLED[:-1], latest], curve))
    ranks = [(not f.collapse, ("certain", "likely", "possible").index(f.sure)) for f in findings]
    assert ranks == sorted(ranks)
    names = [f.ailment for f in findings]
    assert names[:4] == ["constant output", "divergence", "gray data", "over-saturation"]


def test_only_what_destroys_the_weights_is_a_collapse():
    """--on-collapse acts on these findings, and not on a slow or an unbalanced run."""
    found = {ailment for ailment, run in SICK.values() if diagnose(run)[0].collapse}
    assert found == {"NaN", "divergence", "constant output", "one tint", "colourless"}
    (finding,) = diagnose(SICK["bad steps"][1])
    assert not finding.collapse, "a few steps that were left out did no harm"


# -- cures -----------------------------------------------------------------------------------------------------------

TRAININGS = [
    {"batch_size": 4, "learning_rate": 1e-4},
    {"batch_size": 32, "learning_rate": 3e-3, "lr_schedule": "one-cycle"},
    {"batch_size": 64, "learning_rate": 1e-6, "lr_schedule": "cosine"},
]
MODELS = {
    "diffusion": {},
    "epsilon": {"model": DiffusionConfig(prediction_type="epsilon")},
    "terms": {"objective": GAN},
    "classification": {"model": ClassificationConfig()},
    "regression": {"model": RegressionConfig()},
    "simple": {"loss": {}},
    "weighted": {"loss": {"loss": "weighted"}},
    "enhanced": {"loss": ENHANCED},
    "maximum": {"loss": ENHANCED | {"preset": "maximum"}},
    "restoration": {"model": RESTORES, "loss": ENHANCED},
}
CONFIGS = {
    f"{name}, batch {training['batch_size']}": run_config(**parts, **training)
    for name, parts in MODELS.items()
    for training in TRAININGS
}


def findings_of(config: RunConfig | None) -> list[Finding]:
    """The findings of every ailment that a run of this configuration can have."""
    found = []
    for _, run in sick(config).values():
        own = run.config  # of a run that needs one of its own kind
        kinds = [(bool(c and c.loss), bool(c and c.objective), c and c.model.method) for c in (own, config)]
        if own is config or kinds[0] == kinds[1]:
            found += diagnose(dataclasses.replace(run, config=config))
    return found


def sections_of(config: RunConfig) -> dict:
    if config.model.method == "classification":
        return SECTIONS | {"model": ClassificationConfig}
    if config.model.method == "regression":
        of = config.loss.loss if config.loss else "simple"
        return recipe.regression("script.py", "", loss=of, outputs=config.model.outputs).sections
    return SECTIONS | ({"objective": ObjectiveConfig} if config.objective else {})


RECIPES = [
    recipe.Recipe("a.py", "", SECTIONS | {"objective": ObjectiveConfig}, stages=True),
    recipe.Recipe("b.py", "", SECTIONS | {"model": ClassificationConfig}),
    recipe.regression("c.py", "", loss="simple", outputs="ab"),
]
FLAGS = {flag for one in RECIPES for flag in recipe.make_parser(one)._option_string_actions}


@pytest.mark.parametrize("name", [None, *CONFIGS])
def test_every_flag_of_a_cure_is_one_of_a_recipe(name):
    cures = [finding.cure for finding in findings_of(CONFIGS.get(name))]
    assert len(cures) > 10
    flags = {flag for cure in cures for flag in re.findall(r"--[\w-]+", cure)}
    assert flags
    assert flags <= FLAGS


def resumed_parts(cure: str) -> list[str]:
    """The alternatives of a cure that continue the model; those after `a new model` do not."""
    if "--resume" not in cure:
        return []
    return [part for part in re.split(r", or |; or |; ", cure.split("a new model")[0]) if "--" in part]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cure_of_a_resumed_run_changes_only_what_such_a_run_may_change(name):
    """Each alternative is parsed as it would be typed. A value that is left open becomes half of the present one."""
    config = CONFIGS[name]
    stored = {"config": config.model_dump(mode="json"), "epoch": 3}
    values = config.training.model_dump() | (config.loss or config.objective or config.model).model_dump()
    refused = []
    for finding in findings_of(config):
        for part in resumed_parts(finding.cure):
            flags = re.findall(r"--([a-z][a-z-]*)(?: ([\d.][\w.+-]*|constant|cosine|one-cycle|no|m)\b)?", part)
            given = {flag.replace("-", "_"): value for flag, value in flags if flag != "resume"}
            if len(flags) > len(given) + ("--resume" in part):
                refused.append(f"{part}: one flag with two values")
            given = {n: value or str((values[n] or 1) / 2) for n, value in given.items()}
            try:
                resume.merge(stored, Path("config.json"), given, sections_of(config))
            except recipe.UsageError as error:
                refused.append(f"{part}: {error}")
    assert not refused, "\n".join(refused)


@pytest.mark.parametrize("ab_weight", [0.01, 1, 20])
@pytest.mark.parametrize("perceptual_weight", [0.1, 1, 50])
def test_the_weights_of_a_cure_are_within_their_bounds(ab_weight, perceptual_weight):
    """This holds however far the terms are out of balance."""
    for parts in (MODELS["simple"], MODELS["enhanced"], MODELS["restoration"]):
        weights = {"ab_weight": ab_weight, "perceptual_weight": perceptual_weight}
        config = run_config(**parts | {"loss": parts["loss"] | weights})
        weighted = {"ab": 0.02 * ab_weight, "perceptual": 0.3 * perceptual_weight, "l_luminance": 3}
        weighted["ab_chrominance"] = weighted["ab"]
        for finding in diagnose(record(config=config, weighted_terms=weighted, val_terms=TERMS | {"ab": 2.0})):
            for flag, value in re.findall(r"--(\w+-weight) ([\d.e+-]+)", finding.cure):
                LossConfig(**config.loss.model_dump() | {flag.replace("-", "_"): float(value)})


def test_a_learning_rate_comes_with_its_schedule_and_is_lower():
    for config in CONFIGS.values():
        text = health.slower(Record("m", config, [], []), 4)
        rate = float(re.search(r"--learning-rate (\S+)", text)[1])
        assert 0.15 < rate / config.training.learning_rate < 0.35
        assert f"--lr-schedule {config.training.lr_schedule}" in text


@pytest.mark.parametrize("batch_size", [4, 7, 8, 32])
def test_the_emergency_measures_of_the_simple_loss(batch_size):
    """The case is one colour after 1,000 steps: perceptual weight 2.0, learning rate 2e-4, batch at least 8."""
    config = run_config(loss={}, batch_size=batch_size)
    (finding,) = diagnose(dataclasses.replace(SICK["one hue"][1], config=config))
    assert "--perceptual-weight 2 " in finding.cure
    assert "--learning-rate 2e-04" in finding.cure
    assert ("--batch-size" in finding.cure) == (batch_size < 8)


def test_more_ab_and_more_saturation_for_the_enhanced_loss():
    for preset in ("conservative", "maximum"):
        config = run_config(loss=ENHANCED | {"preset": preset})
        (finding,) = diagnose(dataclasses.replace(SICK["gray"][1], config=config))
        ab, saturation = (float(re.search(f"--{n}-weight (\\S+)", finding.cure)[1]) for n in ("ab", "saturation"))
        assert ab > config.loss.ab_weight
        assert saturation > config.loss.saturation_weight


def test_the_shares_that_a_cure_names_bring_the_terms_into_balance():
    """After the cure the finding is gone: weighted terms scale with their weights."""
    config = run_config(loss={})
    weighted = {"ab": 0.01, "lab": 0.01, "perceptual": 0.5}
    (finding,) = diagnose(record(config=config, weighted_terms=weighted))
    raised = float(re.search(r"--ab-weight (\S+?),", finding.cure)[1])
    weighted["ab"] *= raised / config.loss.ab_weight
    assert said(record(config=config, weighted_terms=weighted)) == set()


# -- the logs of a run that broke off --------------------------------------------------------------------------------


def write_log(folder, *, steps=400, first=0, critic=None, loss=lambda step: 1 / step, norm=1.0):
    """Writes a point every ten steps, as report.py does."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in range(first + 10, first + steps + 1, 10):
            for name, value in {"loss": loss(step), "mse": 5.0, "grad_norm": norm}.items():
                writer.add_scalar(f"train/{name}", value, step)
            if critic is not None:
                writer.add_scalar("train/weighted_adversarial", critic, step)


def test_a_log_is_read_in_windows_of_ten_points(tmp_path):
    write_log(tmp_path, steps=250, loss=lambda step: step / 100, norm=3.0)
    found = health.read_log(tmp_path)
    assert [w[0] for w in found] == [100, 200]
    assert found[0] == pytest.approx([100, 10, 0.55, np.std(np.arange(0.1, 1.05, 0.1)), 3.0, 3.0, 0], rel=1e-5)
    assert [w[2] for w in found] == pytest.approx([0.55, 1.55])
    assert json.loads(json.dumps(found)) == found, "plain numbers"


def test_a_run_that_was_resumed_has_several_logs_and_the_latest_counts(tmp_path):
    write_log(tmp_path, steps=200, loss=lambda step: 1.0)
    for file in tmp_path.iterdir():
        file.rename(tmp_path / f"events.out.tfevents.1.{file.name[-12:]}")
    write_log(tmp_path, first=100, steps=200, loss=lambda step: 2.0)
    found = health.read_log(tmp_path)
    assert [(w[0], w[2]) for w in found] == [(100, 1.0), (200, 2.0), (300, 2.0)]


@pytest.mark.parametrize("kind", ["none", "empty", "garbage", "cut", "other"])
def test_a_log_that_is_none_or_damaged_says_what_it_can(tmp_path, kind):
    logs = tmp_path / "logs"
    if kind != "none":
        logs.mkdir()
    if kind == "garbage":
        (logs / "events.out.tfevents.1").write_bytes(b"\xff" * 1000)
    if kind == "other":
        (logs / "notes.txt").write_text("x")
    if kind == "cut":
        write_log(logs, steps=300)
        (file,) = logs.iterdir()
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 4 // 5])
    found = health.read_log(logs)
    assert [w[0] for w in found] == ([100, 200] if kind == "cut" else [])


def test_a_run_that_broke_off_in_its_first_epoch_is_diagnosed_by_its_log(tmp_path):
    write_log(tmp_path, steps=1000, loss=lambda step: 0.5 if step < 600 else 2.0)
    run = health.record_of("m", run_config(), [], more=health.read_log(tmp_path))
    assert run.step == 1000
    assert said(run) == {"divergence"}


def test_the_discriminators_part_of_the_logged_loss_is_left_out(tmp_path):
    """It is left out of the trainer's windows, too: the discriminator changes itself, so its term does not measure
    progress."""
    write_log(tmp_path, steps=100, loss=lambda step: 0.3, critic=-0.2)
    assert health.read_log(tmp_path)[0][2] == pytest.approx(0.5)


# -- the doctor's report ---------------------------------------------------------------------------------------------


def shown(run: Record, *, width=160, encoding="utf-8", terminal=False) -> str:
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding)
    show_diagnosis(
        run,
        diagnose(run),
        [run],
        Console(markup=False, highlight=False, file=text, width=width, force_terminal=terminal),
    )
    text.flush()
    return raw.getvalue().decode(encoding)


def test_a_healthy_run_is_said_to_be_so():
    run = record(falling(20), **coloured(val_loss=0.5))
    text = shown(run)
    assert text.startswith("m: 1 epoch, 5,000 steps\n")
    assert "looks healthy" in text
    assert "training loss" in text
    assert "1 -> 0.3" in text
    assert "cure" not in text
    assert "\x1b" not in text


def test_a_short_run_in_which_nothing_was_found_is_too_early_to_tell():
    text = shown(record(windows(falling(3), steps=96)))
    assert "Too early to tell: 288 steps, and pictures are judged only after 1,000" in text
    assert "healthy" not in text


def test_stages_are_drawn_apart_and_only_the_last_is_judged():
    """Their losses differ in size: 0.1, then 10."""
    history = [
        {
            "epoch": n,
            "step": 100 * n,
            "val_loss": loss,
            "objective_key": key,
            "windows": [[100 * n, 100, loss, 0, 1, 1, 0]],
        }
        for n, (key, loss) in enumerate([("a", 0.2), ("a", 0.1), ("b", 12.0), ("b", 10.0), ("b", 9.0)], start=1)
    ]
    parts = health.stages("m", None, history, [[600, 100, 8.0, 0, 1, 1, 0]])
    assert [[window.loss for window in part.windows] for part in parts] == [[0.2, 0.1], [12.0, 10.0, 9.0, 8.0]]
    curves = curves_of(parts)
    assert curves["training loss 1"] == [0.2, 0.1]
    assert curves["validation loss 2"] == [12.0, 10.0, 9.0]
    assert len(curves["gradient norm"]) == 6
    with Image.open(io.BytesIO(draw_curves(parts))) as picture:
        assert picture.format == "PNG"
    assert health.stages("m", None, []) == [health.record_of("m", None, [])]


@pytest.mark.parametrize("width", [160, 40])
@pytest.mark.parametrize("name", SICK)
def test_every_word_of_a_finding_is_in_the_table(name, width):
    """Long findings are wrapped, and never cut off."""
    (finding,) = diagnose(SICK[name][1])
    text = shown(SICK[name][1], width=width)
    assert max(map(len, text.splitlines())) <= width
    lines = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    cells = ["".join("".join(parts).split()) for parts in zip(*lines, strict=True)]
    expected = (finding.ailment, finding.seen, finding.meaning, finding.cure, finding.sure)
    assert cells == ["".join(text.split()) for text in expected]


def test_a_table_is_of_ascii_where_nothing_else_can_be_shown():
    for _, run in SICK.values():
        assert shown(run, encoding="ascii").isascii()
    assert not shown(SICK["up and down"][1]).isascii()


def test_square_brackets_in_a_name_are_no_markup():
    run = dataclasses.replace(SICK["up again"][1], name="m[bold]")
    assert "m[bold]: 1 epoch" in shown(run, terminal=True)


@pytest.mark.parametrize(
    ("encoding", "letters"), [("utf-8", "▁▂▃▄▅▆▇█"), ("ascii", "_.-~=+*#"), ("latin-1", "_.-~=+*#")]
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(encoding, letters):
    assert sparkline(list(range(8)), encoding) == letters
    assert sparkline(list(range(8))[::-1], encoding) == letters[::-1]
    assert sparkline([3.0] * 5, encoding) == letters[0] * 5
    assert sparkline([1.0], encoding) == letters[0]


def test_a_sparkline_of_many_values_shows_the_means_of_its_parts():
    line = sparkline([0.0, 2.0] * 50 + [7.0] * 100, "utf-8", width=10)
    assert line == "▁" * 5 + "█" * 5
    assert len(sparkline(list(range(1000)), "utf-8")) == 40
    assert len(sparkline(list(range(41)), "utf-8")) == 40


def test_the_curves_are_those_of_the_windows_and_of_the_epochs():
    run = record(windows([3, 2], norms=[5, 4]), {"val_loss": 0.9, "colorfulness": None}, val_loss=0.8, colorfulness=30)
    assert curves_of([run]) == {
        "training loss": [3, 2],
        "validation loss": [0.9, 0.8],
        "gradient norm": [5, 4],
        "colorfulness": [30],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, "x", True, [1]])
def test_what_is_no_number_is_not_drawn(value):
    """JSON as Python writes it may hold NaN."""
    run = record([1, 0.5], {"step": 1, "val_loss": value}, val_loss=0.5, colorfulness=value)
    assert curves_of([run])["validation loss"] == [0.5]
    assert curves_of([run])["colorfulness"] == []
    shown(run)
    draw_curves([run])


@pytest.mark.parametrize("name", ["healthy", "no epoch", "norms of 0", "no colours"])
def test_the_curves_become_a_picture(name):
    curve = windows(falling(30), std=0.1, norms=0.0 if name == "norms of 0" else 2.0)
    entries = [entry | coloured(step=entry["step"]) for entry in OVERFITTED]
    if name == "no colours":
        entries = OVERFITTED
    run = Record("m", None, [] if name == "no epoch" else entries, curve)
    with Image.open(io.BytesIO(draw_curves([run]))) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
        assert np.asarray(picture.convert("L")).std() > 5


def test_a_young_model_whose_pictures_grow_apart_has_no_one_tint():
    """Small regression models start so: with nearly one colour for everything, which varies a little more after each
    epoch."""

    def brown(apart, step):
        return coloured(np.array([4, 12]) + apart * (TRUTH - TRUTH.mean(axis=0)), spread=5, step=step)

    assert said(Record("m", None, [brown(0.05, 1000), brown(0.08, 2000)], [])) == set()
    assert said(Record("m", None, [brown(0.08, 1000), brown(0.08, 2000)], [])) == {"one tint"}
    assert said(Record("m", None, [brown(0.08, 2000)], [])) == set(), "nothing to compare with yet"
    assert said(Record("m", None, [brown(0.03, 2000)], [])) == {"one tint"}
