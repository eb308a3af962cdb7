"""Photos coloured by onnxruntime and NumPy are those that torch colours, and the command needs nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import call, save_untrained
from PIL import Image

from Project7 import cli, program
from Project7.answer_config import ColorizeConfig
from Project7.answer_options import method_options
from Project7.colorize import Colorizer
from Project7.encoder import SHIPPED
from Project7.errors import ProjectError, UsageError
from Project7.export import export_model, halve
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.onnx_colorizer import OnnxColorizer, find_export
from Project7.photo import open_photo

ROOT = Path(__file__).resolve().parent.parent
TINY = {"features": (8, 16), "time_dim": 16}
KINDS = {
    "plain": DiffusionConfig(**TINY, timesteps=50, prediction_type="epsilon"),
    "seeing": DiffusionConfig(
        **TINY, encoder=SHIPPED, encoder_size=48, chroma_scale=4, neck_width=8, head="classes", bins=9, hints=True,
        head_entropy=True, feature_dropout=0.1,
    ),
    "classes": ClassificationConfig(width=8, blocks=(1, 1, 1, 1), bins=20, stem_stride=2),
    "faded": RegressionConfig(model_channels=4, channel_multipliers=(1, 2), chroma_scale=2, outputs="lab"),
}  # fmt: skip
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "torchvision", "diffusers", "timm", "accelerate", "scipy", "skimage", "sklearn", "questionary"):
    sys.modules[name] = None
sys.argv = ["project7", *sys.argv[1:]]
runpy.run_module("Project7", run_name="__main__")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """models/NAME/best_model.pth, exports/NAME, and a photo."""
    place = tmp_path_factory.mktemp("place")
    for name, kind in KINDS.items():
        save_untrained(place / "models" / name, kind, 32)
        export_model(place / "models" / name / "best_model.pth", place / "exports" / name, half=name == "faded")
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(40, 210, (6, 8), dtype=np.uint8))
    small.resize((100, 75), Image.Resampling.BICUBIC).save(place / "photo.png")
    return place


def options_of(colorizer, **settings):
    return method_options(colorizer, ColorizeConfig(**settings), set())


@pytest.mark.parametrize("hints", [[], [(20, 30, "#c03020"), (70, 50, "steelblue")]], ids=["alone", "hinted"])
@pytest.mark.parametrize("name", KINDS)
def test_it_colours_as_torch_does(place, name, hints):
    photo = open_photo(place / "photo.png")
    here = Colorizer.load(place / "models" / name, device="cpu")
    there = OnnxColorizer(place / "exports" / name)
    how = {"seeds": [3], "hints": hints, "saturation": 0.4, "warmth": 3.0, "levels": "auto"}
    (wanted,) = here.colorize_photos([photo], **how, **options_of(here, steps=4))
    (found,) = there.colorize_photos([photo], **how, **options_of(there, steps=4))
    off = np.abs(found[0].astype(int) - wanted[0].astype(int))
    assert np.ptp(wanted[0].astype(int), axis=-1).mean() > 2, "there is colour"
    assert np.quantile(off, 0.995) <= 2, (off.max(), (off > 2).mean())
    assert there.shapes((75, 100), None) == here.shapes((75, 100), None)


def test_expected_hints_say_as_much_as_with_torch(place, monkeypatch):
    hints = [(20, 30, "#c03020"), (70, 50, "steelblue"), (50, 10, "#a04030"), (10, 60, "gold")]
    photo = open_photo(place / "photo.png")
    colorizers = Colorizer.load(place / "models" / "seeing", device="cpu"), OnnxColorizer(place / "exports" / "seeing")
    found = {}
    for share in (0.01, 0.9):
        for module in ("array_hints", "colorize"):
            monkeypatch.setattr(f"Project7.{module}.likelihoods", lambda spots, *_, share=share: [share] * len(spots))
        for kind, colorizer in zip(("torch", "onnx"), colorizers, strict=True):
            how = {"seeds": [3], "hints": hints, **options_of(colorizer, steps=4)}
            found[kind, share] = colorizer.colorize_photos([photo], **how)[0][0].astype(int)
    assert np.quantile(np.abs(found["onnx", 0.9] - found["torch", 0.9]), 0.995) <= 2
    assert np.abs(found["torch", 0.9] - found["torch", 0.01]).mean() > 4


def test_guidance_acts_in_the_middle_of_the_noise(place):
    """What the encoder contributes needs a second pass there, and there only."""
    there, passes = OnnxColorizer(place / "exports" / "seeing"), []
    network = there.network

    def run(outputs, inputs):
        passes.append(int(inputs["timestep"][0]))
        return network.run(outputs, inputs)

    there.__dict__["network"] = SimpleNamespace(run=run)
    there.colorize_photos([open_photo(place / "photo.png")], seeds=[3], **options_of(there, steps=10))
    twice = {t for t in passes if passes.count(t) == 2}
    assert twice == {t for t in passes if 100 <= t <= 900}
    assert len(twice) > 2
    assert {passes.count(t) for t in passes} == {1, 2}


def without_torch(place, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_colours_where_there_is_no_torch(place):
    told = ("--hint", "20,30,#c03020", "--steps", 3, "--variants", 2)
    done = without_torch(place, "colorize", "photo.png", "--model", "exports/seeing", "--output", "out", *told)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 coloured: out"), done.stderr
    assert "onnxruntime, without torch: seeing" in done.stderr
    assert sorted(path.name for path in (place / "out").iterdir()) == ["photo-1.png", "photo-2.png", "photo-sheet.png"]
    with Image.open(place / "out" / "photo-1.png") as image:
        made = json.loads(image.text["project7"])
    assert (made["model"], made["hints"][0]["color"]) == ("seeing", "#c03020")


def test_what_needs_torch_says_so(place):
    done = without_torch(place, "evaluate", "--model", "models/plain", "--data", ".")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: this needs ")
    assert "pip install project7" in done.stderr


def colorize(place, monkeypatch, *arguments):
    monkeypatch.chdir(place)
    return call(cli.command, "colorize", "photo.png", "--output", "elsewhere", *arguments)


def test_an_exported_model_is_taken_where_torch_is_too(place, monkeypatch):
    done = colorize(place, monkeypatch, "--model", "exports/faded")
    assert done.returncode == 0
    assert "onnxruntime, without torch: faded" in done.stderr


def test_an_exported_model_starts_without_importing_torch(place):
    """Importing PyTorch and diffusers takes longer than an answer."""
    program = "import sys; from Project7 import cli; sys.argv[0] = 'project7'; code = cli.main(); "
    program += (
        "print(sorted({'torch', 'torchvision', 'diffusers', 'timm', 'scipy'} & set(sys.modules))); sys.exit(code)"
    )
    words = [sys.executable, "-c", program, "colorize", "photo.png", "--model", "exports/seeing"]
    words += ["--steps", "3", "--hint", "20,30,#c03020", "--output", "quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-2:]) == (0, ["1 coloured: quick", "[]"]), done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "exports/plain", "--sampler", "euler"], "--sampler euler needs the full installation"),
        (["--model", "exports/plain", "--denoise", 0.5], "--denoise needs the full installation"),
        (["--model", "exports/classes", "--temperature", 0.5], "--temperature is not for an exported classification"),
        (["--model", "exports/classes", "--variants", 2], "has one answer only"),
        (["--model", "exports/plain", "--side-by-side"], "--side-by-side does not work with exported models"),
        (["--model", "exports/classes", "--confidence"], "--confidence does not work with exported models"),
        (["--model", "exports/plain", "--device", "mps"], "runs on the CPU"),
        (["--model", "exports/plain", "--steps", 51], "--steps 51 is out of range"),
    ],
)
def test_what_an_exported_model_cannot_do_is_one_sentence(place, monkeypatch, arguments, said):
    done = colorize(place, monkeypatch, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_without_torch_and_without_an_export_the_way_to_one_is_said(place, monkeypatch):
    monkeypatch.setattr(program, "has", lambda name: name != "torch")
    done = colorize(place, monkeypatch)
    assert done.returncode == 2
    assert "project7 export base --to FOLDER" in done.stderr


def test_an_export_is_found_by_its_folder_and_by_its_name(place, monkeypatch):
    monkeypatch.chdir(place)
    assert find_export("exports/plain", Path("models")) == Path("exports/plain")
    assert find_export("plain", Path("exports")) == Path("exports/plain")
    assert find_export("models/plain", Path("models")) is None
    assert find_export(None, Path("models")) is None, "none comes with a checkout"


def test_a_damaged_export_is_one_sentence(place, tmp_path):
    facts = json.loads((place / "exports" / "plain" / "project7.json").read_text())
    (tmp_path / "project7.json").write_text(json.dumps(facts | {"usual": None}).replace('"usual"', '"unusual"'))
    with pytest.raises(UsageError, match="export again"):
        OnnxColorizer(tmp_path)
    (tmp_path / "project7.json").write_text(json.dumps(facts))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ProjectError, match=r"model\.onnx cannot be used"):
        _ = OnnxColorizer(tmp_path).network
    (tmp_path / "project7.json").write_text("{}")
    with pytest.raises(ProjectError, match="is damaged"):
        OnnxColorizer(tmp_path)


def test_half_precision_makes_the_file_smaller(place, tmp_path):
    whole, half = place / "exports" / "seeing" / "model.onnx", tmp_path / "model.onnx"
    shutil.copy(whole, half)
    halve(half)
    assert half.stat().st_size < 0.9 * whole.stat().st_size, "small weights stay"
