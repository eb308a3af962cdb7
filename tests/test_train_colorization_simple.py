"""The two recipes of direct regression as a person runs them: train_colorization_simple.py, train_image_restoration.py.
Every loss, the defaults that follow from it, its weights on resuming, the questions at a real terminal, and no
network."""

import contextlib
import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pexpect
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import call
from PIL import Image
from terminal import ENTER, answer, open_terminal

from Project7 import color, recipe, train_classification, train_colorization_simple, train_diffusion
from Project7 import train_image_restoration as train_restoration
from Project7.checkpoints import load_checkpoint
from Project7.cli import command
from Project7.color import channels_first, rgb_to_lab
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import UsageError
from Project7.image_set import ImageSet
from Project7.loss_config import PRESETS, LossConfig
from Project7.model_config import RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.perceptual_loss import WeightsMissing
from Project7.trainer import make_accelerator
from Project7.trainer import train as train_steps
from Project7.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_colorization_simple.py"
RESTORATION_SCRIPT = ROOT / "Project7" / "train_image_restoration.py"
RECIPE = {SCRIPT: train_colorization_simple, RESTORATION_SCRIPT: train_restoration}
CTRL_C = "\x03"
PICTURES = "--image-size 32 --val-fraction 0.5 --device cpu --image-interval 0".split()
SMALL = "--encoder none --model-channels 4 --channel-multipliers 1,2 --batch-size 4".split() + PICTURES
RANDOM = ["--perceptual-net", "random"]
ENHANCED = "--loss enhanced --preset vibrant".split()
WAYS = ("--perceptual-weights FILE", "--perceptual-net random", "--perceptual-weight 0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(16):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache for all tests, so that photos are decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT7_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # it has one precision per process


def train(models, *flags, script=train_colorization_simple):
    """Trains in this process, which is quick. Returns the exit code."""
    return script.main(["--models-dir", str(models), *map(str, flags)])


def run(script, *flags):
    """Runs the script as a program without a terminal."""
    return call(RECIPE[script].main, *flags)


def last(folder):
    return load_checkpoint(folder / "last_model.pth")


def history(folder):
    return json.loads((folder / "training_history.json").read_text())


def config(folder):
    return json.loads((folder / "config.json").read_text())


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# -- models that several tests start from ----------------------------------------------------------------------------

RECIPES = {
    "simple": (train_colorization_simple, RANDOM),
    "weighted": (train_colorization_simple, ["--loss", "weighted", "--lr-schedule", "constant"]),
    "enhanced": (train_colorization_simple, [*ENHANCED, *RANDOM]),
    "restoration": (train_restoration, [*RANDOM, "--fade", "0.6"]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory, photos):
    """A model of one epoch (two steps) for each loss, and for the recipe of restoration."""
    folder = tmp_path_factory.mktemp("models")
    for name, (script, flags) in RECIPES.items():
        flags = ["--name", name, "--data", photos, "--epochs", 1, "--yes", *SMALL, *flags]
        assert train(folder, *flags, script=script) == 0
    return folder


@pytest.fixture
def mine(models, tmp_path):
    """Copies of the models, in a separate models folder."""
    return Path(shutil.copytree(models, tmp_path / "models"))


# -- training --------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "simple": {"perceptual": 1, "lab": 1, "ab": 2},
    "weighted": {"ab": 1},
    "enhanced": {"perceptual": 0.3, "l_luminance": 0.2, "ab_chrominance": 4, "saturation": 1},
    "restoration": {"perceptual": 0.5, "l_luminance": 0.3, "ab_chrominance": 3, "saturation": 0.5},
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


@every_recipe
def test_each_term_is_in_the_history_with_its_weight(models, name):
    (entry,) = history(models / name)
    weights = WEIGHTS[name]
    assert set(entry["weighted_terms"]) == set(weights) <= set(entry["terms"])
    for term, weight in weights.items():
        assert entry["weighted_terms"][term] == pytest.approx(weight * entry["terms"][term], rel=1e-4)
    assert sum(entry["weighted_terms"].values()) == pytest.approx(entry["train_loss"], rel=1e-4)
    assert set(entry["val_terms"]) == set(weights)
    whole = sum(weight * entry["val_terms"][term] for term, weight in weights.items())
    assert whole == pytest.approx(entry["val_loss"], rel=1e-4)
    for term, weight in weights.items():
        assert f"{weight:g} {term}" in entry["objective"]


@every_recipe
def test_the_term_of_lightness_counts_only_where_lightness_is_restored(models, name):
    (entry,) = history(models / name)
    if name == "restoration":
        assert entry["terms"]["l_luminance"] > 1e-4
    else:
        assert entry["terms"].get("l_luminance", 0) == 0


def test_untrained_features_are_named_as_such(models):
    for name in ("simple", "enhanced", "restoration"):
        assert "random AlexNet, untrained" in history(models / name)[0]["objective"]
        assert config(models / name)["loss"]["perceptual_net"] == "random"


@every_recipe
def test_the_checkpoint_holds_the_weights_of_the_terms(models, name):
    assert last(models / name)["loss_state_dict"] == {f"{term}_weight": w for term, w in WEIGHTS[name].items()}


def test_the_configuration_is_that_of_the_flags_and_of_the_recipe(models):
    found = {name: config(models / name) for name in RECIPES}
    assert {name: c["model"]["outputs"] for name, c in found.items()} == dict.fromkeys(RECIPES, "ab") | {
        "restoration": "lab"
    }
    assert found["restoration"]["model"]["fade"] == 0.6
    assert {c["model"]["model_channels"] for c in found.values()} == {4}
    assert [c["loss"]["loss"] for c in found.values()] == ["simple", "weighted", "enhanced", "enhanced"]
    assert [c["loss"]["preset"] for c in found.values()] == [None, None, "vibrant", "balanced"]
    assert {c["objective"] for c in found.values()} == {None}


def test_the_mild_term_for_variety_is_there_for_who_wants_it(tmp_path, photos):
    flags = ["--name", "m", "--data", photos, "--epochs", 1, "--yes", *SMALL, "--perceptual-weight", 0]
    assert train(tmp_path, *flags, "--diversity-weight", 0.01) == 0
    (entry,) = history(tmp_path / "m")
    assert set(entry["weighted_terms"]) == {"lab", "ab", "diversity"}, "a weight of 0 is no term"
    assert 0 < entry["weighted_terms"]["diversity"] <= 0.01


# -- what a run is made of -------------------------------------------------------------------------------------------


@pytest.fixture
def asked_for(monkeypatch, tmp_path):
    """The configuration that a script would train with these flags."""
    seen = []
    monkeypatch.setattr(recipe, "train_and_show", lambda recipe, folder, config, *rest: seen.append(config) or 0)

    def of(*flags, script=train_colorization_simple):
        assert train(tmp_path / "models", "--yes", *flags, script=script) == 0
        return seen.pop()

    return of


# The values of the source documents, loss by loss.
SIMPLE_TRAINING = {"learning_rate": 1e-4, "batch_size": 16, "lr_schedule": "constant"}
WEIGHTED_TRAINING = {
    "learning_rate": 5e-5, "batch_size": 16, "weight_decay": 1e-5, "lr_schedule": "one-cycle", "epochs": 100,
}  # fmt: skip
BALANCED = {"perceptual_weight": 0.5, "l_weight": 0.3, "ab_weight": 3.0, "saturation_weight": 0.5}


@pytest.mark.parametrize(
    ("script", "flags", "loss", "weights", "training"),
    [
        (train_colorization_simple, "", "simple", {"perceptual_weight": 1, "lab_weight": 1, "ab_weight": 2,
         "diversity_weight": 0}, SIMPLE_TRAINING),
        (train_colorization_simple, "--loss simple", "simple", {"ab_weight": 2}, SIMPLE_TRAINING),
        (train_colorization_simple, "--loss weighted", "weighted", {"ab_weight": 1, "perceptual_weight": 0},
         WEIGHTED_TRAINING),
        (train_colorization_simple, "--loss enhanced", "enhanced", BALANCED | {"a_weight": 1, "b_weight": 1},
         SIMPLE_TRAINING),
        (train_restoration, "", "enhanced", BALANCED, SIMPLE_TRAINING),
        (train_restoration, "--loss simple", "simple", {"lab_weight": 1}, SIMPLE_TRAINING),
    ],
)  # fmt: skip
def test_each_loss_brings_its_documented_settings(asked_for, script, flags, loss, weights, training):
    found = asked_for(*flags.split(), script=script)
    assert found.loss.loss == loss
    assert {name: getattr(found.loss, name) for name in weights} == weights
    assert {name: getattr(found.training, name) for name in training} == training
    assert (found.model.model_channels, found.data.image_size) == (96, 256)
    assert found.model.outputs == ("lab" if script is train_restoration else "ab")
    assert (found.loss.perceptual_net, found.training.image_interval) == ("alex", 250)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_has_the_weights_of_the_document(asked_for, preset):
    table = {
        "conservative": (0.5, 0.3, 2.0, 0.3),
        "balanced": (0.5, 0.3, 3.0, 0.5),
        "vibrant": (0.3, 0.2, 4.0, 1.0),
        "maximum": (0.2, 0.2, 5.0, 1.5),
    }
    loss = asked_for("--loss", "enhanced", "--preset", preset).loss
    assert (loss.perceptual_weight, loss.l_weight, loss.ab_weight, loss.saturation_weight) == table[preset]
    assert asked_for("--preset", preset, script=train_restoration).loss.model_dump() == loss.model_dump()


def test_flags_come_before_what_a_loss_brings(asked_for):
    flags = "--loss weighted --learning-rate 2e-5 --lr-schedule cosine --epochs 3 --perceptual-weight 0.01"
    found = asked_for(*flags.split(), "--weight-decay", "0.1", "--batch-size", "8", "--model-channels", "128")
    assert (found.training.learning_rate, found.training.lr_schedule, found.training.epochs) == (2e-5, "cosine", 3)
    assert (found.training.weight_decay, found.training.batch_size, found.model.model_channels) == (0.1, 8, 128)
    assert (found.loss.perceptual_weight, found.loss.ab_weight) == (0.01, 1)
    vibrant = asked_for(*ENHANCED, "--ab-weight", "6", "--b-weight", "1.5").loss
    assert (vibrant.ab_weight, vibrant.saturation_weight, vibrant.a_weight, vibrant.b_weight) == (6, 1, 1, 1.5)


def test_with_a_flag_for_every_question_nothing_is_missing(asked_for, tmp_path):
    """This holds without --yes, and without a terminal."""
    answers = {
        "name": "m", "loss": "enhanced", "preset": "vibrant", "perceptual-weight": "1", "l-weight": "1",
        "ab-weight": "1", "saturation-weight": "1", "model-channels": "8", "batch-size": "4",
        "learning-rate": "1e-3", "epochs": "1", "weight-decay": "0", "lr-schedule": "cosine", "data": "samples",
    }  # fmt: skip
    flags = [f"--{name}={value}" for name, value in answers.items()] + ["--image-size=32"]  # has a default for all
    assert train(tmp_path, *flags) == train(tmp_path, *flags, script=train_restoration) == 0
    for name in answers:
        with pytest.raises(UsageError, match=f"no answer for --{name};"):
            train(tmp_path, *(flag for flag in flags if not flag.startswith(f"--{name}=")))


# -- the trainer -----------------------------------------------------------------------------------------------------

TRAINED = {
    "simple": (LossConfig(perceptual_net="random"), {}),
    "weighted": (LossConfig(loss="weighted"), {"chroma_scale": 2}),
    "enhanced": (LossConfig(loss="enhanced", preset="maximum", perceptual_net="random", b_weight=2), {}),
    "restoration": (LossConfig(loss="enhanced", perceptual_net="random"), {"outputs": "lab"}),
}
every_loss = pytest.mark.parametrize(("loss", "model"), TRAINED.values(), ids=TRAINED)


def image_set(count: int, seed: int) -> ImageSet:
    """Photos with two halves in two colours each."""
    halves = np.random.default_rng(seed).integers(0, 256, (count, 1, 2, 3), dtype=np.uint8)
    pictures = halves.repeat(32, axis=1).repeat(16, axis=2)
    return ImageSet(pictures, ("x",) * count, ("",) * count, f"set-{seed}-{count}", None)


IMAGES = (image_set(9, 1), image_set(5, 2))


def steps(folder, loss, model, *, leave=None, resume=None, images=IMAGES, **training):
    """All the Progress of a run; with `leave`, up to that step."""
    settings = {"batch_size": 4, "epochs": 2, "warmup_steps": 0, "image_interval": 0, "device": "cpu"} | training
    config = RunConfig(
        model=RegressionConfig(**{"model_channels": 4, "channel_multipliers": (1, 2)} | model),
        training=TrainingConfig(**settings),
        loss=loss,
    )
    seen, resume = [], copy.deepcopy(resume)  # the run goes on in the optimizer's own tensors
    accelerator = make_accelerator(config.training)
    with contextlib.closing(
        train_steps(config, ModelFolder(folder), images, accelerator=accelerator, resume=resume)
    ) as go:
        for progress in go:
            seen.append(progress)
            if leave and progress.step == leave:
                break
    return seen


@every_loss
def test_a_run_left_in_the_middle_of_an_epoch_goes_on_bit_for_bit(tmp_path, loss, model):
    """The schedule has an end, and the photos are faded differently at each step."""
    steps(tmp_path / "whole", loss, model, lr_schedule="one-cycle")
    steps(tmp_path / "parts", loss, model, leave=4, lr_schedule="one-cycle")
    halfway = last(tmp_path / "parts")
    assert (halfway["step"], halfway["epoch"]) == (4, 1)
    steps(tmp_path / "parts", loss, model, resume=halfway, lr_schedule="one-cycle")
    whole, resumed = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert (resumed["step"], resumed["epoch"]) == (6, 2)
    for part in ("model_state_dict", "raw_state_dict"):
        assert whole[part].keys() == resumed[part].keys()
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), f"{part}.{name}"
    for ours, theirs in zip(whole["history"], resumed["history"], strict=True):
        assert ours["weighted_terms"] == theirs["weighted_terms"]
        assert (ours["val_loss"], ours["best_val_loss"]) == (theirs["val_loss"], theirs["best_val_loss"])


@every_loss
def test_a_step_of_micro_steps_is_that_of_the_whole_batch(tmp_path, loss, model):
    """Each photo is faded as in the whole batch."""
    found = [
        steps(tmp_path / f"{parts}", loss, model, epochs=1, batch_size=4 // parts, gradient_accumulation=parts)
        for parts in (1, 2)
    ]
    whole, parts = ([p for p in seen if p.phase == "train" and not p.entry] for seen in found)
    assert len(whole) == len(parts) == 3
    for ours, theirs in zip(whole, parts, strict=True):
        assert theirs.losses == pytest.approx(ours.losses, rel=1e-3, abs=1e-6)
        assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=1e-2)


@every_loss
def test_training_lowers_the_loss(tmp_path, loss, model):
    """It trains on four photos, over and over, with LPIPS among the terms."""
    four, seen = image_set(4, 3), image_set(2, 2)
    images = (dataclasses.replace(four, images=np.concatenate([four.images] * 8)), seen)
    entries = [p.entry for p in steps(tmp_path, loss, model, images=images, epochs=5, learning_rate=1e-2) if p.entry]
    assert entries[-1]["train_loss"] < (0.8 if model.get("outputs") == "lab" else 0.5) * entries[0]["train_loss"]
    assert entries[-1]["skipped_steps"] == 0


def test_the_pictures_of_restoration_begin_with_the_same_faded_photos(tmp_path):
    """The left column shows what the network was given; without that, nobody could judge its answers."""
    restoring = [
        p.comparison for p in steps(tmp_path / "lab", *TRAINED["restoration"], image_interval=2) if p.comparison
    ]
    colouring = [p.comparison for p in steps(tmp_path / "ab", *TRAINED["simple"], image_interval=2) if p.comparison]
    assert len(restoring) == len(colouring) == 3 + 2  # every second step, and the end of each epoch
    gray = color.channels_last(color.gray(color.channels_first(IMAGES[1].images)))
    for shown in restoring:
        assert (shown.gray == restoring[0].gray).all()
        assert (shown.gray == shown.gray[..., :1]).all(), "gray"
        contrast = np.ptp(shown.gray.astype(float), axis=(1, 2, 3)) / np.ptp(gray.astype(float), axis=(1, 2, 3))
        assert ((contrast < 1.05) & (contrast > 0.4)).all()
        assert contrast.min() < 0.9
    assert all((shown.gray == gray).all() for shown in colouring)


# -- resuming --------------------------------------------------------------------------------------------------------

AGAIN = ["--epochs", 1, "--yes"]


def score_of(said):
    found = re.search(r"The present weights score (\d+\.\d+) under this objective", said)
    return found and float(found.group(1))


@every_recipe
def test_one_epoch_more_inherits_everything(mine, name, capsys):
    before = config(mine / name)
    assert train(mine, "--resume", name, *AGAIN, script=RECIPES[name][0]) == 0
    before["training"]["epochs"] = 2
    assert config(mine / name) == before
    assert score_of(capsys.readouterr().out) is None, "it is the same objective"
    first, second = history(mine / name)
    assert second["objective"] == first["objective"]
    assert (second["epoch"], second["step"]) == (2, 4)


def test_either_script_continues_a_regression_model(mine):
    """What the model predicts is determined by the model, and not by a default of the script."""
    assert train(mine, "--resume", "simple", *AGAIN, script=train_restoration) == 0
    assert train(mine, "--resume", "restoration", *AGAIN) == 0
    assert config(mine / "simple")["model"]["outputs"] == "ab"
    assert config(mine / "simple")["loss"]["loss"] == "simple"
    assert config(mine / "restoration")["model"]["outputs"] == "lab"


CHANGES = {
    "a weight": ("enhanced", "--ab-weight 6", WEIGHTS["enhanced"] | {"ab_chrominance": 6}),
    "a term given up": ("simple", "--perceptual-weight 0", {"lab": 1, "ab": 2}),
    "a term more": ("weighted", "--perceptual-weight 0.01 --perceptual-net random", {"ab": 1, "perceptual": 0.01}),
    "the preset": ("enhanced", "--preset maximum --l-weight 0.5", {
        "perceptual": 0.2, "l_luminance": 0.5, "ab_chrominance": 5, "saturation": 1.5}),
    "the loss": ("simple", "--loss enhanced", WEIGHTS["restoration"]),
    "the loss, and no network": ("enhanced", "--loss weighted", {"ab": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("name", "flags", "weights"), CHANGES.values(), ids=CHANGES)
def test_another_objective_on_resuming_is_scored_before_it_trains(mine, name, flags, weights, capsys):
    """The old best loss was measured under another objective, and does not count any more."""
    (before,) = history(mine / name)
    assert train(mine, "--resume", name, *AGAIN, *flags.split()) == 0
    said = capsys.readouterr().out
    score = score_of(said)
    assert said.index("present weights score") < said.index("epoch 2/2")
    first, second = history(mine / name)
    assert first == before
    assert set(second["weighted_terms"]) == set(second["val_terms"]) == set(weights)
    for term, weight in weights.items():
        assert f"{weight:g} {term}" in second["objective"]
    checkpoint = last(mine / name)
    assert checkpoint["loss_state_dict"] == {f"{term}_weight": weight for term, weight in weights.items()}
    assert checkpoint["best_val_loss"] == pytest.approx(min(score, second["val_loss"]), abs=1e-4)
    moments = {int(state["step"]) for state in checkpoint["optimizer_state_dict"]["state"].values()}
    assert moments == {4}, "AdamW has gone on, not begun again"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("enhanced", "--b-weight 3"),  # the ab term is another one
        ("simple", "--perceptual-weight 0 --lab-weight 0 --ab-weight 1"),  # see below
    ],
)
def test_objectives_whose_terms_only_look_alike_are_told_apart(mine, name, flags, capsys):
    """`1 ab` of the simple loss is not `1 ab` of the weighted one, and a : b is part of the objective."""
    assert train(mine, "--resume", name, *AGAIN, *flags.split()) == 0
    if name == "simple":
        capsys.readouterr()
        assert train(mine, "--resume", name, *AGAIN, "--loss", "weighted") == 0
    assert score_of(capsys.readouterr().out) is not None
    *_, before, after = history(mine / name)
    assert before["objective"] != after["objective"]


def test_the_schedule_of_the_weighted_loss_has_an_end(tmp_path, photos):
    """Its one cycle is over: a person who adds epochs must give their schedule, and may give another rate."""
    small = ["--name", "m", "--data", photos, "--epochs", 1, "--yes", *SMALL, "--loss", "weighted"]
    assert train(tmp_path, *small, "--batch-size", 1) == 0
    assert history(tmp_path / "m")[0]["learning_rate"] < 5e-5 / 1e3, "it ends with almost nothing"
    with pytest.raises(UsageError, match="--lr-schedule constant, cosine or one-cycle"):
        train(tmp_path, "--resume", "m", *AGAIN)
    assert train(tmp_path, "--resume", "m", *AGAIN, "--lr-schedule", "constant", "--learning-rate", "2e-5") == 0
    assert config(tmp_path / "m")["training"]["lr_schedule"] == "constant"


def test_the_loss_changes_in_a_copy_and_the_old_model_stays(mine):
    before = files(mine / "simple")
    assert train(mine, "--resume", "simple", "--name", "new", *AGAIN, "--loss", "weighted") == 0
    assert files(mine / "simple") == before
    assert [entry["objective"] for entry in history(mine / "new")][:1] == [history(mine / "simple")[0]["objective"]]
    assert config(mine / "new")["loss"]["loss"] == "weighted"


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("simple", "--preset vibrant", "only the enhanced loss has presets"),
        ("simple", "--saturation-weight 1", "use it with --loss enhanced"),
        ("weighted", "--ab-weight 0", "all weights of the loss are 0"),
        ("restoration", "--loss weighted", "says nothing about lightness.* use --loss enhanced with an --l-weight"),
        ("simple", "--outputs lab", "--outputs is ab in this model, not lab"),
        ("restoration", "--fade 0.1", "--fade is 0.6 in this model, not 0.1"),
        ("simple", "--model-channels 8", "--model-channels is 4 in this model, not 8"),
        ("simple", "--learning-rate 5e-5", "start a new schedule with --lr-schedule"),
    ],
)
def test_what_a_model_cannot_change_to_is_refused_and_leaves_it_as_it_is(mine, name, flags, words):
    before = files(mine / name)
    with pytest.raises(UsageError, match=words):
        train(mine, "--resume", name, *AGAIN, *flags.split())
    assert files(mine / name) == before


def test_models_of_other_methods_are_sent_to_their_scripts(tmp_path, photos, mine):
    pictures = "--image-size 16 --val-fraction 0.5 --device cpu --image-interval 0 --batch-size 4".split()
    small = ["--data", photos, "--epochs", 1, "--yes", *pictures]
    tiny = {
        train_diffusion: "--encoder none --features 8,16 --time-dim 16 --timesteps 50",
        train_classification: "--width 8 --blocks 1,1,1,1 --bins 16",
    }
    for script, named in ((train_diffusion, "diffusion"), (train_classification, "classification")):
        assert train(tmp_path / "other", "--name", named, *small, *tiny[script].split(), script=script) == 0
        before = files(tmp_path / "other" / named)
        for ours in (train_colorization_simple, train_restoration):
            with pytest.raises(UsageError, match=rf"This is a {named} model, .* continue it with train_{named}\.py"):
                train(tmp_path / "other", "--resume", named, *AGAIN, script=ours)
        assert files(tmp_path / "other" / named) == before

        before = files(mine / "simple")
        ways = r"train_colorization_simple\.py or train_image_restoration\.py"
        with pytest.raises(UsageError, match=f"This is a regression model, .* continue it with {ways}"):
            train(mine, "--resume", "simple", *AGAIN, script=script)
        assert files(mine / "simple") == before


# -- use -------------------------------------------------------------------------------------------------------------


def colorize(model, photos, output, *flags):
    return command(["colorize", str(photos), "--model", str(model), "--output", str(output), *map(str, flags)])


def lightness(path):
    with Image.open(path) as picture:
        return rgb_to_lab(channels_first(np.array(picture.convert("RGB")))[None])[0, 0]


@every_recipe
def test_the_model_colours_like_any_other(models, photos, tmp_path, name):
    for out in ("out", "again"):
        assert colorize(models / name, photos, tmp_path / out, "--device", "cpu") == 0
    assert files(tmp_path / "out") == files(tmp_path / "again")
    answers = sorted((tmp_path / "out").iterdir())
    assert len(answers) == 16
    # stacked: all have the size of their photo
    change = torch.stack([(lightness(path) - lightness(photos / path.name)).abs() for path in answers])
    if name == "restoration":
        assert change.mean() > 0.5
    else:
        assert (change <= 1).float().mean() >= 0.999


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--steps 5", "--steps is for diffusion models; this one is a regression model"),
        ("--sampler ddim", "--sampler is for diffusion models"),
        ("--temperature 0.3", "--temperature is for classification models"),
        ("--variety 1", "--variety is for classification models"),
        ("--confidence", "A regression model has no confidence map"),
    ],
)
def test_options_of_other_methods_are_refused(models, photos, tmp_path, flags, words):
    with pytest.raises(UsageError, match=words):
        colorize(models / "simple", photos, tmp_path / "out", *flags.split())
    assert not (tmp_path / "out").exists()


def test_hints_recolour_the_surface_around_them(models, photos):
    """The network takes no hints; its answer is corrected along the edges of L (hints.py)."""
    colorizer = Colorizer.load(models / "simple" / "best_model.pth", device="cpu")
    plain, told = (np.asarray(colorizer.colorize(photos / "3.png", hints=h)) for h in ((), [(1, 1, "red")]))
    assert told[1, 1, 0] > plain[1, 1, 0]
    assert not np.array_equal(told, plain)


def test_they_are_listed_with_their_method(models, capsys):
    assert command(["models", "--models-dir", str(models)]) == 0
    own = capsys.readouterr().out.split("\nregression: ")[1]
    for name in RECIPES:
        assert re.search(rf"^ +{name} +32 px +1 ", own, re.MULTILINE)


# -- no network ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_a_run_without_alexnet_names_the_ways_to_go_on_and_stops(tmp_path, photos, offline):
    models = tmp_path / "models"
    done = run(SCRIPT, "--models-dir", models, "--name", "m", "--data", photos, "--epochs", 1, "--yes", *SMALL)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("Error: The weights of AlexNet cannot be downloaded")
    assert all(way in done.stderr for way in WAYS)
    assert not (models / "m").exists()


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (train_restoration, "", "The weights of AlexNet cannot be downloaded"),
        (
            train_colorization_simple,
            "--loss weighted --perceptual-weight 0.01",
            "weights of AlexNet cannot be downloaded",
        ),
        (train_colorization_simple, "--perceptual-net vgg", "The weights of VGG16 cannot be downloaded"),
        (train_colorization_simple, "--perceptual-weights nowhere.pth", r"nowhere\.pth does not exist"),
    ],
)
def test_every_loss_with_the_term_needs_its_network(tmp_path, photos, offline, script, flags, words):
    """No loss continues with another network."""
    settings = ["--name", "m", "--data", photos, "--yes", *SMALL, *flags.split()]
    with pytest.raises(WeightsMissing, match=words) as caught:
        train(tmp_path / "models", *settings, script=script)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert all(way in str(caught.value) for way in WAYS)
    assert not (tmp_path / "models" / "m").exists()


@pytest.mark.parametrize(
    "flags", ["--loss weighted", "--loss enhanced --perceptual-weight 0", "--perceptual-net random"]
)
def test_the_other_ways_need_no_network(tmp_path, photos, offline, flags):
    small = [*SMALL, "--limit", 4, "--val-limit", 2]
    assert train(tmp_path, "--name", "m", "--data", photos, "--epochs", 1, "--yes", *small, *flags.split()) == 0
    assert history(tmp_path / "m")[0]["step"] == 1


def test_a_weight_that_calls_for_alexnet_on_resuming_leaves_the_model_as_it_is(mine, offline):
    """No copy is begun either."""
    before = files(mine / "weighted")
    for in_a_copy in ([], ["--name", "new"]):
        with pytest.raises(WeightsMissing, match="The weights of AlexNet cannot be downloaded"):
            train(mine, "--resume", "weighted", *in_a_copy, *AGAIN, "--loss", "simple")
    assert files(mine / "weighted") == before
    assert not (mine / "new").exists()


# -- bad requests ----------------------------------------------------------------------------------------------------

BAD = [
    (SCRIPT, "--loss huber", ["--loss huber", "'simple', 'weighted' or 'enhanced'"]),
    (SCRIPT, "--preset vibrant", ["only the enhanced loss has presets", "use --loss enhanced"]),
    (SCRIPT, "--loss enhanced --preset wild", ["--preset wild", "'conservative'"]),
    (SCRIPT, "--saturation-weight 1", ["--saturation-weight", "--loss enhanced"]),
    (SCRIPT, "--loss weighted --lab-weight 1", ["--lab-weight", "--loss simple"]),
    (SCRIPT, "--loss enhanced --diversity-weight 0.01", ["--diversity-weight", "--loss simple"]),
    (SCRIPT, "--ab-weight -1", ["--ab-weight -1"]),
    (SCRIPT, "--ab-weight nan", ["--ab-weight nan"]),
    (SCRIPT, "--loss weighted --ab-weight 0", ["all weights of the loss are 0"]),
    (SCRIPT, "--perceptual-net vgg16", ["--perceptual-net vgg16", "'alex', 'vgg' or 'random'"]),
    (SCRIPT, "--perceptual-net random --perceptual-weights a.pth", ["random takes no weights"]),
    (SCRIPT, "--image-size 31", ["--image-size 31", "--perceptual-weight 0"]),
    (SCRIPT, "--model-channels 3", ["--model-channels 3"]),
    (SCRIPT, "--channel-multipliers 1,0", ["--channel-multipliers 0"]),
    (SCRIPT, "--outputs rgb", ["--outputs rgb"]),
    (SCRIPT, "--loss weighted --outputs lab", ["says nothing about lightness", "--loss enhanced"]),
    (SCRIPT, "--chroma-scale 3", ["--chroma-scale 3"]),
    (SCRIPT, "--gan", ["--gan"]),
    (SCRIPT, "--strategy two-stage", ["--strategy"]),
    (SCRIPT, "--timesteps 50", ["--timesteps"]),
    (RESTORATION_SCRIPT, "--loss weighted", ["says nothing about lightness", "--loss enhanced"]),
    (RESTORATION_SCRIPT, "--l-weight 0", ["says nothing about lightness", "--l-weight"]),
    (RESTORATION_SCRIPT, "--fade 1", ["--fade 1"]),
    (RESTORATION_SCRIPT, "--fade -0.1", ["--fade -0.1"]),
]


@pytest.mark.parametrize(("script", "flags", "words"), BAD, ids=[flags for _, flags, _ in BAD])
def test_bad_requests_are_refused_and_leave_nothing(tmp_path, photos, script, flags, words):
    small = [*SMALL, "--name", "m", "--data", photos, "--yes", *flags.split()]
    with pytest.raises(UsageError) as caught:
        train(tmp_path / "models", *small, script=RECIPE[script])
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "models" / "m").exists()


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        BAD[0],
        (RESTORATION_SCRIPT, "--loss weighted", ["use --loss enhanced"]),
        (SCRIPT, "--resume ghost", ["ghost"]),
    ],
)
def test_a_bad_request_exits_2_with_one_sentence(tmp_path, script, flags, words):
    done = run(script, "--models-dir", tmp_path / "models", "--yes", *flags.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_from_inside_the_package_folder_and_as_a_module():
    for name in ("train_colorization_simple", "train_image_restoration"):
        for arguments, cwd in (([f"{name}.py"], ROOT / "Project7"), (["-m", f"Project7.{name}"], ROOT)):
            done = subprocess.run(
                [sys.executable, *arguments, "--help"], cwd=cwd, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            for flag in "--loss --preset --ab-weight --b-weight --model-channels --fade --weight-decay".split():
                assert f"{flag} " in done.stdout
            for foreign in ("--gan", "--timesteps", "--bins", "--stage2-epochs"):
                assert foreign not in done.stdout


# -- questions, at a real terminal -----------------------------------------------------------------------------------


def end(child, code=0):
    """What the terminal has shown, without escape codes."""
    child.expect(pexpect.EOF)
    child.close()
    shown = child.logfile_read.getvalue()
    assert child.exitstatus == code, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


LOSS_QUESTION = "Loss (simple, weighted or enhanced)"
EXPLANATION = ("What is minimised:", "simple     LPIPS", "weighted   ab alone", "enhanced   LPIPS")


@pytest.mark.slow
def test_answering_weighted_changes_the_defaults_shown_afterwards(tmp_path, photos, offline):
    """It goes from the first question to the end of the run; bad answers are refused with a sentence, and asked
    again."""
    models = tmp_path / "models"
    child = open_terminal(SCRIPT, models, "--channel-multipliers", "1,2", *PICTURES[2:])
    child.expect_exact("this will be the first")
    answer(child, "Model name [model-1]:", ("my/model", "'my/model' cannot name a model"), "my-model")
    for line in ("Loss", *EXPLANATION):
        child.expect_exact(line)
    answer(child, f"{LOSS_QUESTION} [simple]:", ("huber", "huber: input should be 'simple', 'weighted'"), "weighted")
    answer(child, "Perceptual weight [0]:", ("-1", "-1: input should be greater than or equal to 0"), "")
    answer(child, "ab weight [1]:", ("much", "much: input should be a valid number"), "1.5")
    child.expect_exact("Model architecture")
    answer(child, "Model channels [96]:", ("3", "3: input should be greater than or equal to 4"), "4")
    child.expect_exact("Training")
    answer(child, "Batch size [16]:", ("0", "0: input should be greater than or equal to 1"), "4")
    answer(child, "Learning rate [5e-05]:", "")
    answer(child, "Number of epochs [100]:", "1")
    answer(child, "Weight decay [1e-05]:", "")
    answer(child, "Course of the learning rate [one-cycle]:", ("fast", "fast: input should be 'constant'"), "")
    child.expect_exact("Images")
    answer(child, "Training images (folder, zip, or 'samples') [samples]:", str(photos))
    answer(child, "Image size [256]:", ("7", "7: input should be greater than or equal to 8"), "32")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    shown = end(child)
    for question in ("Preset (", "Lab weight", "L weight", "Saturation weight", "How shall it go on?"):
        assert question not in shown
    found = config(models / "my-model")
    assert {name: found["training"][name] for name in WEIGHTED_TRAINING} == WEIGHTED_TRAINING | {
        "epochs": 1,
        "batch_size": 4,
    }
    assert (found["loss"]["loss"], found["loss"]["ab_weight"], found["loss"]["perceptual_weight"]) == (
        "weighted",
        1.5,
        0,
    )
    assert (found["model"]["model_channels"], found["data"]["image_size"]) == (4, 32)


def test_answering_enhanced_asks_for_a_preset_and_shows_its_weights(tmp_path):
    models = tmp_path / "models"
    child = open_terminal(SCRIPT, models, "--name", "m")
    answer(child, f"{LOSS_QUESTION} [simple]:", "enhanced")
    preset = "Preset (conservative, balanced, vibrant or maximum) [balanced]:"
    answer(child, preset, ("wild", "wild: input should be 'conservative', 'balanced'"), "vibrant")
    answer(child, "Perceptual weight [0.3]:", "")
    answer(child, "L weight [0.2]:", "")
    answer(child, "ab weight [4]:", "")
    answer(child, "Saturation weight [1]:", ("x", "x: input should be a valid number"), "1.5")
    answer(child, "Model channels [96]:", "")
    child.expect_exact("Batch size [16]:")
    child.send(CTRL_C)
    shown = end(child, code=130)
    assert "Stopped." in shown
    assert "Lab weight" not in shown
    assert not models.exists()


@pytest.mark.slow
def test_a_model_from_the_list_is_asked_for_its_loss(mine):
    """The model's own loss and weights are the defaults, and nothing else is asked for."""
    child = open_terminal(SCRIPT, mine)
    child.expect_exact("Do you want to resume from an existing model?")
    child.expect(r"1\) enhanced  \(epoch 1, best loss \d+\.\d{4}")
    child.send("1" + ENTER)
    answer(child, "enhanced has finished its 1 epoch. How many more? [10]:", "1")
    answer(child, f"{LOSS_QUESTION} [enhanced]:", "weighted")
    answer(child, "Perceptual weight [0]:", "")
    answer(child, "ab weight [1]:", "")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("The present weights score")
    child.expect_exact("Done: 2 epochs")
    shown = end(child)
    for word in ("Preset (", "Saturation weight", "Model channels", "Batch size", "Training images"):
        assert word not in shown
    assert config(mine / "enhanced")["loss"]["loss"] == "weighted"


@pytest.mark.slow
def test_without_alexnet_a_person_says_how_to_go_on(tmp_path, photos, offline):
    """The untrained features that are chosen are named as such."""
    given = ["--loss", "simple", "--perceptual-weight", 1, "--lab-weight", 1, "--ab-weight", 2]
    training = ["--learning-rate", "1e-4", "--weight-decay", 0.01, "--lr-schedule", "constant", "--epochs", 1]
    flags = ["--name", "m", "--data", photos, *SMALL, "--limit", 4, "--val-limit", 2, *given, *training]
    child = open_terminal(SCRIPT, tmp_path / "models", *flags)
    child.expect_exact("How shall it go on?")
    for way in WAYS:
        child.expect_exact(way)
    child.send("1" + ENTER)
    answer(child, "File with the weights of AlexNet:", ("nowhere.pth", "There is no file 'nowhere.pth'"), str(SCRIPT))
    child.expect_exact("How shall it go on?")
    for word in "cannot be read as a state dict".split():  # a line may end between two of them
        child.expect_exact(word)
    child.send("2" + ENTER)
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    end(child)
    assert config(tmp_path / "models" / "m")["loss"]["perceptual_net"] == "random"
    assert "random AlexNet, untrained" in history(tmp_path / "models" / "m")[0]["objective"]
