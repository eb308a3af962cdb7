"""The V2 recipe as a person runs it: typed in a real terminal, called with flags, and without the weights of VGG16."""

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
from conftest import call
from PIL import Image
from terminal import ENTER, answer, open_terminal

from Project7 import train_diffusion, train_diffusion_v2
from Project7.checkpoints import load_checkpoint
from Project7.colorize import Colorizer
from Project7.perceptual_loss import PerceptualLoss

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_diffusion_v2.py"
CTRL_C = "\x03"
PICTURES = "--image-size 16 --val-fraction 0.5 --device cpu --image-interval 0".split()
SMALL = "--encoder none --features 8,16 --time-dim 16 --timesteps 50 --batch-size 4".split() + PICTURES
RANDOM = ["--perceptual-net", "random"]
GAN_AT_ONCE = "--gan --gan-start 0 --gan-warmup 0 --gan-width 8".split()

ARCHITECTURE = ("U-Net features [64,128,256,512]:", "Time embedding dim [256]:", "Diffusion timesteps [1000]:")
HYPERPARAMETERS = ("Batch size [16]:", "Learning rate [0.0001]:", "Number of epochs [50]:")
EXPLANATION = ("How much each objective counts", "MSE          1.0", "perceptual   0.1", "adversarial  0.01")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(16):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache for all tests, so that photos are decoded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROJECT7_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def train(models, *flags, recipe=train_diffusion_v2):
    """Trains without a terminal, in this process."""
    return call(recipe.main, "--models-dir", models, *flags)


def terminal(models, *flags):
    return open_terminal(SCRIPT, models, *flags)


def end(child, code=0):
    """What the terminal has shown, without escape codes."""
    child.expect(pexpect.EOF)
    child.close()
    shown = child.logfile_read.getvalue()
    assert child.exitstatus == code, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


def last(folder):
    return load_checkpoint(folder / "last_model.pth")


def history(folder):
    return json.loads((folder / "training_history.json").read_text())


def objective(folder):
    return json.loads((folder / "config.json").read_text())["objective"]


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


# -- models that several tests start from ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mse_model(tmp_path_factory, photos):
    """A model of one epoch, made by the recipe without terms."""
    models = tmp_path_factory.mktemp("mse")
    done = train(models, "--name", "old", "--data", photos, "--epochs", 1, "--yes", *SMALL, recipe=train_diffusion)
    assert done.returncode == 0, done.stderr
    return models / "old"


@pytest.fixture(scope="module")
def created(tmp_path_factory, photos):
    """A model with all terms, made by answering every question, and what the terminal showed."""
    models = tmp_path_factory.mktemp("created") / "models"
    child = terminal(models, *RANDOM, *GAN_AT_ONCE[1:], *PICTURES, "--encoder", "none")
    child.expect_exact("this will be the first")
    answer(child, "What shall be trained?", "1")
    answer(child, "Model name [model-1]:", ("my/model", "'my/model' cannot name a model"), "my-model")
    child.expect_exact("Model architecture")
    features, time_dim, timesteps = ARCHITECTURE
    answer(child, features, ("abc", "abc: input should be a valid integer"), ("0", "0: input should be grea"), "8,16")
    answer(child, time_dim, "16")
    answer(child, timesteps, "50")
    child.expect_exact("Training")
    for question, typed in zip(HYPERPARAMETERS, ("4", "", "1"), strict=True):
        answer(child, question, typed)
    child.expect_exact("Images")
    answer(child, "Training images", str(photos))
    for line in ("Loss weights", *EXPLANATION):
        child.expect_exact(line)
    answer(child, "MSE weight [1]:", ("-1", "-1: input should be greater than 0"), "")
    answer(child, "Perceptual weight [0.1]:", ("-0.1", "greater than or equal to 0"), "0.2")
    answer(child, "Use GAN discriminator? (y/n) [n]:", ("maybe", "maybe: "), "y")
    answer(child, "Adversarial weight [0.01]:", ("0", "0: input should be greater than 0"), "0.02")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    return models / "my-model", end(child)


# -- questions -------------------------------------------------------------------------------------------------------


def test_a_model_made_by_answering_has_what_was_answered(created):
    folder, _ = created
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"]["features"], config["model"]["time_dim"], config["model"]["timesteps"]) == ([8, 16], 16, 50)
    assert (config["training"]["batch_size"], config["training"]["epochs"]) == (4, 1)
    weights = {name: config["objective"][name] for name in ("mse_weight", "perceptual_weight", "gan")}
    assert weights == {"mse_weight": 1, "perceptual_weight": 0.2, "gan": True}
    assert config["objective"]["adversarial_weight"] == 0.02


def test_each_term_is_in_the_display_and_the_history(created):
    folder, shown = created
    assert re.search(r"train \d+\.\d{4} \(mse \S+ \+ perceptual \S+ \(\S+\) \+ adversarial \S+ \(\S+\)", shown)
    (entry,) = history(folder)
    assert set(entry["weighted_terms"]) == {"mse", "perceptual", "adversarial"} <= set(entry["terms"])
    assert sum(entry["weighted_terms"].values()) == pytest.approx(entry["train_loss"], rel=1e-4)
    for name, weight in (("mse", 1), ("perceptual", 0.2), ("adversarial", 0.02)):
        assert entry["weighted_terms"][name] == pytest.approx(weight * entry["terms"][name], rel=1e-4)
    assert set(entry["val_terms"]) == {"mse", "perceptual"}, "no discriminator, whose opinion changes"


def test_untrained_features_are_named_as_such_everywhere(created):
    folder, shown = created
    table = next(line for line in shown.splitlines() if line.startswith("objective"))
    assert "0.2 perceptual (random VGG16, untrained)" in table
    assert objective(folder)["perceptual_net"] == "random"
    assert "random VGG16, untrained" in history(folder)[0]["objective"]


def test_the_checkpoint_has_the_keys_of_the_document(created):
    state = last(created[0])["loss_state_dict"]
    expected = {"mse_weight": 1.0, "perceptual_weight": 0.2, "adversarial_weight": 0.02, "use_gan": True}
    assert {name: state[name] for name in expected} == expected
    assert set(state) - set(expected) == {"discriminator_state_dict", "discriminator_optimizer_state_dict"}


def test_the_model_colours_like_any_other(created):
    colorizer = Colorizer.load(created[0] / "best_model.pth", device="cpu")
    assert colorizer.config.objective.gan


def test_a_model_from_the_list_continues_with_the_terms_that_are_answered(tmp_path, mse_model):
    """Its architecture is not asked for again, its epochs and its history continue, and it is scored before it
    trains."""
    folder = shutil.copytree(mse_model, tmp_path / "old")
    (before,) = history(folder)
    child = terminal(tmp_path, *RANDOM)
    child.expect_exact("Do you want to resume from an existing model?")
    child.expect(r"1\) old  \(epoch 1, best loss \d+\.\d{4}, \d{4}-\d\d-\d\d \d\d:\d\d\)")
    child.expect_exact("2) Create new model")
    child.expect_exact("3) Create new model, in two stages")
    child.send("1" + ENTER)
    answer(child, "old has finished its 1 epoch. How many more? [10]:", ("0", "'0' is not a number of epochs"), "1")
    for line in ("Loss weights", *EXPLANATION):
        child.expect_exact(line)
    answer(child, "MSE weight [1]:", "")
    answer(child, "Perceptual weight [0.1]:", "0.3")
    answer(child, "Use GAN discriminator? (y/n) [n]:", "n")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("The present weights score")
    child.expect_exact("Done: 2 epochs")
    shown = end(child)
    assert "U-Net features" not in shown
    assert "Batch size" not in shown
    assert "Adversarial weight" not in shown
    assert shown.index("present weights score") < shown.index("epoch 2/2  step")

    first, second = history(folder)
    assert first == before
    assert (second["epoch"], second["step"]) == (2, 2 * before["step"])
    assert "0.3 perceptual" in second["objective"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["features"] == [8, 16]
    assert (config["objective"]["perceptual_weight"], config["objective"]["gan"]) == (0.3, False)


def test_two_stages_from_the_list_ask_for_the_epochs_of_both_and_ctrl_c_leaves_nothing(tmp_path):
    models = tmp_path / "models"
    child = terminal(models)
    answer(child, "Create new model, in two stages", "2")
    answer(child, "Model name [model-1]:", "")
    answer(child, "Epochs of stage 1 (squared error alone) [30]:", ("x", "'x' is not a number of epochs"), "2")
    answer(child, "Epochs of stage 2 (all terms) [15]:", "")
    for question in (*ARCHITECTURE, *HYPERPARAMETERS[:2], "Training images", "Image size [64]:", "MSE weight [1]:"):
        answer(child, question, "")
    child.expect_exact("Perceptual weight [0.1]:")
    child.send(CTRL_C)
    shown = end(child, code=130)
    assert "Stopped." in shown
    assert "Number of epochs" not in shown
    assert not models.exists()


# -- the weights of VGG16 cannot be had ------------------------------------------------------------------------------

WAYS = ("--perceptual-net tiny", "--perceptual-weights FILE", "--perceptual-net random", "--perceptual-weight 0")


def missing_weights(models, photos, *flags):
    """A terminal in which a person is offered the three ways to go on; the run has four pictures and one epoch."""
    flags = ["--name", "m", "--data", photos, "--epochs", 1, *SMALL, "--limit", 4, "--val-limit", 4, *flags]
    settled = ["--mse-weight", 1, "--perceptual-weight", 0.1, "--no-gan", "--learning-rate", "1e-4"]
    child = terminal(models, *flags, *settled)
    child.expect_exact("How shall it go on?")
    for way in WAYS:
        child.expect_exact(way)
    return child


def test_the_weights_of_vgg16_from_a_file(tmp_path, photos, offline):
    """A file of another kind is refused, and asked for again."""
    other, weights = tmp_path / "other.pth", tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": torch.zeros(2)}, other)
    state = {
        f"features.{name}": torch.rand_like(t) * 0.1
        for name, t in PerceptualLoss("vgg16").features.state_dict().items()
    }
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, weights)  # in torchvision's format
    child = missing_weights(tmp_path / "models", photos)
    child.send("2" + ENTER)
    answer(child, "File with the weights of VGG16:", ("nowhere.pth", "There is no file 'nowhere.pth'"), str(other))
    child.expect_exact("How shall it go on?")
    for word in "does not hold VGG16".split():  # a line may end between two of them
        child.expect_exact(word)
    child.send("2" + ENTER)
    answer(child, "File with the weights of VGG16:", str(weights))
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    end(child)
    folder = tmp_path / "models" / "m"
    assert objective(folder)["perceptual_weights"] == str(weights)
    assert "VGG16 from a file (" in history(folder)[0]["objective"]


@pytest.mark.slow
def test_untrained_features_instead_of_those_of_vgg16(tmp_path, photos, offline):
    child = missing_weights(tmp_path / "models", photos)
    child.send("3" + ENTER)
    child.expect_exact("0.1 perceptual (random VGG16, untrained)")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    end(child)
    folder = tmp_path / "models" / "m"
    assert objective(folder)["perceptual_net"] == "random"
    assert "random VGG16, untrained" in history(folder)[0]["objective"]


@pytest.mark.slow
def test_no_perceptual_term_instead_of_vgg16(tmp_path, photos, offline):
    child = missing_weights(tmp_path / "models", photos)
    child.send("4" + ENTER)
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    end(child)
    folder = tmp_path / "models" / "m"
    assert objective(folder)["perceptual_weight"] == 0
    assert history(folder)[0]["objective"] == "1 mse"


def test_ctrl_c_before_the_three_ways_leaves_nothing(tmp_path, photos, offline):
    child = missing_weights(tmp_path / "models", photos)
    child.send(CTRL_C)
    end(child, code=130)
    assert not (tmp_path / "models" / "m").exists()


def test_without_a_terminal_a_run_without_vgg16_names_the_three_ways_and_stops(tmp_path, photos, offline):
    done = train(tmp_path / "models", "--name", "m", "--data", photos, "--epochs", 1, "--yes", *SMALL)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("Error: The weights of VGG16 cannot be downloaded")
    assert all(way in said for way in WAYS)
    assert not (tmp_path / "models" / "m").exists()


def test_a_named_file_that_is_not_there_stops_a_run_too(tmp_path, photos):
    flags = ["--name", "m", "--data", photos, "--yes", "--perceptual-weights", tmp_path / "nowhere.pth"]
    done = train(tmp_path / "models", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "nowhere.pth does not exist" in done.stderr
    assert all(way in done.stderr for way in WAYS)
    assert not (tmp_path / "models" / "m").exists()


def test_without_vgg16_a_copy_is_not_begun(tmp_path, mse_model, offline):
    """The old folder is not changed, and the new name is not taken."""
    folder = shutil.copytree(mse_model, tmp_path / "old")
    done = train(tmp_path, "--resume", "old", "--name", "new", "--epochs", 1)
    assert done.returncode == 1, done.stdout
    assert all(way in done.stderr for way in WAYS)
    assert files(folder) == files(mse_model)
    assert not (tmp_path / "new").exists()


# -- resuming --------------------------------------------------------------------------------------------------------


def test_terms_and_a_discriminator_are_added_in_a_copy(tmp_path, mse_model):
    """The old folder stays as it is, byte for byte; the new one has its history, and its own best loss."""
    folder = shutil.copytree(mse_model, tmp_path / "old")
    weight = ["--perceptual-weight", 10]  # so that a loss without the term is surely lower
    done = train(tmp_path, "--resume", "old", "--name", "new", "--epochs", 1, *RANDOM, *weight, *GAN_AT_ONCE)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no escape codes in a pipe
    assert files(folder) == files(mse_model)

    first, second = history(tmp_path / "new")
    assert [first] == history(mse_model)
    assert set(second["weighted_terms"]) == {"mse", "perceptual", "adversarial"}
    assert second["objective"].endswith("+ 0.01 adversarial")
    old, new = last(mse_model), last(tmp_path / "new")
    assert (new["epoch"], new["step"]) == (2, 2 * old["step"])
    steps = {int(state["step"]) for state in new["optimizer_state_dict"]["state"].values()}
    assert steps == {new["step"]}, "AdamW has gone on, not begun again"
    assert new["progress"]["critic_start"] == old["step"]

    score = float(re.search(r"present weights score (\d+\.\d+) under this objective", done.stdout).group(1))
    assert done.stdout.index("present weights score") < done.stdout.index("epoch 2/2")
    assert new["best_val_loss"] == pytest.approx(min(score, second["val_loss"]), abs=1e-4)
    assert min(score, second["val_loss"]) > first["val_loss"]
    assert f"best validation loss {new['best_val_loss']:.4f}" in done.stdout, "not that of the squared error alone"


def test_a_discriminator_is_given_up_and_the_rest_goes_on(tmp_path, created):
    folder = shutil.copytree(created[0], tmp_path / "m")
    done = train(tmp_path, "--resume", "m", "--epochs", 1, "--no-gan")
    assert done.returncode == 0, done.stderr
    assert "present weights score" not in done.stdout, "what validation measures is the same"
    _, second = history(folder)
    assert set(second["weighted_terms"]) == {"mse", "perceptual"}
    assert "adversarial" not in second["objective"]
    state = last(folder)["loss_state_dict"]
    assert state["use_gan"] is False
    assert "discriminator_state_dict" not in state


def test_a_model_with_terms_is_not_continued_without_them_by_the_other_script(tmp_path, created):
    folder = shutil.copytree(created[0], tmp_path / "m")
    done = train(tmp_path, "--resume", "m", "--epochs", 1, recipe=train_diffusion)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "train_diffusion_v2.py" in done.stderr
    assert "--perceptual-weight 0 --no-gan" in done.stderr
    assert files(folder) == files(created[0])


# -- two stages ------------------------------------------------------------------------------------------------------


def test_two_stages_in_one_go(tmp_path, photos):
    stages = ["--strategy", "two-stage", "--stage1-epochs", 2, "--stage2-epochs", 1]
    done = train(tmp_path, "--name", "m", "--data", photos, "--yes", *SMALL, *RANDOM, *stages)
    assert done.returncode == 0, done.stderr
    entries = history(tmp_path / "m")
    assert [(entry["epoch"], entry["stage"]) for entry in entries] == [(1, 1), (2, 1), (3, 2)]
    assert [set(entry["weighted_terms"]) for entry in entries] == [{"mse"}, {"mse"}, {"mse", "perceptual"}]
    assert [entry["objective"] for entry in entries[:2]] == ["1 mse", "1 mse"]
    assert "perceptual" in entries[2]["objective"]
    assert "after 2 epochs of mse alone" in " ".join(done.stdout.split())  # a narrow table breaks the line
    score = re.search(r"present weights score (\d+\.\d+) under", done.stdout)
    assert done.stdout.index("epoch 2/3") < score.start() < done.stdout.index("epoch 3/3")
    best = min(float(score.group(1)), entries[2]["val_loss"])
    assert last(tmp_path / "m")["best_val_loss"] == pytest.approx(best, abs=1e-4)


# -- as flags --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "my/model", "--yes"], ["cannot name a model"]),
        (["--name", "m", "--yes", "--mse-weight", "-1"], ["--mse-weight -1", "greater than 0"]),
        (["--name", "m", "--yes", "--perceptual-weight", "-1"], ["--perceptual-weight -1"]),
        (["--name", "m", "--yes", "--gan", "--adversarial-weight", "0"], ["--adversarial-weight 0"]),
        (["--name", "m", "--yes", "--features", "abc"], ["--features abc"]),
        (["--name", "m", "--yes", "--features", "0"], ["--features 0"]),
        (["--name", "m", "--yes", "--perceptual-net", "alexnet"], ["--perceptual-net alexnet", "vgg16"]),
        (["--name", "m", "--yes", "--gan", "maybe"], ["maybe"]),
        (["--name", "m"], ["--features", "--mse-weight", "--perceptual-weight", "--gan", "--yes"]),
        (["--resume", "ghost"], ["ghost", "there are no models yet"]),
        (["--name", "m", "--strategy", "two-stage", "--epochs", "3"], ["--epochs", "--stage1-epochs"]),
        (["--resume", "ghost", "--strategy", "two-stage"], ["--resume ghost --epochs N"]),
        (["--name", "m", "--strategy", "resume"], ["--resume NAME"]),
        (["--name", "m", "--strategy", "new", "--stage1-epochs", "3"], ["--strategy new"]),
        (["--name", "m", "--yes", "--stage2-epochs", "0"], ["--stage2-epochs 0"]),
    ],
)
def test_bad_requests_exit_2_with_one_sentence_and_leave_nothing(tmp_path, flags, words):
    done = train(tmp_path / "models", *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "models" / "m").exists()


def test_from_inside_the_package_folder_and_as_a_module():
    for command, cwd in (
        ([sys.executable, "train_diffusion_v2.py"], ROOT / "Project7"),
        ([sys.executable, "-m", "Project7.train_diffusion_v2"], ROOT),
    ):
        done = subprocess.run([*command, "--help"], cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        for flag in ("--resume", "--strategy", "--stage2-epochs", "--perceptual-weights", "--no-gan", "--epochs"):
            assert f"{flag} " in done.stdout
