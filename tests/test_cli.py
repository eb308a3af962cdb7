"""project7 as a person calls it: exit codes, and what is printed. It runs in this process if nothing is lost by
that."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Done, call
from PIL import Image

from Project7 import cli, demo, model_folder, train_diffusion
from Project7.answer_config import ColorizeConfig
from Project7.checkpoints import save_checkpoint
from Project7.config import RunConfig, to_json
from Project7.errors import ProjectError, UsageError
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig
from Project7.model_folder import ModelFolder
from Project7.photo_source import sample_photos
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = RunConfig(
    model=DiffusionConfig(features=(8, 16), time_dim=16, timesteps=50), data=DataConfig(image_size=16, data="somewhere")
)


@pytest.fixture
def project7(monkeypatch):
    """Calls the program as its console script does, but in this process."""

    def here(*arguments, cwd, main=cli.command):
        monkeypatch.chdir(cwd)
        return call(main, *arguments)

    return here


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A models folder with one untrained model, and a folder of photos with a bad one."""
    place = tmp_path_factory.mktemp("place")
    folder = place / "models" / "tiny"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    weights = build_model(CONFIG.model).state_dict()
    save_checkpoint(folder / "best_model.pth", {"model_state_dict": weights, "config": CONFIG.model_dump(mode="json")})
    (folder / "config.json").write_text(to_json(CONFIG))
    photos = place / "photos"
    (photos / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "sub/a.png"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(photos / name)
    return place


@pytest.fixture
def colorize(project7, place):
    def coloured(*arguments) -> Done:
        return project7("colorize", *arguments, "--models-dir", place / "models", "--steps", 2, cwd=place)

    return coloured


def test_a_folder_is_coloured_then_skipped_then_forced(place, colorize):
    done = colorize("photos", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "3 coloured" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    files = {p.relative_to(place / "out").as_posix() for p in (place / "out").rglob("*.png")}
    assert files == {"a.png", "b.png", "sub/a.png"}
    with Image.open(place / "out" / "a.png") as picture:
        assert picture.size == (30, 20)
        assert picture.info["icc_profile"]
    again = colorize("photos", "--output", "out")
    assert again.returncode == 0
    assert "3 skipped" in again.stdout
    assert "--force" in again.stderr
    assert "3 coloured" in colorize("photos", "--output", "out", "--force").stdout


def test_a_bad_file_is_named_and_the_rest_goes_on(place, colorize):
    (place / "mixed").mkdir()
    Image.new("RGB", (20, 20), "teal").save(place / "mixed" / "good.png")
    (place / "mixed" / "bad.png").write_bytes(b"no picture")
    done = colorize("mixed", "--output", "out2", "--variants", 2, "--seed", 3)
    assert done.returncode == 1
    assert "bad.png" in done.stderr
    assert "1 coloured, 1 failed" in done.stdout
    assert sorted(p.name for p in (place / "out2").iterdir()) == ["good-1.png", "good-2.png", "good-sheet.png"]
    assert re.search(
        r"^mixed/good.png -> out2/good-1.png, good-2.png, good-sheet.png  \(tiny, \d+\.\d s\)$", done.stdout, re.M
    )


def test_weights_without_a_checksum_are_taken_and_that_is_said(place, colorize):
    weights = torch.load(place / "models" / "tiny" / "best_model.pth", weights_only=True)
    torch.save(weights, place / "foreign.pth")
    done = colorize("photos/a.png", "--model", "foreign.pth", "--output", "out3")
    assert done.returncode == 0, done.stderr
    assert "no checksum" in done.stderr


def test_the_strength_of_the_colours_reaches_them(place, colorize):
    """--saturation 0 gives gray, and --warmth tints even that."""
    for name, flags in {"gray": ("--saturation", 0), "warm": ("--saturation", 0, "--warmth", 30)}.items():
        assert colorize("photos/a.png", "--output", name, *flags).returncode == 0
    gray, warm = (np.asarray(Image.open(place / name / "a.png")).astype(int) for name in ("gray", "warm"))
    assert np.ptp(gray, axis=-1).max() <= 1
    assert (warm[..., 0] - warm[..., 2]).mean() > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], ["nowhere.png"]),
        (["photos", "--model", "ghost"], ["ghost", "tiny"]),
        (["photos", "--sampler", "magic"], ["--sampler", "ddim"]),
        (["photos", "--steps", "0"], ["--steps"]),
        (["photos", "--seed", "-1"], ["--seed"]),
        (["photos", "--what"], ["--what"]),
        ([], ["PHOTO"]),
    ],
)
def test_bad_requests_exit_2_with_one_sentence(place, arguments, words, project7):
    done = project7("colorize", *arguments, "--models-dir", place / "models", cwd=place)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_the_model_where_none_is_named(tmp_path):
    assert cli.default_model(tmp_path) == "base"
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best_model.pth").touch()
        if name == "mine":
            assert cli.default_model(tmp_path) == "mine"
    with pytest.raises(UsageError, match=r"Which of the 2 models .* --model: mine, yours"):
        cli.default_model(tmp_path)
    shutil.copytree(tmp_path / "mine", tmp_path / "base")
    assert cli.default_model(tmp_path) == "base"


def test_models_are_listed_and_an_empty_folder_says_so_beside_the_shipped_ones(place, project7):
    listed = project7("models", "--models-dir", place / "models", cwd=place)
    assert listed.returncode == 0
    assert "tiny" in listed.stdout
    assert "diffusion" in listed.stdout
    empty = project7("models", "--models-dir", place / "none", cwd=place)
    assert empty.returncode == 0
    assert "train_diffusion" in empty.stdout
    assert "base-classification" in empty.stdout


def test_a_model_with_terms_is_used_like_any_other(place, project7):
    """Its checkpoint also holds a discriminator, and its configuration an objective."""
    config = CONFIG.model_copy(update={"objective": ObjectiveConfig(gan=True)})
    folder = place / "with-terms" / "v2"
    shutil.copytree(place / "models" / "tiny", folder)
    weights = torch.load(folder / "best_model.pth", weights_only=True)
    state = {"use_gan": True, "discriminator_state_dict": {"0.weight": torch.zeros(2)}}
    changed = {"config": config.model_dump(mode="json"), "loss_state_dict": state}
    save_checkpoint(folder / "best_model.pth", {"model_state_dict": weights["model_state_dict"], **changed})
    (folder / "config.json").write_text(to_json(config))
    assert "v2" in project7("models", "--models-dir", folder.parent, cwd=place).stdout
    flags = ["--output", "out4", "--models-dir", folder.parent, "--steps", 2]
    done = project7("colorize", "photos/a.png", *flags, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "1 coloured" in done.stdout


def test_data_shows_what_training_would_see(place, project7):
    shown = project7("data", "--data", "photos", "--image-size", 16, "--cache-dir", place / "cache", cwd=place)
    assert shown.returncode == 0, shown.stderr
    assert "training: 2 images" in shown.stdout
    assert "colorfulness" in shown.stdout


def test_the_demo_uses_a_shipped_model(place, project7):
    shutil.copytree(place / "models" / "tiny", place / "shipped" / "base")
    done = project7("demo", "--models-dir", place / "shipped", "--output", place / "demo", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "shipped model" in done.stdout
    assert all((place / "demo" / f"{name}.png").exists() for name in sample_photos())
    with Image.open(place / "demo" / "coffee.png") as picture, Image.open(sample_photos()["coffee"]) as truth:
        assert picture.size == truth.size
    with Image.open(place / "demo" / "coffee-gray-colour-truth.png") as row:
        assert row.width > 3 * picture.width


@pytest.mark.slow
def test_the_demo_trains_a_model_of_its_own_where_that_is_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_SECONDS", 20)
    few = DataConfig(crops=20, val_limit=1)
    monkeypatch.setattr(demo, "_CONFIG", demo._CONFIG.model_copy(update={"data": few}))
    assert demo.run_demo(tmp_path / "out", tmp_path / "models", train=True) == 0
    assert "are not among them" in capsys.readouterr().out
    assert ModelFolder(tmp_path / "out" / "models" / "demo").best.exists()
    assert (tmp_path / "out" / "coffee-gray-colour-truth.png").exists()
    assert demo.run_demo(tmp_path / "out", tmp_path / "models", train=True) == 0
    assert "an earlier demo trained" in capsys.readouterr().out


def test_help_names_every_command_and_every_training_script(place, project7):
    shown = project7(cwd=place).stdout
    scripts = sorted(path.stem for path in (ROOT / "Project7").glob("train_*.py"))
    assert len(scripts) > 1
    named = [name for name in ("colorize", *scripts) if f"{name} " in shown]
    assert named == ["colorize", *scripts]


def test_help_of_every_command(project7, tmp_path):
    helped = project7(cwd=tmp_path).stdout
    for command in re.findall(r"^    ([a-z]+) ", helped, re.MULTILINE):
        done = project7(command, "--help", cwd=tmp_path)
        assert (done.returncode, done.stdout.split()[:3]) == (0, ["usage:", "project7", command])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["colourise"], "There is no command colourise; did you mean colorize? See project7 --help."),
        (
            ["colorize", "a.png", "--stepz", "3"],
            "There is no flag --stepz; did you mean --steps? See project7 colorize",
        ),
        (["colorize", "a.png", "--xyzzy=3"], "There is no flag --xyzzy; see project7 colorize --help."),
        (["compare", "nosuch.json"], "nosuch.json does not exist; give a file that `project7 evaluate --json FILE`"),
    ],
)
def test_what_was_meant_is_said(project7, tmp_path, arguments, said):
    done = project7(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_every_help_is_short_above_has_examples_below_and_fits_80_columns(project7, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parsers = ["", *(add.__name__.removeprefix("add_") for add in cli.COMMANDS)]
    for name in parsers:
        lines = project7(*[name] * bool(name), "--help", cwd=tmp_path).stdout.splitlines()
        assert lines[0].startswith("usage: project7")
        assert lines[1] == "", "the usage takes one line"
        assert ("examples:" in lines) == bool(name)
        body = lines[: lines.index("examples:")] if name else lines
        assert max(map(len, body)) <= 80
    groups = [line for line in project7("colorize", "--help", cwd=tmp_path).stdout.splitlines() if line.endswith(":")]
    assert {"what you know about a photo:", "how it answers:", "the picture:", "the machine:"} <= set(groups)
    named = [name for names in cli._GROUPS.values() for name in names]
    assert sorted(named) == sorted(ColorizeConfig.model_fields), "every setting stands in one group"


def test_models_at_80_columns_keeps_names_whole_and_methods_apart(place, project7, monkeypatch):
    name = "a-model-with-quite-a-long-name-of-40-letters"
    shutil.copytree(place / "models" / "tiny", place / "long" / name)
    monkeypatch.setenv("COLUMNS", "80")
    lines = project7("models", "--models-dir", place / "long", cwd=place).stdout.splitlines()
    assert any(name in line for line in lines)
    starts = [line.split(":")[0] for line in lines if line and not line.startswith(" ")]
    assert starts == ["diffusion", "classification"]
    assert "first choice for a photo" in " ".join(lines)


def test_a_palette_is_replaced_only_where_that_is_meant(project7, tmp_path, monkeypatch):
    (tmp_path / "p.npz").write_text("mine")
    arguments = ("palette", "--data", "samples", "--bins", "4", "--output", "p.npz")
    done = project7(*arguments, cwd=tmp_path)
    assert (done.returncode, "p.npz exists; --force replaces it." in done.stderr) == (2, True)
    monkeypatch.setattr("Project7.prompts.can_ask", lambda: True)
    monkeypatch.setattr("Project7.prompts._ask", lambda message, *_, **__: "")
    assert project7(*arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / "p.npz").read_text() == "mine", "no is the default"


def test_only_what_a_command_needs_is_imported(place):
    """This is why --help appears at once: no torch, no Pillow, no numpy is imported."""
    program = "import sys; from Project7.cli import command; command(['models', '--help'])"
    heavy = "print(sorted({'torch', 'numpy', 'PIL', 'diffusers', 'questionary'} & set(sys.modules)), file=sys.stderr)"
    script = f"import sys, atexit\natexit.register(lambda: {heavy})\n{program}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_models_folder_that_cannot_be_written(place, project7):
    (place / "file").write_text("x")
    arguments = ["--name", "m", "--yes", "--models-dir", place / "file" / "models"]
    done = project7(*arguments, cwd=place, main=train_diffusion.main)
    assert done.returncode == 1
    assert "--models-dir" in done.stderr
    assert done.stderr.count("\n") == 1


# -- doctor ----------------------------------------------------------------------------------------------------------

HEALTHY = 0.2 + 0.8 * 0.9 ** np.arange(60)
SICK = [*HEALTHY, 0.5, 0.6, 0.7]  # a divergence


def trained(models: Path, losses=HEALTHY, *, name="m", **entry) -> ModelFolder:
    """The folder of a run whose history has one entry, with the given training losses, one per window."""
    folder = ModelFolder(models / name)
    model_folder.create(folder)
    model_folder.write_config(folder, CONFIG)
    if len(losses):
        windows = [[100 * n, 100, float(loss), 0.0, 1.0, 2.0, 0] for n, loss in enumerate(losses, start=1)]
        latest = {"epoch": 1, "step": windows[-1][0], "train_loss": 0.3, "val_loss": 0.3, "windows": windows}
        model_folder.write_history(folder, [latest | entry])
    return folder


def log(folder: ModelFolder, losses) -> None:
    """The TensorBoard log of a run: one point every ten steps."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.logs)) as writer:
        for n, loss in enumerate(np.repeat(losses, 10), start=1):
            writer.add_scalar("train/loss", loss, 10 * n)
            writer.add_scalar("train/grad_norm", 1.0, 10 * n)


def doctor(folder: ModelFolder) -> int:
    """Runs the doctor in this process, which is quick. Returns the exit code."""
    return cli.command(["doctor", folder.name, "--models-dir", str(folder.path.parent)])


def test_a_healthy_run_exits_0(tmp_path, capsys):
    folder = trained(tmp_path)
    assert doctor(folder) == 0
    out, err = capsys.readouterr()
    assert (err, "\x1b" in out) == ("", False)
    assert "m: 1 epoch, 6,000 steps" in out
    assert "looks healthy" in out
    assert "doctor.png" in out


def test_odd_environment_variables_end_in_one_sentence(project7, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("PROJECT7_CACHE", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'nothing'}{os.pathsep}")
    for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    done = project7("data", "--data", "samples", "--image-size", "16", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "could not be written" in done.stderr
    assert "--cache-dir" in done.stderr


def test_a_bold_learning_rate_is_said_before_there_is_a_curve(tmp_path, capsys):
    folder = trained(tmp_path, [])
    bold = {"training": TrainingConfig(learning_rate=0.03)}
    model_folder.write_config(folder, CONFIG.model_copy(update=bold))
    assert doctor(folder) == 1
    assert (
        "bold learning rate (likely): the learning rate 0.03 is 300 times the usual 0.0001" in capsys.readouterr().out
    )


def test_curves_that_cannot_be_drawn_do_not_hide_the_diagnosis(tmp_path, capsys):
    folder = trained(tmp_path)
    (folder.path / "doctor.png").mkdir()
    assert doctor(folder) == 0
    out = capsys.readouterr().out
    assert "looks healthy" in out
    assert "The curves were not drawn" in out


def test_findings_exit_1_with_their_cure(tmp_path, capsys):
    folder = trained(tmp_path, SICK, gray_share=0.8)
    assert doctor(folder) == 1
    out = " ".join(capsys.readouterr().out.split())
    for words in ("divergence", "gray data", "certain", "--resume m", "--min-colorfulness 10", "6,300 steps"):
        assert words in out


def test_the_curves_are_drawn_beside_the_model_and_nothing_else_is_touched(tmp_path):
    folder = trained(tmp_path, SICK)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    doctor(folder)
    after = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with Image.open(folder.path / "doctor.png") as picture:
        assert min(picture.size) > 500
    assert after.pop("doctor.png")
    assert after == before
    doctor(folder)
    assert {path.name for path in folder.path.iterdir()} == {*before, "doctor.png"}


def test_a_run_that_broke_off_in_its_first_epoch_is_read_from_its_log(tmp_path, capsys):
    folder = trained(tmp_path, [])
    log(folder, SICK)
    assert doctor(folder) == 1
    out = capsys.readouterr().out
    assert "m: 0 epochs, 6,300 steps" in out
    assert "divergence" in out


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\x00", b"null"])
def test_a_damaged_history_is_said_and_the_log_read(tmp_path, capsys, content):
    folder = trained(tmp_path, SICK)
    log(folder, HEALTHY)
    folder.history.write_bytes(content)
    assert doctor(folder) == 0
    assert "training_history.json is damaged" in " ".join(capsys.readouterr().out.split())
    assert folder.history.read_bytes() == content, "a person may still mend it"


def test_a_history_with_numbers_that_json_does_not_know_is_read(tmp_path, capsys):
    folder = trained(tmp_path)
    (entry,) = model_folder.read_history(folder)
    bad = {"val_loss": float("nan"), "colorfulness": float("inf"), "epoch": 2}
    folder.history.write_text(json.dumps([entry, entry | bad, entry | {"epoch": 3}]))
    assert doctor(folder) == 0
    assert "3 epochs" in capsys.readouterr().out


def test_an_older_history_without_windows_is_read(tmp_path, capsys):
    folder = trained(tmp_path)
    entries = [{"epoch": n, "step": 100 * n, "train_loss": loss} for n, loss in enumerate(SICK, start=1)]
    model_folder.write_history(folder, entries)
    assert doctor(folder) == 1
    assert "divergence" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "garbage"])
def test_without_a_configuration_the_curves_are_read(tmp_path, capsys, damage):
    folder = trained(tmp_path, SICK)
    folder.last.touch()  # what makes the folder a model
    folder.config.unlink() if damage == "missing" else folder.config.write_text("{")
    assert doctor(folder) == 1
    assert "a lower --learning-rate" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("damaged", [True, False])
def test_a_run_of_which_nothing_was_logged_exits_1_with_one_sentence(tmp_path, damaged):
    folder = trained(tmp_path, [])
    if damaged:
        folder.history.write_text("{")
    with pytest.raises(ProjectError, match="Nothing was logged for 'm'") as caught:
        doctor(folder)
    assert caught.value.exit_code == 1
    assert not (folder.path / "doctor.png").exists()


def test_the_doctor_of_nobody_exits_2_and_names_the_models(tmp_path, project7):
    trained(tmp_path)
    with pytest.raises(UsageError, match=r"No model 'n' .* are m\."):
        doctor(ModelFolder(tmp_path / "n"))
    done = project7("doctor", "n", "--models-dir", tmp_path, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_model_without_a_run_of_its_own_has_no_log(place):
    """The folder holds only weights from elsewhere."""
    with pytest.raises(ProjectError, match="Nothing was logged for 'tiny'"):
        doctor(ModelFolder(place / "models" / "tiny"))


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}


def test_in_a_pipe_the_doctor_writes_plain_lines_that_its_encoding_knows(tmp_path):
    """It is called from another folder, with the path of the model's folder."""
    models = tmp_path / "Schüler"
    trained(models, SICK)
    command = [sys.executable, ROOT / "Project7", "doctor", "m", "--models-dir", models]
    environment = os.environ | C_LOCALE
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, encoding="utf-8")
    assert (done.returncode, done.stderr) == (1, "")
    assert "divergence" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160
    assert (models / "m" / "doctor.png").exists()


def test_a_reader_that_leaves_is_no_error(tmp_path, project7, monkeypatch):
    """`project7 doctor m | head -1`"""
    trained(tmp_path, SICK)
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as piped, os.fdopen(writer, "w") as pipe:
        piped.setattr(sys, "stdout", pipe)
        done = project7("doctor", "m", "--models-dir", tmp_path, cwd=tmp_path)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")


def test_the_table_fits_a_narrow_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    trained(tmp_path, SICK)
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert doctor(ModelFolder(tmp_path / "m")) == 1
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert max(map(len, shown.splitlines())) <= 40
    assert "sure" in shown
