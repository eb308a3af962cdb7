"""What a training request becomes, before anything is trained."""

import pytest

from Project7 import recipe
from Project7.config import RunConfig, TrainingConfig, to_json
from Project7.errors import UsageError


def gather(tmp_path, *flags):
    return recipe.gather(recipe.make_parser("test").parse_args(["--models-dir", str(tmp_path), *flags]))


def model(tmp_path, name="old", **settings):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(to_json(RunConfig(**settings)))


def test_a_new_model_takes_what_was_given_and_no_more(tmp_path):
    request = gather(tmp_path, "--name", "new", "--yes", "--batch_size", "8", "--features=8,16")
    assert request.folder.path == tmp_path / "new"
    assert request.source is None
    assert request.settings == {"batch_size": "8", "features": "8,16"}


def test_yes_alone_finds_a_free_name(tmp_path):
    assert gather(tmp_path, "--yes").folder.name == "model-1"
    model(tmp_path, "model-1")
    assert gather(tmp_path, "--yes").folder.name == "model-2"


def test_an_existing_name_points_to_resume(tmp_path):
    model(tmp_path)
    with pytest.raises(UsageError, match="--resume old"):
        gather(tmp_path, "--name", "old", "--yes")
    with pytest.raises(UsageError, match="another --name"):
        gather(tmp_path, "--resume", "old", "--name", "old")


def test_resume_in_place_and_in_a_copy(tmp_path):
    model(tmp_path)
    in_place = gather(tmp_path, "--resume", "old")
    assert in_place.folder == in_place.source
    copy = gather(tmp_path, "--resume", "old", "--name", "new", "--epochs", "3")
    assert copy.folder.name == "new"
    assert copy.source.name == "old"
    assert copy.settings == {"epochs": "3"}


def test_a_shipped_model_is_continued_in_a_copy(tmp_path):
    model(tmp_path, shipped=True, training=TrainingConfig(epochs=3))
    with pytest.raises(UsageError, match="--name NEW"):
        gather(tmp_path, "--resume", "old")
    assert gather(tmp_path, "--resume", "old", "--name", "mine").folder.name == "mine"


def test_without_a_terminal_the_missing_flags_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"--features.*--epochs.*--data.*--yes"):
        gather(tmp_path, "--name", "new")


def test_a_process_that_is_not_the_main_one_asks_and_refuses_nothing(tmp_path, monkeypatch):
    model(tmp_path)  # made a moment ago by the main process
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gather(tmp_path, "--name", "old", "--yes").folder.name == "old"
