"""What a run shows; and trouble with showing never stops the training."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from Project7.config import RunConfig
from Project7.counting import counting
from Project7.model_folder import ModelFolder
from Project7.report import Report, clock, numbers, step_line, terms
from Project7.sheet import sheet
from Project7.trainer import Comparison, Progress


def comparison() -> Comparison:
    pictures = np.zeros((2, 16, 16, 3), np.uint8)
    return Comparison(
        gray=pictures, colour=pictures + 100, truth=pictures + 200, psnr=20.0, colorfulness=30.0,
        colorfulness_truth=40.0, mean_ab=(1.0, 2.0), mean_ab_truth=(3.0, 4.0), picture_ab=[[1.0, 2.0]] * 2,
        picture_ab_truth=[[3.0, 4.0]] * 2, ab_spread=5.0, ab_spread_truth=6.0,
    )  # fmt: skip


def progress(**changes) -> Progress:
    entry = {
        "epoch": 1, "step": 10, "train_loss": 0.5, "val_loss": 0.4, "skipped_steps": 2, "images_per_second": 9.0,
        "terms": {"mse": 0.5}, "weighted_terms": {},
    }  # fmt: skip
    values = {
        "phase": "train", "epoch": 1, "epochs": 2, "step": 10, "total_steps": 20, "losses": {"loss": 0.5, "mse": 0.5},
        "learning_rate": 1e-4, "grad_norm": 1.0, "skipped": 0, "images_per_second": 9.0, "seconds_left": 61.0,
        "entry": entry, "is_best": True, "comparison": comparison(),
    }  # fmt: skip
    return Progress(**values | changes)


def shown(folder, *steps, terminal=False) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=160, soft_wrap=True)  # as the recipes do
    with Report(folder, RunConfig(), console) as report:
        for step in steps:
            report.show(step)
    return text.getvalue()


def test_an_epoch_is_one_plain_line_in_a_pipe(tmp_path):
    text = shown(ModelFolder(tmp_path), progress())
    assert "\x1b" not in text
    (line,) = text.splitlines()
    for words in ("epoch 1/2", "train 0.5000", "val 0.4000 (best)", "PSNR 20.00 dB", "truth 40.0", "2 steps skipped"):
        assert words in line


TERMS = {"mse": 0.4, "perceptual": 0.82, "adversarial": -0.7}
WEIGHTED = {"mse": 0.4, "perceptual": 0.082, "adversarial": -0.007}
LOSSES = {"loss": 0.475, **TERMS, "critic": 1.9, **{f"weighted_{name}": value for name, value in WEIGHTED.items()}}
SUM = "mse 0.4000 + perceptual 0.0820 (0.8200) + adversarial -0.0070 (-0.7000)"


def test_the_terms_are_shown_as_they_count_and_in_brackets_unweighted():
    assert terms(LOSSES) == f"loss 0.4750 = {SUM}  critic 1.9000"
    assert terms({"loss": 0.8, "mse": 0.4, "weighted_mse": 0.8}) == "loss 0.8000 = mse 0.8000 (0.4000)"


def test_without_weights_the_measures_stand_side_by_side():
    assert terms({"loss": 0.5, "mse": 0.5}) == "loss 0.5000  mse 0.5000"
    assert terms({"loss": 0.5}) == "loss 0.5000"
    assert terms({}) == "", "before the first step"


def test_the_figures_of_a_step_have_the_terms():
    line = numbers(progress(losses=LOSSES), psnr=20.0)
    assert line.startswith(f"loss 0.4750 = {SUM}  PSNR 20.0 dB"), "no room for the discriminator's answers"
    assert numbers(progress(losses={"loss": 0.5, "mse": 0.5}), psnr=20.0).startswith("loss 0.5000  mse 0.5000  PSNR")


def test_the_line_of_an_epoch_has_the_terms_and_what_they_add_up_to(tmp_path):
    entry = progress().entry | {"train_loss": 0.475, "terms": TERMS | {"critic": 1.9}, "weighted_terms": WEIGHTED}
    (line,) = shown(ModelFolder(tmp_path), progress(entry=entry)).splitlines()
    assert f"train 0.4750 ({SUM}  critic 1.9000)  val 0.4000 (best)" in line


def test_one_term_alone_is_not_said_twice(tmp_path):
    entry = progress().entry | {"weighted_terms": {"mse": 0.5}}  # stage 1
    (line,) = shown(ModelFolder(tmp_path), progress(entry=entry)).splitlines()
    assert "train 0.5000  val 0.4000" in line


def test_a_loss_that_is_no_number_is_shown(tmp_path):
    entry = progress().entry | {"train_loss": None, "val_loss": None, "terms": {}}
    (line,) = shown(ModelFolder(tmp_path), progress(entry=entry, comparison=None)).splitlines()
    assert "train n/a  val n/a" in line


def test_each_term_has_a_curve_weighted_and_unweighted(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = ModelFolder(tmp_path)
    shown(folder, progress(losses=LOSSES))
    events = EventAccumulator(str(folder.logs)).Reload()
    assert {f"train/{name}" for name in LOSSES} <= set(events.Tags()["scalars"])
    assert events.Scalars("train/weighted_perceptual")[0].value == pytest.approx(0.082)


def test_pictures_and_curves_are_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = ModelFolder(tmp_path)
    shown(folder, progress(), progress(step=20))
    assert [p.name for p in sorted(folder.pictures.iterdir())] == ["step-0000010.png", "step-0000020.png"]
    events = EventAccumulator(str(folder.logs)).Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/loss", "train/mse", "train/learning_rate", "validation/loss", "validation/psnr"} <= set(scalars)
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20]
    assert events.Tags()["images"] == ["gray | colour | truth"]


def test_what_a_killed_run_drew_past_its_last_save_is_not_shown_twice(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = ModelFolder(tmp_path)
    shown(folder, progress(), progress(step=20), progress(step=30))
    shown(folder, progress(step=20), progress(step=30))  # saved at step 15, killed at 30, resumed
    events = EventAccumulator(str(folder.logs), purge_orphaned_data=True).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30]


def test_a_picture_that_cannot_be_written_is_said_once(tmp_path):
    folder = ModelFolder(tmp_path)
    (tmp_path / "pictures").write_text("a file in the way")
    (tmp_path / "logs").write_text("a file in the way")
    text = shown(folder, progress(), progress(step=20), progress(step=30))
    assert text.count("No comparison picture") == 1
    assert text.count("No TensorBoard log") == 1
    assert text.count("epoch 1/2") == 3  # training continued


def test_a_terminal_gets_one_line_that_is_gone_at_the_end(tmp_path):
    text = shown(ModelFolder(tmp_path), progress(), progress(entry=None, phase="validate"), terminal=True)
    assert "step 10/20" in text
    assert "1:01 left" in text
    assert "validating" in text
    screen = pyte_lines(text)
    assert [line for line in screen if "left" in line or "validating" in line] == []


def pyte_lines(text):
    """The content of the screen; it knows only the escape codes that rich uses for a live line."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and part != "\r" and not part.startswith("\x1b"):
            lines[row] += part
    return lines


def test_the_line_of_a_step_at_80_columns_keeps_what_matters():
    long = progress(
        epoch=12,
        epochs=50,
        step=12_345,
        total_steps=54_321,
        losses=LOSSES,
        images_per_second=123.4,
        seconds_left=12_345.0,
    )
    line = step_line(long, 21.34, 80)
    assert len(line) < 80
    for words in ("epoch 12/50", "step 12345/54321", "loss 0.4750", "PSNR 21.3", "123 img/s", "3:25:45 left"):
        assert words in line
    wide = step_line(long, 21.34, 240)
    for words in (SUM, "lr 1.0e-04", "[####"):
        assert words in wide
    assert "epoch 1/2" in step_line(progress(), 20.0, 20), "too narrow for anything: it is cut off, and no error"


def test_a_count_is_silent_in_a_pipe(tmp_path):
    text = io.StringIO()
    with counting(Console(file=text)) as count:
        count("decoding", 1, 2)
    assert text.getvalue() == ""


def test_sheets_and_clocks():
    columns = [np.full((3, 16, 16, 3), value, np.uint8) for value in (0, 100, 200)]
    picture = sheet(columns, smallest=32)
    assert picture.shape == (3 * 32, 3 * 32 + 8, 3)
    assert clock(59.6) == "1:00"
    assert clock(3725) == "1:02:05"
