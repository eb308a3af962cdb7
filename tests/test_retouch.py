"""retouch.py and reference.py: hints, recipes, comparisons and reference photos on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import cli, color
from Project7.checkpoints import save_checkpoint
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import UsageError
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig
from Project7.painting import full_lightness, without_grain
from Project7.photo import open_photo
from Project7.photo_source import sample_photos
from Project7.provenance import read_provenance
from Project7.reference import hints_from
from Project7.training_config import DataConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    kind = DiffusionConfig(features=(8, 16), time_dim=16, hints=True, timesteps=50)
    torch.manual_seed(0)
    config = RunConfig(model=kind, data=DataConfig(image_size=32))
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    weights = build_model(kind).state_dict()
    save_checkpoint(path, {"model_state_dict": weights, "config": config.model_dump(mode="json")})
    return path


@pytest.fixture
def photo(tmp_path):
    ramp = np.linspace(60, 200, 90).round().astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (60, 90)).copy()).save(tmp_path / "old.png")
    return tmp_path / "old.png"


def colorize(model, *arguments) -> int:
    return cli.command(["colorize", *map(str, arguments), "--model", str(model), "--steps", "2", "--device", "cpu"])


def ab_at(path, x, y) -> np.ndarray:
    return color.rgb_to_lab(color.channels_first(np.array(Image.open(path).convert("RGB"))))[1:, y, x].numpy()


def test_hints_from_flags_and_files_are_kept_and_remembered(model, photo, tmp_path):
    (tmp_path / "more.json").write_text(json.dumps([{"x": 70, "y": 20, "color": "#30a040"}]))
    out = tmp_path / "out"
    flags = ["--hint", "20,30,#2040c0", "--hints", tmp_path / "more.json", "--working-size", 60, "--output", out]
    assert colorize(model, photo, *flags) == 0
    assert ab_at(out / "old.png", 20, 30)[1] < -20  # blue
    assert ab_at(out / "old.png", 70, 20)[0] < -15  # green
    made = read_provenance(out / "old.png")
    assert [hint.as_hint() for hint in made.hints] == [(20, 30, "#2040c0"), (70, 20, "#30a040")]
    assert "old" not in made.model_dump_json()


def test_like_repeats_a_picture_and_other_flags_change_it(model, photo, tmp_path):
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    flags = ["--hint", "20,30,#2040c0", "--seed", 7, "--saturation", 1.4, "--warmth", 5]
    assert colorize(model, photo, *flags, "--output", first) == 0
    assert colorize(model, photo, "--like", first / "old.png", "--output", again) == 0
    assert (first / "old.png").read_bytes() == (again / "old.png").read_bytes()
    assert colorize(model, photo, "--like", first / "old.png", "--seed", 8, "--output", other) == 0
    assert read_provenance(other / "old.png").seed == 8
    assert (first / "old.png").read_bytes() != (other / "old.png").read_bytes()


def test_a_coloured_picture_goes_on_from_itself(model, photo, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    assert colorize(model, photo, "--seed", 3, "--output", first) == 0
    assert colorize(model, first / "old.png", "--like", first / "old.png", "--output", again) == 0
    a, b = (np.asarray(Image.open(folder / "old.png")).astype(int) for folder in (first, again))
    assert np.abs(a - b).max() <= 3


def test_a_mixed_picture_is_made_again_from_the_answers_that_were_mixed(model, photo, tmp_path):
    opened = Colorizer.load(model, device="cpu").open(photo, steps=2).mix(2, [(20, 30)], radius=30)
    opened.save(tmp_path / "mixed.png", seed=1)
    assert colorize(model, photo, "--like", tmp_path / "mixed.png", "--output", tmp_path / "out") == 0
    assert colorize(model, photo, "--seed", 1, "--output", tmp_path / "plain") == 0
    mixed, again, plain = (
        np.asarray(Image.open(path)) for path in [tmp_path / "mixed.png", *tmp_path.glob("*/old.png")]
    )
    assert (mixed == again).all() != (mixed == plain).all()


def test_strength_warmth_and_grain_are_heard(model, photo, tmp_path):
    """--saturation was once accepted, but not passed on."""
    pictures = {}
    for name, flags in {"as it is": [], "gray": ["--saturation", 0], "warm": ["--warmth", 20]}.items():
        assert colorize(model, photo, *flags, "--output", tmp_path / name) == 0
        pictures[name] = np.asarray(Image.open(tmp_path / name / "old.png")).astype(int)
    assert np.ptp(pictures["gray"], axis=-1).max() <= 2
    assert np.ptp(pictures["as it is"], axis=-1).mean() > 3
    warmer = pictures["warm"].mean(axis=(0, 1)) - pictures["as it is"].mean(axis=(0, 1))
    assert warmer[2] < -5


def test_comparison_and_ambiguity_are_written_beside(model, photo, tmp_path):
    assert colorize(model, photo, "--side-by-side", "--ambiguity", "--output", tmp_path / "out") == 0
    for name, size in {"both": (184, 60), "ambiguity": (90, 60)}.items():
        with Image.open(tmp_path / "out" / f"old-{name}.png") as image:
            assert image.size == size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hint", "20,30"], "write X,Y,COLOUR"),
        (["--hint", "a,b,red"], "write X,Y,COLOUR"),
        (["--hint", "nan,1,red"], "write X,Y,COLOUR"),
        (["--hints", "no-such.json"], "cannot be read"),
        (["--like", "no-such.png"], "does not exist"),
    ],
)
def test_what_is_wrong_is_said(model, photo, flags, message):
    with pytest.raises(UsageError, match=message):
        colorize(model, photo, *flags)


def test_hints_are_for_one_photo_and_within_it(model, photo, tmp_path, capsys):
    Image.open(photo).save(tmp_path / "second.png")
    with pytest.raises(UsageError, match="one photo at a time"):
        colorize(model, photo, tmp_path / "second.png", "--hint", "1,1,red", "--output", tmp_path / "out")
    assert colorize(model, photo, "--hint", "90,1,red", "--output", tmp_path / "out") == 1
    assert "outside the photo" in capsys.readouterr().err
    with pytest.raises(UsageError, match="does not say how it was made"):
        colorize(model, photo, "--like", photo)


def test_grain_is_taken_from_what_the_network_sees_alone(model, photo):
    rng = np.random.default_rng(0)
    clean = full_lightness(open_photo(photo).rgb)
    noisy = (clean + 0.1 * torch.from_numpy(rng.standard_normal(clean.shape).astype(np.float32))).clamp(-1, 1)
    assert (without_grain(noisy, 1.0) - clean).abs().mean() < 0.4 * (noisy - clean).abs().mean()
    assert without_grain(noisy, 0.0) is noisy
    grainy = np.clip(open_photo(photo).rgb + rng.normal(0, 12, (60, 90, 1)), 0, 255).astype(np.uint8)
    answer = Colorizer.load(model, device="cpu").colorize(grainy, steps=2, denoise=1.0)
    off = full_lightness(np.array(answer)) - full_lightness(grainy)
    assert off.abs().max() < 0.05


def test_a_reference_gives_its_colours_to_what_is_alike(model):
    """The reference is the photo itself, mirrored and enlarged: hints lie apart, and have the true colours."""
    truth = open_photo(sample_photos()["astronaut"])
    gray = color.channels_last(color.gray(color.channels_first(truth.rgb)[None]))[0]
    opened = Colorizer.load(model, device="cpu").open(gray)
    mirrored = np.ascontiguousarray(np.asarray(Image.fromarray(truth.rgb[:, ::-1]).resize((600, 600))))
    hints = hints_from(opened, open_photo(Image.fromarray(mirrored)))
    assert 15 <= len(hints) <= 40
    lab = color.rgb_to_lab(color.channels_first(truth.rgb)[None].float() / 255)[0, 1:]
    smooth = torch.nn.functional.avg_pool2d(lab[None], 17, stride=1, padding=8)[0]
    off = []
    for x, y, name in hints:
        rgb = torch.tensor([int(name[n : n + 2], 16) for n in (1, 3, 5)], dtype=torch.uint8)[:, None, None]
        off.append(float((color.rgb_to_lab(rgb)[1:, 0, 0] - smooth[:, y, x]).norm()))
    assert np.median(off) < 8  # the colours of the photo lie 25 Lab units from gray


def test_the_hints_of_one_photo_are_carried_over_to_a_folder(model, tmp_path, capsys):
    """They reach the same things in a mirrored copy of another size, and nothing in a photo of other things."""
    truth = Image.open(sample_photos()["astronaut"]).convert("L")
    opened = Colorizer.load(model, device="cpu").open(truth, steps=2, working_size=32)
    told = {"#c03020": (100, 300), "#2040c0": (240, 30), "#30a040": (470, 470)}
    for colour, (x, y) in told.items():
        opened.hint(x, y, colour)
    opened.save(tmp_path / "told.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    truth.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((300, 300)).save(folder / "mirrored.png")
    Image.open(sample_photos()["coffee"]).save(folder / "other.png")
    out = tmp_path / "out"
    assert colorize(model, folder, "--hints-from", tmp_path / "told.png", "--output", out) == 0
    carried = {hint.color: hint for hint in read_provenance(out / "mirrored.png").hints}
    assert set(carried) == set(told)
    for colour, (x, y) in told.items():
        where = carried[colour].x - (511 - x) * 300 / 512, carried[colour].y - y * 300 / 512
        assert np.hypot(*where) < 20
    assert not read_provenance(out / "other.png").hints
    assert "nothing in it is like" in capsys.readouterr().err
    with pytest.raises(UsageError, match="made without hints"):
        colorize(model, folder, "--hints-from", out / "other.png", "--output", out)
    with pytest.raises(UsageError, match=r"--hints-from .* does not say how it was made"):
        colorize(model, folder, "--hints-from", folder / "other.png", "--output", out)


def test_what_is_wanted_beside_a_picture_is_made_though_the_picture_is_there(model, photo, tmp_path, capsys):
    out = tmp_path / "out"
    flags = [photo, "--hint", "20,30,#2040c0", "--output", out]
    assert [colorize(model, *flags), colorize(model, *flags)] == [0, 0]
    assert "1 skipped" in capsys.readouterr().out
    assert colorize(model, *flags, "--side-by-side") == 0
    assert "1 coloured" in capsys.readouterr().out
    assert colorize(model, photo, "--hint", "20,30,#c04020", "--output", out) == 0
    assert {path.name for path in out.iterdir()} == {"old.png", "old-both.png", "old-hints.png"}
