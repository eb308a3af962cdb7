"""The training loop: exact resuming, whole batches over micro-steps, bad gradients, and learning.

With the squared error alone first, then with the terms of the V2 recipe.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from Project7 import color, model_folder, run_history, trainer, validation
from Project7.batch import Step
from Project7.checkpoints import CheckpointError, load_checkpoint, load_model
from Project7.collapse import Collapsed, TrainingFailed
from Project7.config import RunConfig
from Project7.critic import Critic
from Project7.diffusion_model import DiffusionColorizer
from Project7.encoder import SHIPPED, Encoder
from Project7.errors import ProjectError
from Project7.feature_cache import open_features
from Project7.health import Finding
from Project7.image_set import ImageSet
from Project7.learning_rate import learning_rate
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.regression_model import RegressionColorizer
from Project7.trainer import make_accelerator, train
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

WALL_CLOCK = ("seconds", "images_per_second")


def image_set(count: int, seed: int, size: int = 16) -> ImageSet:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(pictures, ("x",) * count, ("",) * count, f"set-{seed}-{count}", None)


IMAGES = (image_set(21, 1), image_set(9, 2))


def config(
    epochs: int = 2, model: dict | None = None, objective: ObjectiveConfig | None = None, **training
) -> RunConfig:
    settings = {"batch_size": 4, "warmup_steps": 3, "image_interval": 0, "device": "cpu"} | training
    return RunConfig(
        model=DiffusionConfig(**{"features": (8, 16), "time_dim": 16, "timesteps": 5} | (model or {})),
        training=TrainingConfig(epochs=epochs, **settings),
        objective=objective,
    )


def terms(**settings) -> ObjectiveConfig:
    """The objective of the V2 recipe, small: untrained features, and a narrow discriminator that counts early."""
    small = {"perceptual_net": "random", "image_share": 0.5, "gan_width": 8, "gan_start": 2, "gan_warmup": 3}
    return ObjectiveConfig(**small | settings)


def run(folder, settings: RunConfig, *, leave=None, watch=None, resume=None, images=IMAGES) -> list[trainer.Progress]:
    """All the Progress of a run; with `leave`, until that is true of one. watch: called with each."""
    seen = []
    resume = copy.deepcopy(resume)  # the run goes on in the optimizer's own tensors
    steps = train(settings, ModelFolder(folder), images, accelerator=make_accelerator(settings.training), resume=resume)
    with contextlib.closing(steps):
        for progress in steps:
            seen.append(progress)
            if watch:
                watch(progress)
            if leave and leave(progress):
                break
    return seen


def steps_of(seen: list[trainer.Progress]) -> list[trainer.Progress]:
    return [p for p in seen if p.phase == "train" and not p.entry]


def notes(seen: list[trainer.Progress]) -> str:
    return " ".join(note for p in seen for note in p.notes)


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k not in WALL_CLOCK} for entry in history]


def assert_equal(a, b, name: str) -> None:
    """Compares nested dicts and lists of tensors and numbers, bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key, value in a.items():
            assert_equal(value, b[key], f"{name}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    else:
        assert a == b, name


def assert_same_run(a: dict, b: dict) -> None:
    """Asserts that two last_model.pth hold the same run, bit for bit."""
    for part in ("model_state_dict", "raw_state_dict", "loss_state_dict"):  # the last holds the discriminator
        assert_equal(a[part], b[part], part)
    assert_equal(a["optimizer_state_dict"]["state"], b["optimizer_state_dict"]["state"], "AdamW")
    assert timeless(a["history"]) == timeless(b["history"])
    ignored = {"seconds", "schedule_steps"}
    assert {k: v for k, v in a["progress"].items() if k not in ignored} == {
        k: v for k, v in b["progress"].items() if k not in ignored
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, config())
    return load_checkpoint(folder / "last_model.pth")


@pytest.mark.parametrize("step", [1, 5, 6, 8])
def test_a_run_left_at_any_step_goes_on_bit_for_bit(tmp_path, whole, step):
    run(tmp_path, config(), leave=lambda p: p.step == step)
    run(tmp_path, config(), resume=load_checkpoint(tmp_path / "last_model.pth"))
    assert_same_run(whole, load_checkpoint(tmp_path / "last_model.pth"))


def test_a_run_left_during_validation_goes_on_bit_for_bit(tmp_path, whole):
    run(tmp_path, config(), leave=lambda p: p.phase == "validate")
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert left["epoch"] == 0
    assert left["progress"]["position"] == 21
    run(tmp_path, config(), resume=left)
    assert_same_run(whole, load_checkpoint(tmp_path / "last_model.pth"))


def test_an_error_between_two_steps_loses_nothing(tmp_path, whole, monkeypatch):
    """After a dead loader worker or an unreadable picture, what was trained is saved, and the run can continue."""

    def load(images, batches, *, num_workers):
        for number, indices in enumerate(batches):
            if number == 3:
                raise ProjectError("A process that reads images died; try --num-workers 0.")
            yield torch.from_numpy(np.asarray(images)[indices])

    with monkeypatch.context() as broken:
        broken.setattr(trainer, "load_batches", load)
        with pytest.raises(ProjectError, match="try --num-workers 0"):
            run(tmp_path, config())
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert left["step"] == 3
    run(tmp_path, config(), resume=left)
    assert_same_run(whole, load_checkpoint(tmp_path / "last_model.pth"))


def test_an_error_within_a_step_saves_no_half_of_it(tmp_path, whole, monkeypatch):
    step, calls = torch.optim.AdamW.step, itertools.count(1)

    def fails(self, closure=None):
        step(self, closure)
        if next(calls) == 3:
            raise RuntimeError("a device error")

    with monkeypatch.context() as broken:
        broken.setattr(torch.optim.AdamW, "step", fails)
        with pytest.raises(RuntimeError, match="a device error"):
            run(tmp_path, config(save_minutes=1e-9))
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert left["step"] == 2
    run(tmp_path, config(), resume=left)
    assert_same_run(whole, load_checkpoint(tmp_path / "last_model.pth"))


def test_a_history_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / "training_history.json").mkdir(parents=True)
    seen = run(tmp_path, config(epochs=3))
    assert notes(seen).count("The history could not be written") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_and_an_epoch_more_are_two_epochs(tmp_path, whole, workers):
    run(tmp_path, config(epochs=1, num_workers=workers))
    run(tmp_path, config(epochs=2, num_workers=workers), resume=load_checkpoint(tmp_path / "last_model.pth"))
    assert_same_run(whole, load_checkpoint(tmp_path / "last_model.pth"))


def test_every_image_is_trained_on_once_an_epoch(tmp_path, monkeypatch):
    seen = []
    original = trainer.load_batches

    def watch(images, batches, *, num_workers):
        seen.extend(int(i) for batch in batches for i in batch)
        return original(images, batches, num_workers=num_workers)

    monkeypatch.setattr(trainer, "load_batches", watch)
    run(tmp_path, config())
    assert sorted(seen[:21]) == sorted(seen[21:]) == list(range(21))
    assert seen[:21] != seen[21:]  # in another order


def test_micro_steps_make_the_same_step(tmp_path):
    """Four pictures at once and twice two have the same gradient up to rounding, with the same noise, timesteps and
    flips."""
    for name, settings in {"one": {}, "two": {"batch_size": 2, "gradient_accumulation": 2}}.items():
        run(tmp_path / name, config(epochs=1, **settings))
    one, two = (load_checkpoint(tmp_path / n / "last_model.pth")["raw_state_dict"] for n in ("one", "two"))
    assert max((one[n] - two[n]).abs().max().item() for n in one) < 1e-5


def at_the_model(monkeypatch, *, before=lambda batch: batch, after=lambda step, batch: step) -> None:
    """Changes what the networks are given, or what they answer, in training but not in validation."""
    for method in (DiffusionColorizer, RegressionColorizer):

        def forward(self, batch, original=method.forward):
            if not torch.is_grad_enabled():
                return original(self, batch)
            return after(original(self, before(batch)), batch)

        monkeypatch.setattr(method, "forward", forward)


def memory_for(monkeypatch, pictures: int) -> None:
    """Simulates a device with memory for a limited number of pictures."""

    def tight(batch):
        if len(batch.L) > pictures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    at_the_model(monkeypatch, before=tight)


def poison(monkeypatch, bad_steps: range, *, loss_too: bool) -> None:
    """Makes the gradient (and the loss) of some steps NaN."""

    def poisoned(step, batch):
        if batch.random.step not in bad_steps:
            return step
        if loss_too:
            return step._replace(loss=step.loss * math.nan)
        step.loss.register_hook(lambda gradient: gradient * math.nan)
        return step

    at_the_model(monkeypatch, after=poisoned)


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_step(tmp_path, monkeypatch):
    run(tmp_path / "calm", config(epochs=1))
    memory_for(monkeypatch, pictures=2)
    seen = run(tmp_path / "tight", config(epochs=1))
    assert any("Out of memory" in note for progress in seen for note in progress.notes)
    calm, tight = (load_checkpoint(tmp_path / n / "last_model.pth") for n in ("calm", "tight"))
    assert tight["progress"]["accumulation"] == 2  # kept for resuming
    assert max((calm["raw_state_dict"][n] - t).abs().max() for n, t in tight["raw_state_dict"].items()) < 1e-5


def test_running_out_of_memory_with_one_picture_stops(tmp_path, monkeypatch):
    memory_for(monkeypatch, pictures=0)
    with pytest.raises(TrainingFailed, match="image-size"):
        run(tmp_path, config())


@pytest.mark.parametrize("loss_too", [False, True])
def test_a_bad_gradient_changes_nothing_and_is_counted(tmp_path, monkeypatch, loss_too):
    poison(monkeypatch, range(2, 4), loss_too=loss_too)
    settings, weights = config(epochs=1), []
    run_ = trainer.Run(settings, ModelFolder(tmp_path), IMAGES, make_accelerator(settings.training), None)
    with contextlib.closing(run_.progress()) as steps:
        for progress in steps:
            weights.append(torch.cat([p.detach().flatten().clone() for p in run_.parameters]))
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])
    assert progress.entry["skipped_steps"] == 2
    assert math.isfinite(progress.entry["train_loss"])


def test_a_run_without_a_finite_gradient_stops_and_keeps_the_last_good_state(tmp_path, monkeypatch):
    run(tmp_path, config(epochs=1))
    before = (tmp_path / "best_model.pth").read_bytes()
    poison(monkeypatch, range(6, 1000), loss_too=True)
    with pytest.raises(TrainingFailed, match="lower --learning-rate"):
        run(tmp_path, config(epochs=50), resume=load_checkpoint(tmp_path / "last_model.pth"))
    assert (tmp_path / "best_model.pth").read_bytes() == before
    load_model(tmp_path / "best_model.pth")


def test_the_folder_holds_what_the_source_document_says(tmp_path):
    seen = run(tmp_path, config(image_interval=3))
    best = load_checkpoint(tmp_path / "best_model.pth")
    documented = {"epoch", "model_state_dict", "optimizer_state_dict", "loss_state_dict", "train_loss", "val_loss"}
    assert documented | {"best_val_loss", "config"} <= set(best)
    assert best["loss_state_dict"]["mse_weight"] == 1.0
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    measures = {"train_loss", "val_loss", "terms", "learning_rate", "grad_norm", "skipped_steps", "train_loss_std"}
    pictures = {"psnr", "colorfulness", "colorfulness_truth", "mean_ab"}
    assert measures | pictures | {"images_per_second", "seconds"} <= set(history[0])
    assert best["best_val_loss"] == min(entry["val_loss"] for entry in history)
    assert [p.step for p in seen if p.comparison and not p.entry] == [3, 6, 9, 12]
    assert model_folder.read_config(ModelFolder(tmp_path)) == config(image_interval=3)


def test_best_model_holds_the_ema_and_last_model_the_raw_weights_too(tmp_path):
    settings = config(ema_decay=0.5)
    run_ = trainer.Run(settings, ModelFolder(tmp_path), IMAGES, make_accelerator(settings.training), None)
    expected = [p.detach().clone() for p in run_.parameters]
    with contextlib.closing(run_.progress()) as steps:
        for progress in steps:
            if progress.phase == "train" and not progress.entry:
                decay = min(0.5, progress.step / (9 + progress.step))
                expected = [
                    torch.lerp(e, p.detach(), 1 - decay) for e, p in zip(expected, run_.parameters, strict=True)
                ]
    last = load_checkpoint(tmp_path / "last_model.pth")
    ema, raw = last["model_state_dict"], last["raw_state_dict"]
    names = [name for name, _ in run_.ema.named_parameters()]
    assert all(torch.allclose(ema[n], e, atol=1e-6) for n, e in zip(names, expected, strict=True))
    assert any(not torch.equal(ema[n], raw[n]) for n in names)


def test_validation_is_the_same_whatever_was_trained_before(tmp_path):
    """Noise and timesteps are fixed, so two runs with the same weights have the same validation loss."""
    losses = []
    for seed_of_order in (1, 2):
        settings = config(learning_rate=1e-12, epochs=1)
        images = (image_set(21, seed_of_order), IMAGES[1])
        losses.append(run(tmp_path / str(seed_of_order), settings, images=images)[-1].entry["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_time_is_saved_within_an_epoch(tmp_path):
    seen = []

    def leave(progress):
        if progress.step == 3:
            seen.append(load_checkpoint(tmp_path / "last_model.pth")["progress"]["step"])
        return progress.step == 3

    run(tmp_path, config(save_minutes=1e-9), leave=leave)
    assert seen == [2]


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch(tmp_path, count):
    seen = run(tmp_path, config(epochs=2), images=(image_set(count, 1), image_set(1, 2)))
    assert seen[-1].step == 2
    assert math.isfinite(seen[-1].entry["val_loss"])


def test_fp16_on_the_cpu_is_refused_with_the_cure():
    with pytest.raises(trainer.UsageError, match="bf16"):
        make_accelerator(TrainingConfig(mixed_precision="fp16", device="cpu"))


def test_learning_rate_schedules():
    def rates(schedule, warmup=10, steps=100):
        settings = TrainingConfig(lr_schedule=schedule, warmup_steps=warmup, learning_rate=1.0)
        return [learning_rate(settings, step, steps) for step in range(steps)]

    constant, cosine, one_cycle = rates("constant"), rates("cosine"), rates("one-cycle")
    assert constant[0] == pytest.approx(1 / 11)
    assert constant[10:] == [1.0] * 90
    assert max(cosine) == pytest.approx(1.0, abs=0.01)
    assert cosine[-1] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(cosine[10:]))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=100, pct_start=0.1)
    theirs = []
    for _ in range(100):
        theirs.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert one_cycle == pytest.approx(theirs, abs=1e-6)


def test_the_loss_falls_and_the_colours_come(tmp_path):
    """The photos have one colour everywhere, whatever L is; a small network learns that in a few hundred small
    steps."""
    rng = np.random.default_rng(0)
    gray = rng.integers(90, 170, (64, 1, 1, 1))
    pictures = np.broadcast_to(gray + np.array([50, -30, -60]), (64, 8, 8, 3)).astype(np.uint8)
    images = ImageSet(pictures, ("",) * 64, ("",) * 64, "one colour", None)
    settings = config(
        epochs=20, batch_size=16, learning_rate=5e-3, ema_decay=0.9, model={"features": (16,), "time_dim": 32}
    )
    seen = run(tmp_path, settings, images=(images, dataclasses.replace(images, images=pictures[:8])))
    entries = [p.entry for p in seen if p.entry]
    assert entries[-1]["val_loss"] < 0.4 * entries[0]["val_loss"]
    last = seen[-1].comparison
    assert np.abs(np.subtract(last.mean_ab, last.mean_ab_truth)).max() < 8
    assert last.psnr > 20


def test_a_step_answers_per_sample():
    """Several processes agree because forward gives one loss per sample, not a mean."""
    settings = config()
    model = trainer.build_model(settings.model)
    batch = trainer.Batch(torch.zeros(3, 1, 16, 16), torch.zeros(3, 2, 16, 16), trainer.BatchRandom(0, 0, 0, 3, 3))
    step = model(batch)
    assert isinstance(step, Step)
    assert step.loss.shape == (3,)


# -- the V2 recipe: exact resuming -----------------------------------------------------------------------------------

V2 = {"gan": terms(gan=True, feature_matching_weight=1.0), "two stages": terms(gan=True, stage1_epochs=1)}


def v2(name: str) -> RunConfig:
    return config(objective=V2[name], lr_schedule="cosine")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """name in V2 -> the last checkpoint of an uninterrupted run."""
    found = {}
    for name in V2:
        folder = tmp_path_factory.mktemp("uninterrupted")
        run(folder, v2(name))
        found[name] = load_checkpoint(folder / "last_model.pth")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", V2)
def test_a_run_with_terms_left_after_every_step_goes_on_bit_for_bit(tmp_path, uninterrupted, name):
    """It is left and resumed a dozen times: after each step, and at the end of an epoch or stage."""
    left = None
    while left is None or left["epoch"] < 2:
        seen = run(tmp_path, v2(name), resume=left, leave=lambda p: p.phase == "train")
        assert len([p for p in seen if p.phase == "train"]) == 1
        left = load_checkpoint(tmp_path / "last_model.pth")
    assert_same_run(uninterrupted[name], left)


@pytest.mark.parametrize(("name", "epoch"), [("gan", 1), ("two stages", 2)])
def test_a_run_with_terms_left_in_validation_goes_on_bit_for_bit(tmp_path, uninterrupted, name, epoch):
    """With two stages, the first validation of epoch 2 scores the weights that stage 1 has left."""
    seen = run(tmp_path, v2(name), leave=lambda p: p.phase == "validate" and p.epoch == epoch)
    scoring = name == "two stages" and epoch == 2
    assert seen[-1].step == (6 if scoring else 6 * epoch)
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert left["progress"]["position"] == (0 if scoring else 21)
    run(tmp_path, v2(name), resume=left)
    assert_same_run(uninterrupted[name], load_checkpoint(tmp_path / "last_model.pth"))


def test_the_second_stage_starts_a_new_schedule_a_new_score_and_the_discriminator(tmp_path):
    settings = v2("two stages")
    seen = run(tmp_path, settings)
    steps = steps_of(seen)
    one_stage = [learning_rate(settings.training, step, 6) for step in range(6)]
    assert [p.learning_rate for p in steps] == pytest.approx(one_stage + one_stage)
    assert [("perceptual" in p.losses, "critic" in p.losses) for p in steps] == [(False, False)] * 6 + [
        (True, True)
    ] * 6
    assert [("adversarial" in p.losses) for p in steps] == [False] * 8 + [True] * 4  # two steps after its beginning
    last = load_checkpoint(tmp_path / "last_model.pth")
    assert (last["progress"]["critic_start"], last["progress"]["stage"]) == (6, 2)
    first, second = last["history"]
    assert (first["stage"], first["objective"], list(first["terms"])) == (1, "1 mse", ["mse"])
    assert second["stage"] == 2
    assert "0.1 perceptual" in second["objective"]
    assert "0.01 adversarial" in second["objective"]
    assert "best validation loss so far" in notes(steps[6:7])


def test_a_stage_1_is_a_run_of_the_squared_error(tmp_path, uninterrupted):
    """It is equal bit for bit: the terms of stage 2 leave no trace in it."""
    run(tmp_path, config(epochs=1, lr_schedule="cosine"))
    alone = load_checkpoint(tmp_path / "last_model.pth")["history"]
    (stage_1, _) = uninterrupted["two stages"]["history"]
    names = ("train_loss", "val_loss", "grad_norm", "psnr", "mean_ab")
    assert {n: alone[0][n] for n in names} == {n: stage_1[n] for n in names}


# -- the V2 recipe: resuming what was trained otherwise --------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a model of one epoch with the squared error alone."""
    folder = tmp_path_factory.mktemp("plain")
    run(folder, config(epochs=1))
    return folder


def begin_again(tmp_path, source, objective: ObjectiveConfig | None, **training):
    """Resumes a checkpoint under another objective, and leaves at once. Returns the Progress and what was saved
    then."""
    settings = config(epochs=source["epoch"] + 1, objective=objective, **training)
    seen = run(tmp_path, settings, resume=source, leave=lambda p: p.phase == "train")
    return seen, load_checkpoint(tmp_path / "last_model.pth")


def test_weights_of_another_objective_are_scored_first_without_the_adversarial_term(tmp_path, plain):
    """The score is the validation loss of the squared error plus 0.1 (or 0.2) times the perceptual term."""
    source = load_checkpoint(plain / "last_model.pth")
    scores = {}
    objectives = {"a": terms(), "b": terms(gan=True, gan_start=0, gan_warmup=0), "c": terms(perceptual_weight=0.2)}
    for name, objective in objectives.items():
        seen, last = begin_again(tmp_path / name, source, objective)
        assert (seen[0].phase, seen[0].step) == ("validate", 6)  # before any training
        scores[name] = last["progress"]["best_val_loss"]
        assert f"{scores[name]:.4f}" in notes(seen)
        assert "best validation loss so far" in notes(seen)
        assert f"{objective.perceptual_weight:g} perceptual" in notes(seen)
    assert scores["a"] == scores["b"]
    perceptual = scores["a"] - source["val_loss"]
    assert perceptual > 1e-3
    assert scores["c"] == pytest.approx(source["val_loss"] + 2 * perceptual, rel=1e-4)


def test_a_model_of_the_squared_error_brings_its_weights_its_ema_and_its_optimizer(tmp_path, plain):
    source = load_checkpoint(plain / "last_model.pth")
    settings = config(epochs=2, objective=terms(gan=True))
    run(tmp_path, settings, resume=source, leave=lambda p: p.phase == "validate")  # before any training
    left = load_checkpoint(tmp_path / "last_model.pth")
    for part in ("model_state_dict", "raw_state_dict"):
        assert_equal(source[part], left[part], part)
    assert_equal(source["optimizer_state_dict"]["state"], left["optimizer_state_dict"]["state"], "AdamW")
    run(tmp_path, settings, resume=left)
    last = load_checkpoint(tmp_path / "last_model.pth")
    assert (last["epoch"], last["step"]) == (2, 12)
    assert last["optimizer_state_dict"]["state"][0]["step"] == 12
    assert timeless(last["history"][:1]) == timeless(source["history"])
    assert last["progress"]["critic_start"] == 6


@pytest.mark.parametrize("rate", [1e-4, 1.0])
def test_the_old_best_model_stays_until_the_score_of_the_incoming_weights_is_beaten(tmp_path, rate):
    run(tmp_path, config(epochs=1))
    before = (tmp_path / "best_model.pth").read_bytes()
    source = load_checkpoint(tmp_path / "last_model.pth")
    score = begin_again(tmp_path, source, terms())[1]["progress"]["best_val_loss"]
    assert (tmp_path / "best_model.pth").read_bytes() == before
    seen = run(tmp_path, config(epochs=2, objective=terms(), learning_rate=rate), resume=source)
    beaten = seen[-1].entry["val_loss"] < score
    assert beaten == (rate < 1)  # a rate of 1 spoils the weights
    assert seen[-1].is_best == beaten
    assert ((tmp_path / "best_model.pth").read_bytes() != before) == beaten
    if beaten:
        best = load_checkpoint(tmp_path / "best_model.pth")
        assert best["best_val_loss"] == best["val_loss"] == seen[-1].entry["val_loss"]


def test_a_changed_weight_is_scored_anew_where_validation_measures_it(tmp_path, uninterrupted):
    source = uninterrupted["gan"]
    before = V2["gan"].model_dump()
    best = source["progress"]["best_val_loss"]
    for name, scored in {"mse_weight": True, "perceptual_weight": True, "adversarial_weight": False}.items():
        objective = ObjectiveConfig(**before | {name: 3 * before[name]})
        seen, last = begin_again(tmp_path / name, source, objective)
        assert ("best validation loss so far" in notes(seen)) == scored == (seen[0].phase == "validate"), name
        assert (last["progress"]["best_val_loss"] != best) == scored
        assert last["progress"]["critic_start"] == 0  # the discriminator has gone on
        found = seen[-1].losses
        key = name.removesuffix("_weight")
        key = "mse" if key == "mse" else key
        assert found[f"weighted_{key}"] == pytest.approx(3 * before[name] * found[key], rel=1e-4)


def test_the_discriminator_may_be_taken_out_and_put_in_again(tmp_path, uninterrupted):
    source = uninterrupted["gan"]
    seen, without = begin_again(tmp_path, source, terms())
    assert seen[0].phase == "train"  # validation does not measure the discriminator: nothing to score anew
    assert "critic" not in seen[0].losses
    assert without["progress"]["critic_start"] == -1
    assert without["progress"]["best_val_loss"] == source["progress"]["best_val_loss"]
    assert not without["loss_state_dict"]["use_gan"]
    assert "discriminator_state_dict" not in without["loss_state_dict"]

    seen = run(tmp_path, config(epochs=3, objective=V2["gan"]), resume=without)
    steps = steps_of(seen)
    assert "new one starts" in notes(seen[:1])
    assert all("critic" in p.losses for p in steps)
    assert [p.step for p in steps if "adversarial" in p.losses] == [16, 17, 18]  # after two steps, again
    last = load_checkpoint(tmp_path / "last_model.pth")
    assert last["progress"]["critic_start"] == without["step"] == 13
    assert last["loss_state_dict"]["discriminator_optimizer_state_dict"]["state"][0]["step"] == 5


def test_a_discriminator_that_does_not_fit_is_replaced_and_that_is_said(tmp_path, uninterrupted):
    wider = terms(gan=True, gan_width=16)
    seen, last = begin_again(tmp_path, uninterrupted["gan"], wider)
    assert "another shape" in notes(seen[:1])
    assert last["progress"]["critic_start"] == 12


def test_the_loss_state_has_the_keys_of_the_source_document(tmp_path, plain, uninterrupted):
    always = {"mse_weight", "perceptual_weight", "adversarial_weight", "use_gan"}
    critic = {"discriminator_state_dict", "discriminator_optimizer_state_dict"}
    gan = uninterrupted["gan"]["loss_state_dict"]
    assert set(gan) == always | critic
    assert {n: gan[n] for n in sorted(always)} == {
        "adversarial_weight": 0.01,
        "mse_weight": 1.0,
        "perceptual_weight": 0.1,
        "use_gan": True,
    }
    without = begin_again(tmp_path, load_checkpoint(plain / "last_model.pth"), terms())[1]["loss_state_dict"]
    assert set(without) == always
    assert (without["perceptual_weight"], without["use_gan"]) == (0.1, False)
    for name in ("best_model.pth", "last_model.pth"):
        state = load_checkpoint(plain / name)["loss_state_dict"]
        assert state == {"mse_weight": 1.0, "perceptual_weight": 0.0, "adversarial_weight": 0.0, "use_gan": False}


DOCUMENTED = ("epoch", "model_state_dict", "optimizer_state_dict", "loss_state_dict", "train_loss", "val_loss")
DOCUMENTED += ("best_val_loss", "config")


def documented(checkpoint: dict) -> dict:
    """A checkpoint as an older or a foreign program would write it after the source document."""
    return copy.deepcopy({key: checkpoint[key] for key in DOCUMENTED})


def test_a_checkpoint_with_only_the_keys_of_the_source_document_says_what_is_missing(tmp_path, uninterrupted):
    seen, _ = begin_again(tmp_path, documented(uninterrupted["gan"]), V2["gan"])
    said = " ".join(seen[0].notes)
    for missing in ("raw_state_dict", "history", "progress"):
        assert missing in said


def test_a_checkpoint_with_only_the_keys_of_the_source_document_is_scored_and_continued(tmp_path, uninterrupted):
    source = documented(uninterrupted["gan"])
    seen, left = begin_again(tmp_path, source, V2["gan"])
    assert seen[0].phase == "validate"  # the objective of its best loss is not known
    assert left["progress"]["best_val_loss"] == pytest.approx(source["val_loss"], rel=1e-6)
    assert left["epoch"] == 2
    assert left["optimizer_state_dict"]["state"][0]["step"] == 13
    assert left["loss_state_dict"]["discriminator_optimizer_state_dict"]["state"][0]["step"] == 13
    run(tmp_path, config(epochs=3, objective=V2["gan"]), resume=left)
    assert [entry["epoch"] for entry in load_checkpoint(tmp_path / "last_model.pth")["history"]] == [3]


def test_the_optimizers_of_another_program_go_on_in_ours(tmp_path, uninterrupted):
    """Theirs is torch's AdamW without `fused`, which cannot leave out a bad step, and has other settings."""
    source = documented(uninterrupted["gan"])
    optimizers = (source["optimizer_state_dict"], source["loss_state_dict"]["discriminator_optimizer_state_dict"])
    for state in optimizers:
        state["param_groups"][0] |= {"fused": None, "foreach": True, "weight_decay": 0.3, "lr": 0.5}
    _, left = begin_again(tmp_path, source, V2["gan"])
    group = left["optimizer_state_dict"]["param_groups"][0]
    assert (group["fused"], group["weight_decay"]) == (True, 0.01)
    group = left["loss_state_dict"]["discriminator_optimizer_state_dict"]["param_groups"][0]
    assert (group["fused"], group["weight_decay"], group["lr"]) == (True, 0, 2e-4)


@pytest.mark.parametrize("state", [None, {}, {"use_gan": False}, {"discriminator_state_dict": None}])
def test_a_checkpoint_without_a_discriminator_gets_a_new_one(tmp_path, plain, state):
    source = load_checkpoint(plain / "last_model.pth") | {"loss_state_dict": state}
    seen, last = begin_again(tmp_path, source, terms(gan=True))
    assert "new one starts" in notes(seen)
    assert last["progress"]["critic_start"] == 6


def test_a_discriminator_without_its_optimizer_is_taken_over_and_that_is_said(tmp_path, uninterrupted):
    source = copy.deepcopy(uninterrupted["gan"])
    del source["loss_state_dict"]["discriminator_optimizer_state_dict"]
    settings = config(epochs=3, objective=V2["gan"])
    run_ = trainer.Run(settings, ModelFolder(tmp_path), IMAGES, make_accelerator(settings.training), source)
    stored = source["loss_state_dict"]["discriminator_state_dict"]
    assert_equal(stored, dict(run_.objective.critic.discriminator.state_dict()), "discriminator")
    assert "AdamW starts afresh" in " ".join(run_.notes)


# -- the V2 recipe: one batch, whole or in parts ---------------------------------------------------------------------

AT_ONCE = {"gan_start": 0, "gan_warmup": 0}


def gradients(folder, accumulation: int = 1) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The gradients of the model and of its discriminator after one batch of seven in several micro-steps, and the
    measures."""
    objective = terms(gan=True, feature_matching_weight=1.0, perceptual_weight=10.0, adversarial_weight=10.0, **AT_ONCE)
    settings = config(objective=objective)
    run_ = trainer.Run(settings, ModelFolder(folder), IMAGES, make_accelerator(settings.training), None)
    assert not list(run_.begin_epoch())
    run_.state.accumulation = accumulation
    measures = run_.backward(7, np.arange(7), torch.from_numpy(np.array(IMAGES[0].images[:7])))
    parts = (run_.parameters, list(run_.objective.critic.discriminator.parameters()))
    return *(torch.cat([p.grad.flatten() for p in part]) for part in parts), measures


@pytest.mark.parametrize("accumulation", [2, 3, 7])
def test_micro_steps_have_the_gradients_of_one_pass_with_every_term(tmp_path, accumulation):
    """Some micro-steps of one picture have no sample with an image-space term, so the terms are divided by the whole
    batch."""
    whole, parts = gradients(tmp_path), gradients(tmp_path, accumulation)
    for name, one, many in zip(("model", "discriminator"), whole, parts, strict=False):
        assert one.norm() > 1e-4
        assert (one - many).norm() < 1e-4 * one.norm(), name
    for name, value in whole[2].items():
        assert parts[2][name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name


@contextlib.contextmanager
def two_processes(code: str, *arguments: object):
    """Runs a program in two processes (gloo) beside the block, and sees at its end that both ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).resolve().parent
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent)])
    command = [sys.executable, "-c", f"import sys, test_trainer as t; {code}", *map(str, arguments)]
    with contextlib.ExitStack() as stack:
        both = []
        for rank in ("0", "1"):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            both.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield
        for process in both:
            _, said = process.communicate(timeout=120)
            assert process.returncode == 0, said[-3000:]


@pytest.mark.slow
def test_two_processes_train_as_one_with_every_term(tmp_path):
    """Two processes with batches of two, and this one with batches of four: one model, one discriminator."""
    objective = terms(gan=True, feature_matching_weight=1.0, gan_start=1, gan_warmup=1)
    code = (
        "from Project7.training_config import ObjectiveConfig as O;"
        "t.run(t.Path(sys.argv[1]), t.config(epochs=1, batch_size=2, objective=O.model_validate_json(sys.argv[2])))"
    )
    with two_processes(code, tmp_path / "two", objective.model_dump_json()):
        run(tmp_path / "one", config(epochs=1, objective=objective))

    one, two = (load_checkpoint(tmp_path / name / "last_model.pth") for name in ("one", "two"))
    assert one["step"] == two["step"] == 6
    assert max((t - two["raw_state_dict"][n]).abs().max().item() for n, t in one["raw_state_dict"].items()) < 1e-4
    for part in ("terms", "weighted_terms", "val_terms"):
        for name, value in one["history"][0][part].items():
            # the hinge loss gives the last bias only rounding as its gradient, from which AdamW makes whole steps
            assert two["history"][0][part][name] == pytest.approx(value, rel=1e-3, abs=1e-3), (part, name)
    states = [c["loss_state_dict"]["discriminator_optimizer_state_dict"]["state"] for c in (one, two)]
    mean = [torch.cat([moments["exp_avg"].flatten() for moments in state.values()]) for state in states]
    assert (mean[0] - mean[1]).norm() < 1e-2 * mean[0].norm()


def test_running_out_of_memory_leaves_no_gradient_in_the_discriminator(tmp_path, monkeypatch):
    """Memory runs out when the discriminator has its gradient: the step is repeated, and that gradient not counted
    twice."""
    settings = config(epochs=1, objective=terms(gan=True))
    kept, teach, step = [], Critic.teach, Critic.step

    def keep(self, *arguments):
        kept.append(torch.cat([p.grad.flatten() for p in self.discriminator.parameters()]))
        step(self, *arguments)

    def tight(self, *arguments):
        measures = teach(self, *arguments)
        if not tight_once:
            tight_once.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measures

    tight_once = [True]
    monkeypatch.setattr(Critic, "step", keep)
    monkeypatch.setattr(Critic, "teach", tight)
    run(tmp_path / "calm", settings, leave=lambda p: True)
    tight_once.clear()
    seen = run(tmp_path / "tight", settings, leave=lambda p: True)
    assert "Out of memory" in notes(seen)
    calm, repeated = kept
    assert (calm - repeated).norm() < 0.05 * calm.norm()
    assert load_checkpoint(tmp_path / "tight" / "last_model.pth")["progress"]["accumulation"] == 2


# -- resuming with another number of processes -----------------------------------------------------------------------


def assert_same_to_rounding(a: dict, b: dict) -> None:
    """Two last_model.pth hold the same run, summed in another order."""
    assert a["progress"]["step"] == b["progress"]["step"]
    for one, other in zip(a["history"], b["history"], strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)
    assert max((t - b["raw_state_dict"][n]).abs().max().item() for n, t in a["raw_state_dict"].items()) < 1e-4


def test_one_process_goes_on_with_the_batches_of_two(tmp_path, whole):
    run(tmp_path, config(), leave=lambda p: p.step == 4)
    left = load_checkpoint(tmp_path / "last_model.pth") | {"processes": 2}  # as of two that had batches of two
    seen = run(tmp_path, config(batch_size=2), resume=left)
    assert "Processes: 2 when this run began, 1 now; a step still has 4 images." in notes(seen)
    done = load_checkpoint(tmp_path / "last_model.pth")
    assert_same_to_rounding(whole, done)
    assert done["processes"] == 2
    with pytest.raises(CheckpointError, match="says that 0 processes trained it"):
        run(tmp_path, config(), resume=left | {"processes": 0})


def test_a_process_that_loses_the_others_saves_its_last_whole_step(tmp_path):
    accelerator = make_accelerator(config().training)
    run_ = trainer.Run(config(), ModelFolder(tmp_path), IMAGES, accelerator)

    def lose(*_):
        run_.accelerator = SimpleNamespace(
            num_processes=2, is_main_process=True, device=accelerator.device, unwrap_model=accelerator.unwrap_model
        )
        raise RuntimeError("gloo: Connection reset by peer")

    steps = run_.progress()
    for _ in range(3):
        next(steps)
    run_.backward = lose
    with pytest.raises(RuntimeError, match="gloo"):
        next(steps)
    left = load_checkpoint(tmp_path / "last_model.pth")["progress"]
    assert (left["step"], left["position"]) == (3, 12)


@pytest.mark.slow
def test_two_processes_go_on_for_one_and_one_for_two(tmp_path, whole):
    left, taken_over = tmp_path / "left", tmp_path / "taken over"
    run(taken_over, config(), leave=lambda p: p.step == 4)
    code = (
        "left, taken_over = map(t.Path, sys.argv[1:]);"
        "t.run(left, t.config(batch_size=2), leave=lambda p: p.step == 5);"
        "t.run(taken_over, t.config(), resume=t.load_checkpoint(taken_over / 'last_model.pth'))"
    )
    with two_processes(code, left, taken_over):
        pass
    run(left, config(batch_size=2), resume=load_checkpoint(left / "last_model.pth"))
    for folder in (left, taken_over):
        assert_same_to_rounding(whole, load_checkpoint(folder / "last_model.pth"))


# -- the V2 recipe: the terms ----------------------------------------------------------------------------------------


def weights_of_each_step(folder, settings: RunConfig) -> list[torch.Tensor]:
    run_ = trainer.Run(settings, ModelFolder(folder), IMAGES, make_accelerator(settings.training), None)
    found = []
    with contextlib.closing(run_.progress()) as steps:
        for progress in steps:
            if progress.phase == "train" and not progress.entry:
                found.append(torch.cat([p.detach().flatten().clone() for p in run_.parameters]))
    return found


def test_each_term_changes_the_weights_from_the_step_at_which_it_counts(tmp_path):
    objectives = {
        "none": None,
        "perceptual": terms(),
        "gan": terms(gan=True),
        "matching": terms(gan=True, feature_matching_weight=1.0),
    }
    found = {n: weights_of_each_step(tmp_path / n, config(epochs=1, objective=o)) for n, o in objectives.items()}

    def same(a: str, b: str) -> list[bool]:
        return [torch.equal(x, y) for x, y in zip(found[a], found[b], strict=True)]

    assert same("none", "perceptual") == [False] * 6
    assert same("perceptual", "gan") == [True] * 2 + [False] * 4  # two steps in which only the discriminator learns
    assert same("gan", "matching") == [True] * 2 + [False] * 4


def test_an_objective_without_terms_trains_like_none_bit_for_bit(tmp_path, whole):
    run(tmp_path, config(objective=ObjectiveConfig(perceptual_weight=0)))
    last = load_checkpoint(tmp_path / "last_model.pth")
    for part in ("model_state_dict", "raw_state_dict", "loss_state_dict"):
        assert_equal(whole[part], last[part], part)
    for a, b in zip(whole["history"], last["history"], strict=True):
        assert [a[n] for n in ("train_loss", "val_loss", "objective")] == [
            b[n] for n in ("train_loss", "val_loss", "objective")
        ]


def test_the_loss_is_the_weighted_sum_of_its_terms_in_every_step(tmp_path):
    objective = terms(
        gan=True, mse_weight=2.0, perceptual_weight=0.3, adversarial_weight=0.5, feature_matching_weight=4.0
    )
    seen = run(tmp_path, config(epochs=1, objective=objective))
    for progress in seen[:6]:
        losses, rise = progress.losses, min(1, (progress.step - 2) / 4)  # none in two steps, full after three more
        expected = {"mse": 2.0, "perceptual": 0.3}
        if rise > 0:
            expected |= {"adversarial": rise * 0.5, "feature_matching": rise * 4.0}
        found = {n.removeprefix("weighted_"): v for n, v in losses.items() if n.startswith("weighted_")}
        assert found == pytest.approx({n: w * losses[n] for n, w in expected.items()}, rel=1e-4, abs=1e-7)
        assert losses["loss"] == pytest.approx(sum(found.values()), rel=1e-5)


def test_the_history_has_each_term_weighted_and_as_it_is(tmp_path):
    objective = terms(gan=True, feature_matching_weight=0.5, perceptual_weight=0.3, **AT_ONCE)
    entry = run(tmp_path, config(epochs=1, objective=objective))[-1].entry
    weights = {"mse": 1.0, "perceptual": 0.3, "adversarial": 0.01, "feature_matching": 0.5}
    assert set(entry["terms"]) == {*weights, "critic", "critic_of_truth", "critic_of_estimate"}
    expected = {name: weight * entry["terms"][name] for name, weight in weights.items()}
    assert entry["weighted_terms"] == pytest.approx(expected, rel=1e-4)
    assert entry["train_loss"] == pytest.approx(sum(expected.values()), rel=1e-5)
    assert set(entry["val_terms"]) == {"mse", "perceptual"}
    assert entry["val_loss"] == pytest.approx(entry["val_terms"]["mse"] + 0.3 * entry["val_terms"]["perceptual"])
    assert all(part in entry["objective"] for part in ("1 mse", "0.3 perceptual", "random VGG16", "0.01 adversarial"))


def test_the_means_of_an_epoch_are_those_of_one_objective(tmp_path):
    """The terms begin in the middle of an epoch; the squared error from before is not part of the means."""
    run(tmp_path, config(epochs=1), leave=lambda p: p.step == 3)
    source = load_checkpoint(tmp_path / "last_model.pth")
    seen = run(tmp_path, config(epochs=1, objective=terms(mse_weight=3.0)), resume=source)
    losses = [p.losses["loss"] for p in steps_of(seen)]
    assert len(losses) == 3
    assert seen[-1].entry["train_loss"] == pytest.approx(np.mean(losses))


def test_a_term_that_comes_in_late_has_the_mean_of_the_steps_in_which_it_counts(tmp_path):
    """The weighted term is its part of the epoch's mean loss; the unweighted one is the mean over the steps that
    measured it."""
    seen = run(tmp_path, config(epochs=1, objective=terms(gan=True)))
    values = [p.losses["adversarial"] for p in steps_of(seen) if "adversarial" in p.losses]
    assert len(values) == 4
    entry = seen[-1].entry
    assert entry["train_loss"] == pytest.approx(sum(entry["weighted_terms"].values()), rel=1e-5)
    assert entry["terms"]["adversarial"] == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize("cause", ["picture", "gradient"])
def test_a_bad_step_changes_neither_the_model_nor_its_discriminator(tmp_path, monkeypatch, cause):
    """A NaN in the pictures reaches both; with one in the model's gradient alone, the discriminator could still
    step."""

    def spoilt(batch):
        return batch._replace(ab=batch.ab * math.nan) if batch.random.step in (3, 4) else batch

    if cause == "picture":
        at_the_model(monkeypatch, before=spoilt)
    else:
        poison(monkeypatch, range(3, 5), loss_too=False)
    settings = config(epochs=1, objective=terms(gan=True, **AT_ONCE))
    run_ = trainer.Run(settings, ModelFolder(tmp_path), IMAGES, make_accelerator(settings.training), None)
    found = []
    with contextlib.closing(run_.progress()) as steps:
        for progress in steps:
            parts = (run_.parameters, run_.ema_parameters, list(run_.objective.critic.discriminator.parameters()))
            found.append([torch.cat([p.detach().flatten().clone() for p in part]) for part in parts])
    assert progress.entry["skipped_steps"] == 2
    for number, part in enumerate(("model", "EMA", "discriminator")):
        after = [step[number] for step in found]
        assert torch.equal(after[2], after[3]), part
        assert torch.equal(after[3], after[4]), part
        assert not torch.equal(after[4], after[5]), part


def test_the_gradient_of_the_model_stays_out_of_the_discriminator_and_the_other_way_round(tmp_path, monkeypatch):
    """The hinge loss moves only the discriminator, the adversarial term only the model."""
    settings = config(objective=terms(gan=True, **AT_ONCE))
    run_ = trainer.Run(settings, ModelFolder(tmp_path), IMAGES, make_accelerator(settings.training), None)
    assert not list(run_.begin_epoch())
    batch = run_.prepare(torch.from_numpy(np.array(IMAGES[0].images[:4])), first=0, count=4)
    step = run_.model(batch)
    run_.loss_of(step)[1].backward()
    critic = list(run_.objective.critic.discriminator.parameters())
    assert all(p.grad is None for p in critic)
    assert all(p.requires_grad for p in critic)
    before = [p.grad.clone() for p in run_.parameters]
    run_.objective.critic.teach(step.estimate, 0.25)
    assert all(torch.equal(p.grad, b) for p, b in zip(run_.parameters, before, strict=True))
    assert all(p.grad.abs().sum() > 0 for p in critic)


def test_bf16_trains_with_every_term(tmp_path, monkeypatch):
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})  # accelerate has one precision per process
    settings = config(epochs=1, objective=terms(gan=True, feature_matching_weight=1.0), mixed_precision="bf16")
    seen = run(tmp_path, settings)
    entry = seen[-1].entry
    assert entry["skipped_steps"] == 0
    assert all(math.isfinite(value) for value in [*entry["terms"].values(), entry["val_loss"]])
    state = load_checkpoint(tmp_path / "last_model.pth")["loss_state_dict"]
    assert {t.dtype for t in state["discriminator_state_dict"].values()} == {torch.float32}
    moments = state["discriminator_optimizer_state_dict"]["state"].values()
    assert all(m["exp_avg"].abs().sum() > 0 for m in moments if m["exp_avg"].numel() > 1)  # see above for the last bias


# -- health: what is measured ----------------------------------------------------------------------------------------


def quick(epochs: int = 3, **training) -> RunConfig:
    """A network whose steps take little time; with batches of four, an epoch has six."""
    model = RegressionConfig(model_channels=8, channel_multipliers=(1,))
    return config(epochs, **training).model_copy(update={"model": model})


def entries_of(seen: list[trainer.Progress]) -> list[dict]:
    return [p.entry for p in seen if p.entry]


@pytest.mark.parametrize(("windows", "length"), [(20, 10), (1, 11)])
def test_the_windows_of_a_run_are_those_of_its_steps(tmp_path, monkeypatch, windows, length):
    """An epoch has eleven steps. A number of windows per epoch is wanted, and at least ten steps each, so they continue
    across its end."""
    monkeypatch.setattr(run_history, "WINDOWS", windows)
    seen = run(tmp_path, quick(batch_size=2))
    steps = steps_of(seen)
    found = [w for entry in entries_of(seen) for w in entry["windows"]]
    assert [(w["step"], w["steps"]) for w in found] == [(length * n, length) for n in (1, 2, 3)]
    for number, window in enumerate(found):
        part = steps[length * number :][:length]
        losses, norms = [p.losses["loss"] for p in part], [p.grad_norm for p in part]
        assert window["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
        assert window["loss_std"] == pytest.approx(np.std(losses), rel=1e-3)
        assert window["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
        assert (window["grad_max"], window["skipped"]) == (max(norms), 0)


def test_the_windows_leave_out_the_opinion_of_the_discriminator(tmp_path):
    objective = terms(gan=True, feature_matching_weight=2.0, adversarial_weight=3.0, gan_start=4, gan_warmup=2)
    seen = run(tmp_path, config(epochs=1, batch_size=2, objective=objective))
    (window,) = seen[-1].entry["windows"]
    loss = window["loss"]
    parts = [[p.losses.get(f"weighted_{name}", 0) for name in ("mse", "perceptual")] for p in steps_of(seen)[:10]]
    assert loss == pytest.approx(np.sum(parts, axis=1).mean(), rel=1e-5)
    assert abs(loss - np.mean([p.losses["loss"] for p in steps_of(seen)[:10]])) > 0.01


@pytest.mark.parametrize("bad", [range(2, 4), range(13), range(4, 19)])
def test_the_windows_count_the_steps_that_were_left_out(tmp_path, monkeypatch, bad):
    """All of them count, even a dozen bad steps in a row."""
    poison(monkeypatch, bad, loss_too=False)
    seen = run(tmp_path, quick(epochs=3, batch_size=2))
    windows = [w for entry in entries_of(seen) for w in entry["windows"]]
    assert sum(w["skipped"] for w in windows) == len(bad)
    good = [p.losses["loss"] for p in steps_of(seen) if p.step - 1 not in bad]
    taken = sum(w["steps"] for w in windows)
    assert taken >= len(good) - 10
    mean = sum(w["steps"] * w["loss"] for w in windows) / taken
    assert mean == pytest.approx(np.mean(good[: int(taken)]), rel=1e-4)


def test_a_window_of_few_steps_does_not_claim_to_be_exact(tmp_path, monkeypatch):
    """With one step the spread would be 0, and any change of the loss would be more than noise."""
    poison(monkeypatch, range(1, 15), loss_too=False)
    windows = [w for entry in entries_of(run(tmp_path, quick(epochs=3, batch_size=2))) for w in entry["windows"]]
    assert windows
    assert all(window["loss_std"] > 0 for window in windows)


@pytest.fixture(scope="module")
def quick_whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    run(folder, quick(batch_size=2))
    return load_checkpoint(folder / "last_model.pth")


@pytest.mark.parametrize("step", [4, 10, 11, 13, 25])
def test_a_run_left_within_a_window_has_the_same_history(tmp_path, quick_whole, step):
    run(tmp_path, quick(batch_size=2), leave=lambda p: p.step == step)
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert left["progress"]["window"].get("steps", 0) == step % 10
    run(tmp_path, quick(batch_size=2), resume=left)
    assert_same_run(quick_whole, load_checkpoint(tmp_path / "last_model.pth"))
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert [entry["windows"] for entry in history] == [entry["windows"] for entry in quick_whole["history"]]
    assert [len(entry["windows"]) for entry in history] == [1, 1, 1]


def test_the_windows_of_an_epoch_are_those_of_one_objective(tmp_path):
    """The terms begin at its ninth step, and earlier measures are not compared with later ones."""
    run(tmp_path, config(epochs=1, batch_size=1), leave=lambda p: p.step == 8)
    source = load_checkpoint(tmp_path / "last_model.pth")
    assert source["progress"]["window"]["steps"] == 8
    seen = run(tmp_path, config(epochs=1, batch_size=1, objective=terms(mse_weight=3.0)), resume=source)
    (window,) = seen[-1].entry["windows"]
    assert (window["step"], window["steps"]) == (18, 10)
    assert window["loss"] == pytest.approx(np.mean([p.losses["loss"] for p in steps_of(seen)[:10]]), rel=1e-5)


def test_the_history_is_json_even_where_a_measure_is_no_number(tmp_path, monkeypatch):
    """JSON has no NaN, and other programs that read the file would refuse it."""
    sums = torch.tensor([math.nan, math.inf, 9.0])
    monkeypatch.setattr(validation, "validation_sums", lambda *arguments, **settings: sums)
    run(tmp_path, quick(epochs=1))
    text = (tmp_path / "training_history.json").read_text()
    (entry,) = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert entry["val_loss"] is None
    assert [finding["ailment"] for finding in entry["findings"]] == ["NaN"]


def test_the_colours_of_each_picture_are_measured(tmp_path):
    shown = run(tmp_path, quick(epochs=1))[-1].comparison
    lab = trainer.color.rgb_to_lab(trainer.color.channels_first(shown.truth))
    assert np.allclose(shown.picture_ab_truth, lab[:, 1:].mean(dim=(2, 3)), atol=1e-4)
    assert np.allclose(np.mean(shown.picture_ab_truth, axis=0), shown.mean_ab_truth, atol=1e-4)
    assert np.allclose(np.mean(shown.picture_ab, axis=0), shown.mean_ab, atol=1e-4)
    assert shown.ab_spread_truth == pytest.approx(float(lab[:, 1:].var(dim=(2, 3), correction=0).mean() ** 0.5))
    assert len(shown.picture_ab) == len(shown.picture_ab_truth) == 8


# -- health: what is said of it --------------------------------------------------------------------------------------


def finding(ailment: str, *, collapse: bool = False) -> Finding:
    return Finding(ailment, "seen 3 times", "it means this", "do that", "certain", collapse)


def find(monkeypatch, by_epoch: dict[int, list[Finding]]) -> None:
    """Makes the doctor find these at the end of these epochs."""
    monkeypatch.setattr(trainer.health, "diagnose", lambda record: by_epoch.get(record.latest["epoch"], []))


def test_a_finding_is_in_the_history_and_said_once(tmp_path, monkeypatch):
    """It is reported once while it lasts: the second when it appears, and the first again when it comes back."""
    one, two = finding("plateau"), finding("one tint")
    find(monkeypatch, {2: [one], 3: [one], 4: [one, two], 5: [two], 6: [one, two]})
    settings = quick(epochs=6, image_interval=0)
    seen = run(tmp_path, settings, leave=lambda p: p.entry and p.entry["epoch"] == 3)
    seen += run(tmp_path, settings, resume=load_checkpoint(tmp_path / "last_model.pth"))
    said = {p.entry["epoch"]: p.notes for p in seen if p.entry}
    line = "Health: {} (certain): seen 3 times. do that."
    one_line, two_line = line.format("plateau"), line.format("one tint")
    assert said == {1: (), 2: (one_line,), 3: (), 4: (two_line,), 5: (), 6: (one_line,)}
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert [[f["ailment"] for f in entry["findings"]] for entry in history] == [
        [],
        ["plateau"],
        ["plateau"],
        ["plateau", "one tint"],
        ["one tint"],
        ["plateau", "one tint"],
    ]
    assert Finding(**history[1]["findings"][0]) == one


@pytest.mark.parametrize(("gray", "expected"), [(21, 1.0), (12, 12 / 21), (5, 5 / 21)])
def test_gray_photos_are_said_before_the_first_step_and_only_then(tmp_path, gray, expected):
    pictures = np.array(IMAGES[0].images)
    pictures[:gray] = pictures[:gray].mean(axis=-1, keepdims=True)
    images = (dataclasses.replace(IMAGES[0], images=pictures), IMAGES[1])
    seen = run(tmp_path, quick(epochs=2), images=images)
    assert [n for n, p in enumerate(seen) for note in p.notes if "gray" in note] == ([0] if gray > 10 else [])
    for entry in entries_of(seen):
        assert entry["gray_share"] == pytest.approx(expected)
        assert ["gray data" in f["ailment"] for f in entry["findings"]] == ([True] if gray > 10 else [])


# -- health: what is done about a collapse ---------------------------------------------------------------------------

COLLAPSE = [finding("divergence", collapse=True)]


def too_fast(monkeypatch, *, after: int, rate: float = 1.0) -> None:
    """Makes the learning rate far too high from a step on."""
    original = trainer.learning_rate
    monkeypatch.setattr(trainer, "learning_rate", lambda s, step, n: rate if step >= after else original(s, step, n))


def two_colours(count: int, seed: int) -> ImageSet:
    """Squares, light ones orange and dark ones blue: soon learnt, and soon lost again if the steps are too long."""
    light = np.random.default_rng(seed).integers(60, 200, (count, 4, 4, 1)).repeat(4, axis=1).repeat(4, axis=2)
    pictures = light + np.where(light > 130, 1, -1) * np.array([50, -20, -50])
    return ImageSet(pictures.clip(0, 255).astype(np.uint8), ("",) * count, ("",) * count, "two colours", None)


TWO_COLOURS = (two_colours(20, 1), two_colours(9, 2))  # with batches of two, an epoch is ten steps, and one window
FAST = {"batch_size": 2, "learning_rate": 5e-3}


class Rollbacks(list):
    """Records healthy_model.pth and last_model.pth after each rollback. `cured`: the number of rollbacks after which
    nothing goes wrong."""

    def __init__(self, folder: Path, monkeypatch, *, cured: int | None = None):
        super().__init__()
        self.folder, self.monkeypatch, self.cured = ModelFolder(folder), monkeypatch, cured

    def watch(self, progress: trainer.Progress) -> None:
        if any(note.startswith("Rolled back") for note in progress.notes):
            self.append((load_checkpoint(self.folder.healthy), load_checkpoint(self.folder.last)))
            if len(self) == self.cured:
                self.monkeypatch.undo()


def test_a_real_divergence_is_found_said_and_by_default_no_more(tmp_path, monkeypatch):
    too_fast(monkeypatch, after=40)
    seen = run(tmp_path, quick(epochs=8, **FAST), images=TWO_COLOURS)
    found = [[f["ailment"] for f in entry["findings"]] for entry in entries_of(seen)]
    assert found == [[]] * 6 + [["divergence"]] * 2, "certain only when it has lasted"
    assert notes(seen).count("Health: divergence") == 1
    assert not (tmp_path / "healthy_model.pth").exists()


@pytest.mark.parametrize("on_collapse", ["stop", "rollback"])
def test_a_healthy_run_ends_as_if_nobody_had_watched(tmp_path, quick_whole, on_collapse):
    run(tmp_path, quick(batch_size=2, on_collapse=on_collapse))
    assert_same_run(quick_whole, load_checkpoint(tmp_path / "last_model.pth"))
    assert (tmp_path / "healthy_model.pth").exists() == (on_collapse == "rollback")


def test_stop_ends_the_run_with_one_sentence_and_a_folder_to_go_on_from(tmp_path, monkeypatch):
    too_fast(monkeypatch, after=40)
    settings = quick(epochs=20, on_collapse="stop", **FAST)
    with pytest.raises(Collapsed, match=r"^divergence \(certain\): .*best_model\.pth") as caught:
        run(tmp_path, settings, images=TWO_COLOURS)
    assert isinstance(caught.value, TrainingFailed)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    last = load_checkpoint(tmp_path / "last_model.pth")
    assert last["epoch"] == len(last["history"]) == 7
    assert last["history"][-1]["findings"][0]["ailment"] == "divergence"
    assert load_checkpoint(tmp_path / "best_model.pth")["epoch"] == 4
    monkeypatch.undo()
    on = settings.training.model_copy(update={"on_collapse": "warn", "epochs": last["epoch"] + 1})
    seen = run(tmp_path, settings.model_copy(update={"training": on}), resume=last, images=TWO_COLOURS)
    assert seen[-1].entry["epoch"] == 8


@pytest.mark.parametrize("on_collapse", ["warn", "stop", "rollback"])
def test_running_out_of_memory_is_no_collapse(tmp_path, monkeypatch, on_collapse):
    """A lower learning rate would not help."""
    memory_for(monkeypatch, pictures=0)
    rollbacks = Rollbacks(tmp_path, monkeypatch)
    with pytest.raises(TrainingFailed, match="memory") as caught:
        run(tmp_path, quick(on_collapse=on_collapse), watch=rollbacks.watch)
    assert not isinstance(caught.value, Collapsed)
    assert rollbacks == []


FEW_TIMESTEPS = {"features": (8,), "timesteps": 5}  # the pictures of each epoch take little time
GOES_BACK = {
    "regression": quick(on_collapse="rollback"),
    "gan": config(2, FEW_TIMESTEPS, V2["gan"], on_collapse="rollback"),
}


@pytest.mark.parametrize("name", GOES_BACK)
def test_a_rollback_restores_the_last_healthy_state_and_lowers_the_rate(tmp_path, monkeypatch, name):
    """Weights, EMA, AdamW, discriminator, position in the data, means and history are restored bit for bit."""
    find(monkeypatch, {2: COLLAPSE})
    rollbacks = Rollbacks(tmp_path / "a", monkeypatch, cured=1)
    seen = run(tmp_path / "a", GOES_BACK[name], watch=rollbacks.watch)
    ((healthy, last),) = rollbacks
    assert (healthy["step"], healthy["epoch"]) == (6, 1)
    for part in ("model_state_dict", "raw_state_dict", "loss_state_dict"):
        assert_equal(healthy[part], last[part], part)
    assert_equal(healthy["optimizer_state_dict"]["state"], last["optimizer_state_dict"]["state"], "AdamW")
    assert timeless(healthy["history"]) == timeless(last["history"])
    changed = {n for n, v in last["progress"].items() if healthy["progress"][n] != v}
    assert changed - {"seconds"} == {"rate_scale", "rollbacks"}
    assert last["progress"]["rate_scale"] == pytest.approx(0.4)
    assert notes(seen).count("Rolled back from step 12 to step 6") == 1

    # and it continues like a run that was at that position with that rate
    run(tmp_path / "b", GOES_BACK[name], resume=last)
    assert_same_run(load_checkpoint(tmp_path / "a" / "last_model.pth"), load_checkpoint(tmp_path / "b/last_model.pth"))


def test_the_history_tells_of_a_rollback(tmp_path, monkeypatch):
    find(monkeypatch, {2: COLLAPSE})
    seen = run(tmp_path, quick(on_collapse="rollback"), watch=Rollbacks(tmp_path, monkeypatch, cured=1).watch)
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(1, 6), (2, 12), (3, 18)]
    assert "rollbacks" not in history[0]
    for entry in history[1:]:
        (event,) = entry["rollbacks"]
        assert (event["from_step"], event["to_step"], event["rate_scale"]) == (12, 6, 0.4)
        assert event["reason"].startswith("divergence (certain): seen 3 times")
        assert entry["learning_rate"] == pytest.approx(0.4e-4)
        assert entry["findings"] == []
    rates = {(p.step, n): p.learning_rate for n, p in enumerate(steps_of(seen))}
    assert [rate for (step, _), rate in rates.items() if step == 8] == pytest.approx([1e-4, 0.4e-4])


def test_there_are_two_rollbacks_at_most(tmp_path, monkeypatch):
    find(monkeypatch, {2: COLLAPSE})
    rollbacks = Rollbacks(tmp_path, monkeypatch)
    with pytest.raises(Collapsed, match="divergence"):
        run(tmp_path, quick(on_collapse="rollback"), watch=rollbacks.watch)
    assert [last["progress"]["rate_scale"] for _, last in rollbacks] == pytest.approx([0.4, 0.16])
    assert [healthy["step"] for healthy, _ in rollbacks] == [6, 6], "the healthy state is not lowered, or moved"
    last = load_checkpoint(tmp_path / "last_model.pth")
    assert [event["rate_scale"] for event in last["progress"]["rollbacks"]] == pytest.approx([0.4, 0.16])
    assert last["epoch"] == 2


def test_a_rollback_outlives_the_program(tmp_path, monkeypatch):
    """The run is left after the first rollback: the rate stays low, and one more is possible."""
    find(monkeypatch, {2: COLLAPSE})
    rollbacks = Rollbacks(tmp_path, monkeypatch)
    settings = quick(on_collapse="rollback")
    seen = run(tmp_path, settings, leave=lambda p: "Rolled back" in " ".join(p.notes), watch=rollbacks.watch)
    assert seen[-1].step == 7
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert (left["progress"]["rate_scale"], len(left["progress"]["rollbacks"]), left["step"]) == (0.4, 1, 7)
    with pytest.raises(Collapsed):
        run(tmp_path, settings, resume=left, watch=rollbacks.watch)
    assert [last["progress"]["rate_scale"] for _, last in rollbacks] == pytest.approx([0.4, 0.16])


def test_a_program_that_ends_between_a_collapse_and_its_rollback_still_goes_back_to_health(tmp_path, monkeypatch):
    """last_model.pth then holds the collapsed state, which is not taken for a healthy one."""
    find(monkeypatch, {2: COLLAPSE, 3: COLLAPSE})
    rollbacks = Rollbacks(tmp_path, monkeypatch, cured=1)
    settings = quick(on_collapse="rollback")
    run(tmp_path, settings, leave=lambda p: p.entry and p.entry["findings"])
    left = load_checkpoint(tmp_path / "last_model.pth")
    assert (left["step"], load_checkpoint(tmp_path / "healthy_model.pth")["step"]) == (12, 6)
    run(tmp_path, settings, resume=left, watch=rollbacks.watch)
    assert [last["step"] for _, last in rollbacks] == [6]


def test_a_rollback_goes_to_before_the_divergence_began(tmp_path, monkeypatch):
    """A divergence is certain only after three windows, here three epochs, so the ends of these are not healthy
    states."""
    too_fast(monkeypatch, after=40)
    rollbacks = Rollbacks(tmp_path, monkeypatch, cured=1)
    seen = run(tmp_path, quick(epochs=8, on_collapse="rollback", **FAST), images=TWO_COLOURS, watch=rollbacks.watch)
    assert [healthy["step"] for healthy, _ in rollbacks] == [40]
    assert seen[-1].entry["findings"] == []
    assert seen[-1].entry["train_loss"] < 1, "as much as before anything is learnt"


def test_a_rollback_goes_to_before_the_steps_without_a_finite_gradient(tmp_path, monkeypatch):
    """Such steps change nothing, but from weights whose gradient is NaN a lower learning rate does not help."""
    poison(monkeypatch, range(8, 1000), loss_too=True)
    rollbacks = Rollbacks(tmp_path, monkeypatch, cured=1)
    seen = run(tmp_path, quick(epochs=5, on_collapse="rollback"), watch=rollbacks.watch)
    assert [healthy["step"] for healthy, _ in rollbacks] == [6]
    assert "Rolled back from step 28 to step 6" in notes(seen)
    assert [entry["epoch"] for entry in json.loads((tmp_path / "training_history.json").read_text())] == [1, 2, 3, 4, 5]
    assert load_checkpoint(tmp_path / "last_model.pth")["progress"]["skipped_in_a_row"] == 0


def test_a_run_that_collapses_before_its_first_epoch_ends_goes_back_to_its_beginning(tmp_path, monkeypatch):
    poison(monkeypatch, range(2, 1000), loss_too=True)
    rollbacks = Rollbacks(tmp_path, monkeypatch, cured=1)
    seen = run(tmp_path, quick(epochs=2, batch_size=1, on_collapse="rollback"), watch=rollbacks.watch)
    assert [healthy["step"] for healthy, _ in rollbacks] == [0]
    assert seen[-1].entry["epoch"] == 2
    assert seen[-1].entry["skipped_steps"] == 0


# -- with an encoder -------------------------------------------------------------------------------------------------

SEEING = {"encoder": SHIPPED, "encoder_size": 32, "neck_width": 8, "chroma_scale": 4, "hints": True, "head": "mean"}


def seeing(**settings) -> RunConfig:
    return config(model=SEEING, **settings)


def cached(folder, settings: RunConfig, cache: Path, **more) -> None:
    """A run that reads the maps of its encoder from the disk."""
    features = open_features(Encoder(SHIPPED, 32), IMAGES[0], cache_dir=cache)
    resume = copy.deepcopy(more.pop("resume", None))
    accelerator = make_accelerator(settings.training)
    steps = train(settings, ModelFolder(folder), IMAGES, accelerator=accelerator, resume=resume, features=features)
    with contextlib.closing(steps):
        for progress in steps:
            if more and progress.step == more["leave"]:
                break


def test_a_run_with_an_encoder_goes_on_bit_for_bit(tmp_path):
    """It uses everything that is random: dropped features, hints, zoomed and aged photos."""
    settings = seeing(zoom=0.6, old_photos=0.5)
    run(tmp_path / "whole", settings)
    run(tmp_path / "left", settings, leave=lambda p: p.step == 5)
    run(tmp_path / "left", settings, resume=load_checkpoint(tmp_path / "left" / "last_model.pth"))
    whole, left = (load_checkpoint(tmp_path / n / "last_model.pth") for n in ("whole", "left"))
    assert_same_run(whole, left)
    assert not any(name.startswith("encoder") for name in whole["model_state_dict"])
    entry = whole["history"][-1]
    assert set(entry["val_terms"]) == {"mse_and_head", "mse", "head", "unexplained"}
    assert entry["val_terms"]["mse_and_head"] == pytest.approx(
        entry["val_terms"]["mse"] + 0.25 * entry["val_terms"]["head"], rel=1e-4
    )


# Squares of 32 px, which the network sees at 16 and the encoder as they are.
LARGE = tuple(
    dataclasses.replace(part, images=part.images[:, :8, :8].repeat(4, axis=1).repeat(4, axis=2)) for part in IMAGES
)
VIEWED = {"data": DataConfig(image_size=16, view_size=32)}


def test_an_encoder_is_shown_more_pixels_than_the_network_sees(tmp_path, monkeypatch):
    shown: list[tuple[int, int]] = []
    forward = DiffusionColorizer.forward
    monkeypatch.setattr(
        DiffusionColorizer,
        "forward",
        lambda self, batch: shown.append((batch.L.shape[-1], batch.seen.shape[-1])) or forward(self, batch),
    )
    settings = seeing(zoom=0.6, old_photos=0.5).model_copy(update=VIEWED)
    run(tmp_path / "whole", settings, images=LARGE)
    assert set(shown) == {(16, 32)}
    run(tmp_path / "left", settings, images=LARGE, leave=lambda p: p.step == 5)
    left = load_checkpoint(tmp_path / "left" / "last_model.pth")
    run(tmp_path / "left", settings, images=LARGE, resume=left)
    whole, left = (load_checkpoint(tmp_path / n / "last_model.pth") for n in ("whole", "left"))
    assert_same_run(whole, left)


def test_what_an_encoder_is_shown_is_the_square_itself(tmp_path):
    """The network's own square is the same one with fewer pixels, mirrored and zoomed alike."""
    settings = seeing(zoom=0.8).model_copy(update=VIEWED)
    run_ = trainer.Run(settings, ModelFolder(tmp_path), LARGE, make_accelerator(settings.training))
    batch = run_.prepare(torch.from_numpy(np.array(LARGE[0].images[:8])), first=0, count=8)
    assert batch.view.shape == (8, 1, 32, 32)
    assert batch.ab.shape == (8, 2, 16, 16)
    small = torch.nn.functional.interpolate(batch.view, (16, 16), mode="bicubic", antialias=True)
    assert (small - batch.L).abs().mean() < 0.03
    assert (small - batch.L.roll(1, dims=0)).abs().mean() > 0.1
    whole = color.lightness(color.channels_first(LARGE[0].images[:8]))
    off = [(batch.view - same).abs().mean(dim=(1, 2, 3)) for same in (whole, whole.flip(-1))]
    assert torch.minimum(*off).mean() > 0.02, "zoomed"
    maps = run_.model.look(batch.seen)
    assert not torch.allclose(maps[0], run_.model.look(batch.L)[0], atol=0.1)


SMALL_ENCODER = {"encoder": SHIPPED, "encoder_size": 32}


@pytest.mark.parametrize(
    "model",
    [
        DiffusionConfig(features=(8, 16), time_dim=16, timesteps=5, **SEEING),
        RegressionConfig(model_channels=8, **SMALL_ENCODER),
        RegressionConfig(model_channels=8, outputs="lab", **SMALL_ENCODER),
        ClassificationConfig(bins=12, width=8, stem_stride=8, **SMALL_ENCODER),
    ],
    ids=("diffusion", "regression", "restoration", "classification"),
)
def test_every_method_looks_at_the_view(tmp_path, monkeypatch, model):
    """In training, in validation and in the comparison pictures."""
    settings = config().model_copy(update=VIEWED | {"model": model})
    run_ = trainer.Run(settings, ModelFolder(tmp_path), LARGE, make_accelerator(settings.training))
    looked: list[tuple[bool, int]] = []
    look = type(run_.ema).look
    monkeypatch.setattr(
        type(run_.ema), "look", lambda self, view: looked.append((self.training, view.shape[-1])) or look(self, view)
    )
    run_.backward(4, np.arange(4), torch.from_numpy(np.array(LARGE[0].images[:4])))
    assert looked == [(True, 32)]
    list(run_.validate())
    assert set(looked) == {(True, 32), (False, 32)}
    looked.clear()
    comparison = run_.compare()
    assert looked == [(False, 32)]
    assert comparison.colour.shape == comparison.truth.shape == comparison.gray.shape == (8, 16, 16, 3)


def test_cached_features_are_of_what_the_encoder_is_shown(tmp_path):
    settings = seeing(cache_features=True).model_copy(update=VIEWED)
    features = open_features(Encoder(SHIPPED, 32), LARGE[0], cache_dir=tmp_path)
    rows = features.maps(features.read(np.arange(4), np.zeros(4, bool)))
    view = color.lightness(color.channels_first(LARGE[0].images[:4]))
    encoder = Encoder(SHIPPED, 32)
    assert torch.allclose(rows[0], encoder(encoder.view(view))[0], atol=0.02)
    accelerator = make_accelerator(settings.training)
    run_ = trainer.Run(settings, ModelFolder(tmp_path), LARGE, accelerator, features=features)
    batch = run_.prepare(torch.from_numpy(np.array(LARGE[0].images[:4])), np.arange(4), first=0, count=4)
    assert batch.view is None
    assert batch.L.shape == (4, 1, 16, 16)


def test_features_from_the_disk_train_the_same_model(tmp_path):
    settings = seeing(cache_features=True)
    cached(tmp_path / "whole", settings, tmp_path / "cache")
    cached(tmp_path / "left", settings, tmp_path / "cache", leave=5)
    left = load_checkpoint(tmp_path / "left" / "last_model.pth")
    cached(tmp_path / "left", settings, tmp_path / "cache", resume=left)
    whole, left = (load_checkpoint(tmp_path / n / "last_model.pth") for n in ("whole", "left"))
    assert_same_run(whole, left)
    run(tmp_path / "computed", settings)  # the encoder at every step: the same but for 16 bits
    computed = load_checkpoint(tmp_path / "computed" / "last_model.pth")
    for a, b in zip(whole["history"], computed["history"], strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-3)
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)


def test_without_mirroring_no_photo_is_mirrored(tmp_path):
    run_ = trainer.Run(config(mirror=False), ModelFolder(tmp_path), IMAGES, make_accelerator(config().training))
    rgb = torch.from_numpy(np.array(IMAGES[0].images[:8]))
    L, ab = run_.prepare(rgb, first=0, count=8)[:2]
    wanted = color.split(color.channels_first(IMAGES[0].images[:8]), run_.ema.ab_mean, run_.ema.ab_std)
    assert torch.equal(L, wanted[0])
    assert torch.equal(ab, wanted[1])


def test_old_photos_have_the_colours_of_the_good_ones(tmp_path):
    """Only the lightness is aged; the colours to be learnt stay the same."""
    pair = [
        trainer.Run(config(old_photos=share), ModelFolder(tmp_path), IMAGES, make_accelerator(config().training))
        for share in (0.0, 1.0)
    ]
    rgb = torch.from_numpy(np.array(IMAGES[0].images[:8]))
    good, old = (run_.prepare(rgb, first=0, count=8) for run_ in pair)
    assert torch.equal(good.ab, old.ab)
    assert (good.L != old.L).flatten(1).any(dim=1).float().mean() > 0.5


def test_an_encoder_with_every_term_of_the_second_recipe(tmp_path):
    run(tmp_path, config(model=SEEING, objective=terms(gan=True)))
    entry = load_checkpoint(tmp_path / "last_model.pth")["history"][-1]
    assert {"mse_and_head", "perceptual", "adversarial"} <= set(entry["terms"])
    assert all(math.isfinite(value) for value in entry["terms"].values())
