"""The estimated time of a run: it is shown before the run begins, and the measurement changes nothing."""

import math

import pytest
import torch
from test_trainer import IMAGES, config, run, terms

from Project7 import preparation, recipe, request, run_time
from Project7.checkpoints import load_checkpoint
from Project7.run_time import RunTime, duration, in_words
from Project7.trainer import make_accelerator


@pytest.mark.slow
@pytest.mark.parametrize("objective", [None, terms(gan=True)])
def test_the_measured_run_is_the_same_afterwards(tmp_path, objective):
    settings = config(epochs=2, objective=objective)
    plain = run(tmp_path / "plain", settings, leave=lambda p: p.step == 3)
    stored = load_checkpoint(tmp_path / "plain" / "last_model.pth")
    measured = run_time.measure(settings, IMAGES, accelerator=make_accelerator(settings.training), resume=stored)
    assert measured.epochs == 2
    assert measured.epoch > 0
    ends = []
    for name, checkpoint in (("after", stored), ("straight", load_checkpoint(tmp_path / "plain" / "last_model.pth"))):
        run(tmp_path / name, settings, resume=checkpoint)
        ends.append(load_checkpoint(tmp_path / name / "last_model.pth")["raw_state_dict"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
    assert plain


def test_a_run_of_one_step_is_too_short_to_be_measured(tmp_path):
    settings = config(epochs=1, batch_size=32)
    measured = run_time.measure(settings, IMAGES, accelerator=make_accelerator(settings.training))
    assert math.isnan(measured.epoch)
    assert "too short" in in_words(measured)


def test_times_are_said_in_words():
    assert in_words(RunTime(130, 50)) == "an epoch takes about 2 minutes here, all 50 about 1.8 hours"
    assert in_words(RunTime(1, 1)) == "an epoch takes about 1 second here"
    assert [duration(s) for s in (0.2, 89, 91, 5400, 86400 * 3)] == [
        "1 second",
        "89 seconds",
        "2 minutes",
        "1.5 hours",
        "3.0 days",
    ]


def test_a_person_who_does_not_agree_leaves_nothing(tmp_path, monkeypatch, capsys):
    """The time is shown before the person is asked."""
    monkeypatch.setattr(recipe, "can_ask", lambda arguments: True)
    monkeypatch.setattr(request, "can_ask", lambda arguments: True)
    monkeypatch.setattr(preparation.prompts, "ask_settings", lambda *_, **__: {})
    monkeypatch.setattr(preparation.prompts, "agreed", lambda: False)
    from Project7 import train_diffusion

    flags = (
        "--features 8,16 --time-dim 16 --image-size 16 --limit 8 --batch-size 2 --device cpu --encoder none --name m"
    )
    assert train_diffusion.main(["--models-dir", str(tmp_path / "models"), *flags.split()]) == 0
    said = capsys.readouterr().out
    assert "an epoch takes about" in said
    assert "Nothing was trained." in said
    assert not (tmp_path / "models" / "m").exists()
