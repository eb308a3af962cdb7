"""The recipe of the classification generator, its palette and its use, as a person runs them."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pexpect
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import call
from PIL import Image
from rich.console import Console
from terminal import answer, open_terminal

from Project7 import preparation, train_classification, train_diffusion, train_diffusion_v2
from Project7.checkpoints import load_checkpoint
from Project7.cli import command
from Project7.config import SECTIONS, RunConfig, from_json, to_json
from Project7.dataset import open_dataset
from Project7.errors import ProjectError, UsageError
from Project7.methods import build_model
from Project7.model_config import ClassificationConfig
from Project7.palette import fit_palette, load_palette
from Project7.settings import declared, parse_settings, with_defaults
from Project7.training_config import DataConfig, ObjectiveConfig

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_classification.py"
PICTURES = "--image-size 16 --val-fraction 0.5".split()
RUN = "--device cpu --image-interval 0 --batch-size 4 --epochs 1 --yes".split() + PICTURES
SMALL = "--width 8 --blocks 1,1,1,1 --bins 16".split() + RUN
DATA = DataConfig(image_size=16, val_fraction=0.5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(16):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def gray_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    for n in range(4):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / f"{n}.png")
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


def train(models, *flags, script=train_classification):
    """Trains in this process, which is quick. Returns the exit code."""
    return script.main(["--models-dir", str(models), *map(str, flags)])


def run(*arguments):
    """Runs the script as a program without a terminal."""
    return call(train_classification.main, *arguments)


def refused(done, *words):
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_a_model_starts_from_another_on_other_photos_at_another_size(photos, tmp_path):
    assert train(tmp_path, "--name", "old", "--data", photos, *SMALL) == 0
    other = [flag for flag in RUN if flag != "16"]
    other.insert(other.index("--image-size") + 1, "24")
    assert train(tmp_path, "--name", "new", "--start-from", "old", "--data", photos, "--limit", "6", *other) == 0
    assert config(tmp_path / "new")["model"] == config(tmp_path / "old")["model"]
    assert config(tmp_path / "new")["data"]["image_size"] == 24
    old, new = (load_checkpoint(tmp_path / name / "best_model.pth")["model_state_dict"] for name in ("old", "new"))
    assert new["centres"].equal(old["centres"])  # the palette that the classes mean
    moved = (new["ab_class.weight"] - old["ab_class.weight"]).abs().max()
    assert 0 < moved < 0.01  # two steps at a small rate: not a new beginning


def last(folder):
    return load_checkpoint(folder / "last_model.pth")


def history(folder):
    return json.loads((folder / "training_history.json").read_text())


def config(folder):
    return json.loads((folder / "config.json").read_text())


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def created(tmp_path_factory, photos):
    """A model of one epoch, made by the script, and the script's output."""
    models = tmp_path_factory.mktemp("created")
    done = run("--models-dir", models, "--name", "m", "--data", photos, *SMALL)
    assert done.returncode == 0, done.stderr
    return models / "m", done.stdout


@pytest.fixture
def model(created, tmp_path):
    """A copy of that model in its own models folder."""
    return Path(shutil.copytree(created[0], tmp_path / "models" / "m"))


# ---- training


def test_the_run_says_what_it_does(created):
    _, said = created
    assert "palette: 16 colours, from 2,048 pixels of the training images" in said
    assert re.search(r"classification +16 colours, rebalanced by 0\.5, trained from scratch", said)
    assert re.search(r"objective +1 classification", said)
    assert "Done: 1 epoch," in said


def test_the_configuration_is_that_of_the_flags_and_of_the_recipe(created):
    found = config(created[0])
    expected = {"method": "classification", "width": 8, "blocks": [1, 1, 1, 1], "bins": 16, "temperature": 0.38}
    assert expected.items() <= found["model"].items()
    expected = {"perceptual_weight": 0, "gan": False, "gan_scales": 3, "feature_matching_weight": 0.1, "image_share": 1}
    assert expected.items() <= found["objective"].items()
    assert from_json((created[0] / "config.json").read_text(), "config.json").model.method == "classification"


def test_each_term_is_in_the_history(created):
    (entry,) = history(created[0])
    terms = entry["terms"]
    assert {"class", "residual", "confidence", "histogram", "classification"} <= set(terms)
    whole = terms["class"] + terms["residual"] + 0.1 * terms["confidence"] + 0.1 * terms["histogram"]
    assert terms["classification"] == pytest.approx(whole, rel=1e-4)
    assert entry["train_loss"] == pytest.approx(whole, rel=1e-4)
    assert set(entry["val_terms"]) == {"classification"}
    assert entry["objective"] == "1 classification"


def test_the_checkpoint_carries_the_palette_of_the_training_images(created, photos):
    images, _ = open_dataset(DATA.model_copy(update={"data": (str(photos),)}), seed=0)
    palette = fit_palette(images.images, 16, seed=0)
    checkpoint = last(created[0])
    for weights in (checkpoint["model_state_dict"], checkpoint["raw_state_dict"]):
        torch.testing.assert_close(weights["centres"], palette.centres)
        assert weights["counts"].tolist() == palette.counts.tolist()
    assert palette.counts.sum() == 8 * 16 * 16


def test_one_epoch_and_one_more_are_two(model, photos, capsys):
    """The palette is kept to the bit, and so is everything else."""
    before = last(model)
    assert train(model.parent, "--resume", "m", "--epochs", 1, "--yes") == 0
    assert "palette: " not in capsys.readouterr().out, "it was fitted again"
    after = last(model)
    assert (after["epoch"], len(history(model))) == (2, 2)
    for name in ("centres", "counts"):
        assert torch.equal(after["model_state_dict"][name], before["model_state_dict"][name])
        assert torch.equal(after["raw_state_dict"][name], before["raw_state_dict"][name])
    assert not torch.equal(after["raw_state_dict"]["ab_class.weight"], before["raw_state_dict"]["ab_class.weight"])

    assert train(model.parent, "--name", "straight", "--data", photos, *SMALL, "--epochs", 2) == 0
    straight = last(model.parent / "straight")
    for name, tensor in straight["raw_state_dict"].items():
        assert torch.equal(tensor, after["raw_state_dict"][name]), name


def test_a_resumed_model_keeps_its_palette_and_its_shape(model):
    before = files(model)
    with pytest.raises(
        UsageError, match=r"--bins is 16 in this model, not 8; --rebalance is 0\.5 in this model, not 1"
    ):
        train(model.parent, "--resume", "m", "--epochs", 1, "--bins", 8, "--rebalance", 1, "--width", 8, "--yes")
    assert files(model) == before


def test_a_discriminator_can_join(model):
    """It has feature matching, and as many scales as the pictures allow."""
    gan = "--gan --gan-start 0 --gan-warmup 0 --gan-width 8 --epochs 1 --yes".split()
    assert train(model.parent, "--resume", "m", *gan) == 0
    first, second = history(model)
    assert set(first["weighted_terms"]) == {"classification"}
    assert set(second["weighted_terms"]) == {"classification", "adversarial", "feature_matching"}
    assert second["objective"] == "1 classification + 0.01 adversarial + 0.1 feature matching"
    state = last(model)["loss_state_dict"]
    assert state["use_gan"]
    assert any(torch.is_tensor(t) for t in state["discriminator_state_dict"].values())


# ---- palettes


def test_a_palette_file_is_made_with_a_picture_and_taken_as_it_is(tmp_path, photos, capsys):
    path = tmp_path / "new" / "palette.npz"
    assert command(["palette", "--data", str(photos), *PICTURES, "--bins", "9", "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"9 colours of 2,048 pixels \(the rarest has \S+ of them\): .*palette\.npz", said)
    assert np.array(Image.open(path.with_suffix(".png"))).shape == (800, 800, 3)
    palette = load_palette(path, bins=9)

    assert train(tmp_path, "--name", "m", "--data", photos, *SMALL, "--bins", 9, "--palette", path) == 0
    weights = last(tmp_path / "m")["model_state_dict"]
    assert torch.equal(weights["centres"], palette.centres)
    assert weights["counts"].tolist() == palette.counts.tolist()
    assert "palette: " not in capsys.readouterr().out, "none was fitted"


def test_the_palette_is_seeded(tmp_path, photos):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = ["--data", str(photos), *PICTURES, "--bins", "9", "--seed", str(seed)]
        assert command(["palette", *arguments, "--output", str(tmp_path / f"{name}.npz")]) == 0
    one, again, other = (load_palette(tmp_path / f"{name}.npz").centres for name in "abc")
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("seed", [-1, 2**40])
def test_any_seed_gives_a_palette_or_a_sentence(tmp_path, photos, seed):
    """The training scripts accept 2^40 as a seed."""
    arguments = ["--data", str(photos), *PICTURES, "--bins", "9", "--seed", str(seed)]
    try:
        command(["palette", *arguments, "--output", str(tmp_path / "p.npz")])
    except UsageError:
        assert seed < 0
    else:
        assert load_palette(tmp_path / "p.npz", bins=9)


def test_the_picture_does_not_take_the_place_of_the_palette(tmp_path, photos):
    path = tmp_path / "palette.png"
    try:
        command(["palette", "--data", str(photos), *PICTURES, "--bins", "9", "--output", str(path)])
    except UsageError:
        assert not path.exists()
    else:
        assert load_palette(path, bins=9)


@pytest.mark.parametrize("bins", ["1", "x", "0", "100000"])
def test_palettes_of_no_size_are_refused(tmp_path, photos, bins):
    with pytest.raises(UsageError, match=f"--bins {bins}: "):
        command(["palette", "--data", str(photos), *PICTURES, "--bins", bins, "--output", str(tmp_path / "p.npz")])
    assert not list(tmp_path.iterdir())


def test_more_bins_than_colours_are_refused_and_nothing_is_left(tmp_path):
    for n, rgb in enumerate(("red", "green", "blue", "yellow")):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), rgb).save(tmp_path / "flat" / f"{n}.png")
    with pytest.raises(UsageError, match=r"--bins 16 is more than the \d distinct colours of these photos"):
        train(tmp_path / "models", "--name", "m", "--data", tmp_path / "flat", *SMALL)
    assert not (tmp_path / "models" / "m").exists()


def test_gray_photos_have_no_palette(tmp_path, gray_photos):
    done = run("--models-dir", tmp_path / "models", "--name", "m", "--data", gray_photos, *SMALL)
    refused(done, "training photos that were checked are gray", "give photos in colour")
    assert not (tmp_path / "models" / "m").exists()
    with pytest.raises(UsageError, match="all gray"):
        command(["palette", "--data", str(gray_photos), *PICTURES, "--output", str(tmp_path / "p.npz")])
    assert not (tmp_path / "p.npz").exists()


@pytest.mark.parametrize("name", ["other bins", "missing", "text"])
def test_a_palette_file_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path, photos, name):
    path = tmp_path / "p.npz"
    if name == "other bins":
        np.savez(path, centres=np.array([[0.0, 1.0], [20.0, 5.0]]), counts=np.array([3.0, 1.0]))
    elif name == "text":
        path.write_text("313")
    words = {"other bins": "has 2 colours, and --bins is 16", "missing": "does not exist", "text": "is not a palette"}
    with pytest.raises(ProjectError, match=words[name]):
        train(tmp_path / "models", "--name", "m", "--data", photos, *SMALL, "--palette", path)
    assert not (tmp_path / "models" / "m").exists()


# ---- pretrained convolutions


def test_a_new_model_begins_with_its_palette_and_with_resnet34(tmp_path, photos):
    from torchvision.models import resnet34

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in resnet34().state_dict().items()}
    path = tmp_path / "resnet34.pth"
    torch.save({name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}, path)
    images = open_dataset(DATA.model_copy(update={"data": (str(photos),)}), seed=0)
    settings = RunConfig(model=ClassificationConfig(bins=9, encoder_weights=str(path)))
    start = preparation.starting_weights(settings, images, Console(quiet=True))
    assert start["centres"].shape == (9, 2)
    assert start["encoder.layer4.2.conv2.weight"].unique().tolist() == [0.5]
    with torch.device("meta"):
        expected = build_model(settings.model).state_dict()
    assert all(expected[name].shape == tensor.shape for name, tensor in start.items())


def test_a_diffusion_model_begins_with_nothing():
    assert preparation.starting_weights(RunConfig(), SimpleNamespace(), Console(quiet=True)) is None


# ---- other methods


def test_the_scripts_of_diffusion_send_a_classification_model_to_its_own(model):
    before = files(model)
    for script in (train_diffusion, train_diffusion_v2):
        with pytest.raises(UsageError, match=r"This is a classification model, .* continue it with train_class"):
            train(model.parent, "--resume", "m", "--epochs", 1, "--yes", script=script)
    assert files(model) == before


def test_a_diffusion_model_is_sent_to_its_scripts(tmp_path, photos):
    small = "--encoder none --features 8,16 --time-dim 16 --timesteps 50".split()
    assert train(tmp_path, "--name", "d", "--data", photos, *small, *RUN, script=train_diffusion) == 0
    before = files(tmp_path / "d")
    with pytest.raises(UsageError, match=r"This is a diffusion model, .* continue it with train_diffusion\.py"):
        train(tmp_path, "--resume", "d", "--epochs", 1, "--yes")
    assert files(tmp_path / "d") == before
    with pytest.raises(UsageError, match="A diffusion model has no confidence map"):
        colorize(tmp_path / "d", photos, tmp_path / "out", "--confidence")
    with pytest.raises(UsageError, match="--temperature is for classification models"):
        colorize(tmp_path / "d", photos, tmp_path / "out", "--temperature", "0.3")
    assert not (tmp_path / "out").exists()


def test_it_is_listed_with_its_method(created, capsys):
    assert command(["models", "--models-dir", str(created[0].parent)]) == 0
    own = capsys.readouterr().out.split("\nclassification: ")[1]
    assert re.search(r"^ +m +16 px +1 ", own, re.MULTILINE)


# ---- use


def colorize(model, photos, output, *flags):
    return command(["colorize", str(photos), "--model", str(model), "--output", str(output), *flags])


def test_colours_with_temperature_variety_and_confidence(created, photos, tmp_path):
    photo, out = photos / "3.png", tmp_path / "out"
    flags = "--temperature 0.2 --variants 2 --variety 2 --confidence --seed 7".split()
    assert colorize(created[0], photo, out, *flags) == 0
    assert sorted(p.name for p in out.iterdir()) == ["3-1.png", "3-2.png", "3-confidence.png", "3-sheet.png"]
    one, two, sure = (np.array(Image.open(p)) for p in (out / "3-1.png", out / "3-2.png", out / "3-confidence.png"))
    assert one.shape == two.shape == (20, 24, 3)
    assert sure.shape[:2] == (20, 24)
    assert (one != two).any()
    assert colorize(created[0], photo, tmp_path / "again", *flags) == 0
    assert files(out) == files(tmp_path / "again")


def test_the_temperature_changes_the_colours_and_the_default_is_the_models(created, photos, tmp_path):
    pictures = {}
    for temperature in ("0", "0.38", "1", None):
        out = tmp_path / str(temperature)
        flags = ["--temperature", temperature] if temperature else []
        assert colorize(created[0], photos / "3.png", out, *flags) == 0
        pictures[temperature] = np.array(Image.open(out / "3.png")).astype(int)
    assert (pictures[None] == pictures["0.38"]).all()
    assert np.abs(pictures["0"] - pictures["1"]).mean() > 1


@pytest.mark.parametrize("flags", [["--temperature", "-1"], ["--variety", "x"], ["--temperature", "nan"]])
def test_bad_options_are_refused(created, photos, tmp_path, flags):
    with pytest.raises(UsageError, match=f"{flags[0]} {flags[1]}: "):
        colorize(created[0], photos, tmp_path / "out", *flags)


def test_steps_are_refused(created, photos, tmp_path):
    flags = ["--model", created[0], "--output", tmp_path / "out", "--steps", 5]
    done = call(command, "colorize", photos, *flags)
    refused(done, "--steps is for diffusion models; this one is a classification model")
    assert not (tmp_path / "out").exists()


# ---- flags and questions


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--width 3", "--width 3: "),
        ("--bins 1", "--bins 1: "),
        ("--blocks 1,1,1", "--blocks"),
        ("--blocks 1,1,0,1", "--blocks 0: "),
        ("--stem-stride 3", "--stem-stride 3: "),
        ("--temperature -1", "--temperature -1: "),
        ("--rebalance 2", "--rebalance 2: "),
        ("--focal-gamma -1", "--focal-gamma -1: "),
        ("--perceptual-weight -1", "--perceptual-weight -1: "),
        ("--gan-scales 4", "--gan-scales 4: "),
        ("--encoder-weights imagenet", "need --width 64 --blocks 3,4,6,3"),
        ("--features 8,16", "--features"),
        ("--strategy two-stage", "--strategy"),
    ],
)
def test_bad_requests_leave_nothing(tmp_path, photos, flags, words):
    with pytest.raises(UsageError, match=words):
        train(tmp_path / "models", "--name", "m", "--data", photos, *SMALL, *flags.split())
    assert not (tmp_path / "models" / "m").exists()


def test_help_names_the_flags_of_the_method():
    done = run("--help")
    assert done.returncode == 0
    for (
        flag
    ) in "--bins --temperature --rebalance --focal-gamma --gan --palette --encoder-weights --stem-stride".split():
        assert flag in done.stdout
    assert "--timesteps" not in done.stdout
    assert "--stage2-epochs" not in done.stdout
    assert call(command, "palette", "--help").stdout.count("--bins") >= 1


def test_other_defaults_for_a_recipe_leave_the_settings_as_they_are():
    changed = with_defaults(ObjectiveConfig, hide=("mse_weight",), perceptual_weight=0.0, gan_scales=3)
    assert changed().model_dump() == ObjectiveConfig().model_dump() | {"perceptual_weight": 0.0, "gan_scales": 3}
    assert (ObjectiveConfig().perceptual_weight, ObjectiveConfig().gan_scales) == (0.1, 1)
    assert declared(changed.model_fields["mse_weight"], "ask") is None
    assert declared(ObjectiveConfig.model_fields["mse_weight"], "ask") == "MSE weight"
    assert declared(changed.model_fields["perceptual_weight"], "ask") == "Perceptual weight"
    with pytest.raises(UsageError, match="--gan-scales 4"):
        parse_settings(changed, {"gan_scales": "4"})
    assert set(changed.model_fields) == set(ObjectiveConfig.model_fields)


def test_a_run_of_the_recipe_reads_back_from_its_json():
    objective = with_defaults(ObjectiveConfig, perceptual_weight=0.0)
    config = RunConfig(model=ClassificationConfig(bins=9), objective=objective())
    again = from_json(to_json(config), "config.json")
    assert again.model == config.model
    assert again.objective.perceptual_weight == 0
    assert "objective" not in SECTIONS


def terminal(models, *flags):
    return open_terminal(SCRIPT, models, *flags)


@pytest.mark.slow
def test_few_questions_in_a_real_terminal(tmp_path, photos):
    models = tmp_path / "models"
    child = terminal(models, "--blocks", "1,1,1,1", *PICTURES, "--device", "cpu", "--image-interval", 0)
    child.expect_exact("this will be the first")
    answer(child, "Model name [model-1]:", "my-model")
    child.expect_exact("Model architecture")
    answer(child, "Width [64]:", ("3", "greater than or equal to 4"), "8")
    answer(child, "Colours of the palette [313]:", ("1", "greater than or equal to 2"), "16")
    answer(child, "Rebalancing of rare colours [0.5]:", ("2", "less than or equal to 1"), "0.25")
    child.expect_exact("Training")
    answer(child, "Batch size [16]:", "4")
    answer(child, "Learning rate [0.0001]:", "")
    answer(child, "Number of epochs [50]:", "1")
    child.expect_exact("Images")
    answer(child, "Training images", str(photos))
    answer(child, "Use GAN discriminator? (y/n) [n]:", "")
    child.expect_exact("pixels of the training images")
    answer(child, "Start? [Y/n]:", "")
    child.expect_exact("Done: 1 epoch")
    child.expect(pexpect.EOF)
    child.close()
    shown = child.logfile_read.getvalue()
    assert child.exitstatus == 0, shown
    for word in ("MSE", "Perceptual", "VGG16", "Temperature", "Focal", "stride"):
        assert word not in re.split(r"Use GAN discriminator", shown)[0], word
    found = config(models / "my-model")
    assert (found["model"]["width"], found["model"]["bins"], found["model"]["rebalance"]) == (8, 16, 0.25)
    assert found["objective"]["gan"] is False
