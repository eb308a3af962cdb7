"""The training loop: exact resuming, whole batches over micro-steps, bad gradients, and learning."""

import contextlib
import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

from Project7 import model_folder, trainer
from Project7.batch import Step
from Project7.checkpoints import load_checkpoint, load_model
from Project7.config import DiffusionConfig, RunConfig, TrainingConfig
from Project7.dataset import ImageSet
from Project7.model_folder import ModelFolder
from Project7.trainer import TrainingFailed, learning_rate, make_accelerator, train

WALL_CLOCK = ("seconds", "images_per_second")


def image_set(count: int, seed: int, size: int = 16) -> ImageSet:
    pictures = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(pictures, ("x",) * count, ("",) * count, f"set-{seed}-{count}", None)


IMAGES = (image_set(21, 1), image_set(9, 2))


def config(epochs: int = 2, model: dict | None = None, **training) -> RunConfig:
    settings = {"batch_size": 4, "warmup_steps": 3, "image_interval": 0, "device": "cpu"} | training
    return RunConfig(
        model=DiffusionConfig(**{"features": (8, 16), "time_dim": 16} | (model or {})),
        training=TrainingConfig(epochs=epochs, **settings),
    )


def run(folder, settings: RunConfig, *, leave=None, resume=None, images=IMAGES) -> list[trainer.Progress]:
    """All the Progress of a run; with `leave`, until it is true of one."""
    seen = []
    steps = train(settings, ModelFolder(folder), images, accelerator=make_accelerator(settings.training), resume=resume)
    with contextlib.closing(steps):
        for progress in steps:
            seen.append(progress)
            if leave and leave(progress):
                break
    return seen


def timeless(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k not in WALL_CLOCK} for entry in history]


def assert_same_run(a: dict, b: dict) -> None:
    """Two last_model.pth hold the same run, bit for bit."""
    for part in ("model_state_dict", "raw_state_dict"):
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), (part, name)
    for key, state in a["optimizer_state_dict"]["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, b["optimizer_state_dict"]["state"][key][name]), (key, name)
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
    """Four pictures at once, or twice two: one gradient to rounding, with the same noise, timesteps and flips."""
    for name, settings in {"one": {}, "two": {"batch_size": 2, "gradient_accumulation": 2}}.items():
        run(tmp_path / name, config(epochs=1, **settings))
    one, two = (load_checkpoint(tmp_path / n / "last_model.pth")["raw_state_dict"] for n in ("one", "two"))
    assert max((one[n] - two[n]).abs().max().item() for n in one) < 1e-5


def test_running_out_of_memory_halves_the_micro_batch_and_keeps_the_step(tmp_path, monkeypatch):
    run(tmp_path / "calm", config(epochs=1))
    original = trainer.Run.backward

    def tight(self, count, places, rgb):
        if self.state.accumulation < 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, count, places, rgb)

    monkeypatch.setattr(trainer.Run, "backward", tight)
    seen = run(tmp_path / "tight", config(epochs=1))
    assert any("Out of memory" in note for progress in seen for note in progress.notes)
    calm, tight_ = (load_checkpoint(tmp_path / n / "last_model.pth") for n in ("calm", "tight"))
    assert tight_["progress"]["accumulation"] == 2  # kept for resuming
    assert max((calm["raw_state_dict"][n] - t).abs().max() for n, t in tight_["raw_state_dict"].items()) < 1e-5


def test_running_out_of_memory_with_one_picture_stops(tmp_path, monkeypatch):
    def never(self, count, places, rgb):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.Run, "backward", never)
    with pytest.raises(TrainingFailed, match="image-size"):
        run(tmp_path, config())


def poison(monkeypatch, bad_steps: range, *, loss_too: bool) -> None:
    """Makes the gradient (and the loss) of some steps NaN."""
    original = trainer.Run.backward

    def poisoned(self, count, places, rgb):
        measures = original(self, count, places, rgb)
        if self.state.step in bad_steps:
            next(iter(self.parameters)).grad.fill_(math.nan)
            if loss_too:
                measures["loss"] = measures["loss"] * math.nan
        return measures

    monkeypatch.setattr(trainer.Run, "backward", poisoned)


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
    """Fixed noise and timesteps: two runs with one set of weights have one validation loss."""
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
    """One colour everywhere, whatever L: a small network learns it in a few hundred small steps."""
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
    """What lets several processes agree: forward gives one loss a sample, not a mean."""
    settings = config()
    model = trainer.build(settings.model)
    batch = trainer.Batch(torch.zeros(3, 1, 16, 16), torch.zeros(3, 2, 16, 16), trainer.BatchRandom(0, 0, 0, 3, 3))
    step = model(batch)
    assert isinstance(step, Step)
    assert step.loss.shape == (3,)
