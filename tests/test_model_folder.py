"""model_folder.py: names that stay inside models/, listings that survive damage, one trainer per folder."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError
from Project7.model_folder import (
    ModelFolder,
    check_name,
    create,
    default_models_dir,
    existing_folder,
    find_weights,
    list_models,
    locked,
    open_folder,
    read_config,
    read_history,
    set_aside,
    summarize,
    write_config,
    write_history,
)
from Project7.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
GOOD_NAMES = ["a", "0", "model-1", "A.b_c-9", "x" * 64, "v2.0", "a--b"]
BAD_NAMES = [
    "../../x", "..", ".", "", " ", "a/b", "a\\b", "/absolute", "a\0b", "x" * 65, ".hidden", "C:x", "a\u202eb", "-rf",
    "trailing.", "a b", "é", "a\n", "\na", "*", "~", "_a",
]  # fmt: skip


def make_model(models_dir: Path, name: str, *, epochs: int = 3, losses: tuple = (0.5, 0.25), weights: bytes = b"w" * 7):
    """The folder of a trained model, without real weights."""
    folder = ModelFolder(models_dir / name)
    create(folder)
    write_config(folder, RunConfig(training=TrainingConfig(epochs=epochs)))
    history = enumerate(losses, start=1)
    write_history(folder, [{"epoch": n, "val_loss": loss, "best_val_loss": min(losses[:n])} for n, loss in history])
    if weights:
        folder.best.write_bytes(weights)
    return folder


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_is_kept(tmp_path, name):
    assert check_name(name) == name
    assert open_folder(tmp_path, name).path == tmp_path / name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_with_the_rule(tmp_path, name):
    with pytest.raises(UsageError, match="cannot name a model: use 1 to 64 of the letters") as caught:
        open_folder(tmp_path, name)
    message = str(caught.value)
    assert message.isprintable(), "no line break, no NUL, no right-to-left mark reaches the terminal"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["con", "NUL", "Com1", "lpt9", "con.v2"])
def test_a_name_that_windows_keeps_for_a_device_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=f"'{name}' cannot name a model: Windows keeps it for a device"):
        open_folder(tmp_path, name)


def test_a_link_out_of_the_models_folder_is_refused(tmp_path):
    outside = make_model(tmp_path / "elsewhere", "secret")
    models = tmp_path / "models"
    models.mkdir()
    (models / "link").symlink_to(outside.path)
    with pytest.raises(UsageError, match="is a link out of the models folder"):
        open_folder(models, "link")
    with pytest.raises(UsageError, match="is a link out of the models folder"):
        find_weights("link", models)


@pytest.mark.parametrize("name", ["best_model.pth", "last_model.pth", "config.json"])
def test_a_file_of_a_model_that_is_a_link_out_is_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"x")
    model = make_model(tmp_path / "models", "m")
    (model.path / name).unlink(missing_ok=True)
    (model.path / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=f"{name} is a link out of the models folder and is not followed; put a file"):
        find_weights("m", tmp_path / "models")


def test_only_the_call_that_made_a_folder_says_so(tmp_path):
    folder = ModelFolder(tmp_path / "models" / "m")
    assert create(folder)
    assert not create(folder)


def test_a_link_within_the_models_folder_is_followed(tmp_path):
    make_model(tmp_path, "a")
    (tmp_path / "newest").symlink_to(tmp_path / "a")
    assert existing_folder(tmp_path, "newest").best.read_bytes() == b"w" * 7


def test_the_models_of_a_checkout_lie_in_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert default_models_dir() == ROOT / "models"


# -- listing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_no_models(tmp_path, there):
    models = tmp_path / "models"
    if there:
        models.mkdir()
    assert list_models(models) == []
    assert models.exists() == there


def test_models_are_listed_by_name_with_what_they_reached(tmp_path):
    make_model(tmp_path, "b", losses=(0.5, 0.25, 0.3))
    folder = make_model(tmp_path, "a", epochs=9)
    os.utime(folder.best, (1e9, 1e9))
    a, b = list_models(tmp_path)
    assert (a.name, a.epochs, a.best_val_loss, a.complete) == ("a", 2, 0.25, False)
    assert (b.name, b.epochs, b.best_val_loss, b.complete) == ("b", 3, 0.25, True)
    assert (a.size, a.changed) == (7, datetime.fromtimestamp(1e9))
    assert a.config.training.epochs == 9


def test_what_is_no_model_is_not_listed(tmp_path):
    make_model(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "best_model.pth").touch()
    (tmp_path / "not a name").mkdir()
    (tmp_path / "not a name" / "best_model.pth").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [model.name for model in list_models(tmp_path)] == ["a"]


def test_a_link_out_of_the_folder_does_not_hide_the_other_models(tmp_path):
    outside = make_model(tmp_path / "elsewhere", "secret")
    models = tmp_path / "models"
    make_model(models, "mine")
    (models / "link").symlink_to(outside.path)
    assert [model.name for model in list_models(models)] == ["mine"]


GARBAGE = {
    "missing": None,
    "empty": b"",
    "cut": b'{"model": {"meth',
    "binary": b"\xff\xfe\x00\x80",
    "deep": b"[" * 100_000,
    "null": b"null",
    "number": b"3",
    "wrong": b'{"entries": [1, 2]}',
    "list of numbers": b"[1, 2]",
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_damaged_config_does_not_hide_a_model(tmp_path, kind):
    folder = make_model(tmp_path, "a")
    folder.config.unlink()
    if GARBAGE[kind] is not None:
        folder.config.write_bytes(GARBAGE[kind])
    (model,) = list_models(tmp_path)
    assert (model.name, model.config, model.complete, model.epochs) == ("a", None, False, 2)
    with pytest.raises(UsageError, match=r"config\.json"):
        read_config(folder)


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_damaged_history_does_not_hide_a_model(tmp_path, kind):
    folder = make_model(tmp_path, "a")
    folder.history.unlink()
    if GARBAGE[kind] is not None:
        folder.history.write_bytes(GARBAGE[kind])
    assert read_history(folder) == ([] if kind == "missing" else None)
    (model,) = list_models(tmp_path)
    assert (model.name, model.epochs, model.best_val_loss, model.complete) == ("a", 0, None, False)
    assert model.config is not None


@pytest.mark.parametrize("best", [float("nan"), float("inf"), None, "n/a", [0.5]])
def test_a_best_loss_that_is_no_number_is_none(tmp_path, best):
    folder = make_model(tmp_path, "a")
    write_history(folder, [{"epoch": 1, "val_loss": 0.5, "best_val_loss": best}])
    assert summarize(folder).best_val_loss is None


def test_the_best_loss_is_that_of_the_objective_that_holds_now(tmp_path):
    """Terms were added: the losses of the squared error alone are lower, and are not compared with those after it."""
    folder = make_model(tmp_path, "a")
    before, after = {"epoch": 1, "val_loss": 0.2, "best_val_loss": 0.2}, {"epoch": 2, "val_loss": 0.5}
    write_history(folder, [before, after | {"best_val_loss": 0.4}])
    assert summarize(folder).best_val_loss == 0.4, "the weights as they came in scored better than the epoch since"


def test_a_history_from_before_best_losses_were_noted_has_its_lowest(tmp_path):
    folder = make_model(tmp_path, "a")
    losses = (float("nan"), 0.25, None, "n/a", 0.5)
    write_history(folder, [{"epoch": number, "val_loss": loss} for number, loss in enumerate(losses, start=1)])
    assert summarize(folder).best_val_loss == 0.25


def test_epochs_are_those_of_the_model_and_not_only_of_its_history(tmp_path):
    """A foreign checkpoint of epoch 71 was resumed, and has no history of its own."""
    folder = make_model(tmp_path, "a", epochs=72)
    write_history(folder, [{"epoch": 72, "val_loss": 0.5, "best_val_loss": 0.5}])
    summary = summarize(folder)
    assert (summary.epochs, summary.complete) == (72, True)


@pytest.mark.parametrize("epoch", ["x", None, 1.5])
def test_an_epoch_that_is_no_number_does_not_hide_a_model(tmp_path, epoch):
    folder = make_model(tmp_path, "a", epochs=1)
    write_history(folder, [{"epoch": epoch, "val_loss": 0.5, "best_val_loss": 0.5}])
    (model,) = list_models(tmp_path)
    assert (model.name, model.epochs) == ("a", 1)


def test_a_model_that_has_no_weights_yet(tmp_path):
    make_model(tmp_path, "a", losses=(), weights=b"")
    (model,) = list_models(tmp_path)
    assert (model.changed, model.size, model.epochs, model.best_val_loss) == (None, 0, 0, None)


def test_config_and_history_come_back_as_written(tmp_path):
    folder = ModelFolder(tmp_path)
    config = RunConfig(training=TrainingConfig(epochs=7))
    write_config(folder, config)
    write_history(folder, [{"epoch": 1, "val_loss": 0.5}])
    assert read_config(folder) == config
    assert read_history(folder) == [{"epoch": 1, "val_loss": 0.5}]
    assert json.loads(folder.history.read_text()) == [{"epoch": 1, "val_loss": 0.5}]


HISTORY = [
    {
        "epoch": 1,
        "windows": [[10, 10, 0.5, -1.5e-07, 1e300, 0.0, 0], [20, 10, 0.25, 0.125, 1.0, 2.0, 3]],
        "picture_ab": [[1.0, -2.0], [3.0, 4.0]],
        "mean_ab": [1.0, 2.0],
        "empty": [],
        "mixed": [1, None, "x", [True]],
        "findings": [{"seen": '[a] 3 of 10 [1, 2] "[4]"', "collapse": False}],
    }
]


def test_lists_of_numbers_stand_on_one_line_of_the_history(tmp_path):
    """A run of a hundred epochs has two thousand windows of seven numbers."""
    folder = ModelFolder(tmp_path)
    write_history(folder, HISTORY)
    lines = [line.strip() for line in folder.history.read_text().splitlines()]
    for line in ("[10, 10, 0.5, -1.5e-07, 1e+300, 0.0, 0],", "[3.0, 4.0]", '"mean_ab": [1.0, 2.0],', '"empty": [],'):
        assert line in [line.replace("[ ", "[").replace(" ]", "]") for line in lines]


def test_a_history_of_lists_comes_back_as_written(tmp_path):
    folder = ModelFolder(tmp_path)
    write_history(folder, HISTORY)
    assert read_history(folder) == HISTORY


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_json_can_say_comes_back_as_written(tmp_path_factory, value):
    folder = ModelFolder(tmp_path_factory.mktemp("history"))
    write_history(folder, [{"value": value}])
    assert read_history(folder) == [{"value": value}]


def test_the_healthy_state_has_a_file_of_its_own(tmp_path):
    """That file is not a model to colour with, and does not make a folder a model's."""
    folder = ModelFolder(tmp_path / "a")
    folder.path.mkdir()
    folder.healthy.touch()
    assert folder.healthy.name == "healthy_model.pth"
    assert not folder.exists()
    assert list_models(tmp_path) == []


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    folder = make_model(tmp_path, "a")
    folder.config.write_bytes(b"\xef\xbb\xbf" + folder.config.read_bytes())
    assert read_config(folder).training.epochs == 3


# -- making, setting aside -------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_said_before_training(tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ProjectError, match=r"cannot be written .*--models-dir") as caught:
        create(ModelFolder(tmp_path / "models" / "a"))
    assert caught.value.exit_code == 1


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ProjectError, match=r"cannot be written \(no permission to write\)"):
        create(ModelFolder(tmp_path / "a"))


def test_a_damaged_file_is_set_aside_and_kept(tmp_path):
    path = tmp_path / "training_history.json"
    for content in ("first", "second"):
        path.write_text(content)
        set_aside(path)
    assert not path.exists()
    assert (tmp_path / "training_history.json.damaged-1").read_text() == "first"
    assert (tmp_path / "training_history.json.damaged-2").read_text() == "second"


# -- the lock --------------------------------------------------------------------------------------------------------

TRAINER = """
import sys
from pathlib import Path
from Project7.program import run
from Project7.model_folder import ModelFolder, locked
def main():
    with locked(ModelFolder(Path(sys.argv[1]))):
        print("locked", flush=True)
        sys.stdin.read()
sys.exit(run(main))
"""


def start_trainer(folder: ModelFolder) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", TRAINER, str(folder.path)], env=environment, text=True, **pipes)


def test_a_second_trainer_is_told_who_has_the_folder(tmp_path):
    folder = make_model(tmp_path, "a")
    with locked(folder), start_trainer(folder) as second:
        out, err = second.communicate(timeout=60)
    assert (second.returncode, out) == (1, "")
    assert f"'a' is in use by pid {os.getpid()}" in err
    assert err.count("\n") == 1


def test_a_killed_trainer_leaves_no_lock(tmp_path):
    folder = make_model(tmp_path, "a")
    with start_trainer(folder) as first:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(ProjectError, match=f"in use by pid {first.pid}"), locked(folder):
            pytest.fail("two trainers in one folder")
        first.kill()
    with locked(folder), pytest.raises(ProjectError, match=f"in use by pid {os.getpid()}"), locked(folder):
        pytest.fail("two trainers in one folder")


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_lock_ends_with_the_block(tmp_path, error):
    folder = make_model(tmp_path, "a")
    try:
        with locked(folder):
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    with locked(folder):
        pass


def test_another_folder_is_free(tmp_path):
    with locked(make_model(tmp_path, "a")), locked(make_model(tmp_path, "b")):
        pass


# -- find_weights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path, monkeypatch) -> ModelFolder:
    monkeypatch.chdir(tmp_path)
    return make_model(tmp_path / "models", "mine")


def test_weights_by_name_folder_and_file(model):
    weights = model.best.resolve()
    for given in ("mine", "models/mine", "models/mine/best_model.pth", str(model.path), str(model.best)):
        assert find_weights(given, model.path.parent).resolve() == weights, given


def test_a_folder_of_the_same_name_without_weights_is_not_meant(model, tmp_path):
    (tmp_path / "mine").mkdir()
    assert find_weights("mine", model.path.parent) == model.best


def test_an_unknown_name_lists_the_models(model):
    make_model(model.path.parent, "other")
    with pytest.raises(UsageError, match=r"No model 'ghost' in .*: the models there are mine, other\."):
        find_weights("ghost", model.path.parent)


def test_an_unknown_name_in_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="there are no models yet; train one first"):
        find_weights("ghost", tmp_path)


def test_a_shipped_model_is_found_from_anywhere_unless_one_of_its_name_is_there(model, tmp_path):
    assert find_weights("base", tmp_path) == ROOT / "models" / "base" / "best_model.pth"
    own = make_model(model.path.parent, "base")
    assert find_weights("base", model.path.parent) == own.best


@pytest.mark.parametrize("given", ["weights.pth", "models/nobody", "models/mine/last_model.pth", "/nowhere/x.pth"])
def test_a_path_that_is_not_there_is_said_so(model, given):
    with pytest.raises(UsageError, match=f"--model {given}: there is no such file"):
        find_weights(given, model.path.parent)


def test_a_model_without_best_weights_says_how_to_go_on(model):
    model.best.rename(model.last)
    with pytest.raises(UsageError, match=r"no best_model\.pth yet.* --resume mine"):
        find_weights("mine", model.path.parent)
