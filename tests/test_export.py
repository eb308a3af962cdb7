"""Exported models give other programs the same numbers, and a folder is written whole or not at all."""

import json
import os
import re
import resource
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

import diffusers
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import save_untrained
from PIL import Image

from Project7 import export as module
from Project7.answer_config import STEPS
from Project7.checkpoints import load_model
from Project7.cli import command
from Project7.color import channels_first, rgb_to_lab
from Project7.colorize import Colorizer
from Project7.diffusion_export import known_channels
from Project7.encoder import SHIPPED
from Project7.errors import ProjectError, UsageError
from Project7.export import export_model
from Project7.export_parts import ExportGraph
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.samplers import make_sampler

TINY = {"features": (8, 16), "time_dim": 16}
SEEING = {"encoder": SHIPPED, "encoder_size": 48, "chroma_scale": 4}
KINDS = {
    "plain": DiffusionConfig(**TINY, timesteps=50),
    "shifted": DiffusionConfig(**TINY, noise_shift=3.0, chroma_scale=2, hints=True),
    "classic": DiffusionConfig(**TINY, prediction_type="epsilon"),
    "classes": ClassificationConfig(width=8, blocks=(1, 1, 1, 1), bins=20, stem_stride=2),
    "straight": RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
    "seeing": DiffusionConfig(**TINY, **SEEING, neck_width=8, head="classes", bins=9, head_entropy=True, hints=True),
    "coarse": DiffusionConfig(features=(8,), time_dim=16, **SEEING | {"chroma_scale": 8}, neck_width=8, head="mean"),
    "classes that see": ClassificationConfig(
        width=8, blocks=(1, 1, 1, 1), bins=20, stem_stride=4, encoder=SHIPPED, encoder_size=48
    ),
    "straight that sees": RegressionConfig(
        model_channels=4, channel_multipliers=(1, 2), **SEEING | {"chroma_scale": 2}, neck_width=8
    ),
    "faded": RegressionConfig(model_channels=4, channel_multipliers=(1, 2), chroma_scale=2, outputs="lab"),
}
DIFFUSION = [name for name, kind in KINDS.items() if kind.method == "diffusion"]
ONE_PASS = [name for name, kind in KINDS.items() if kind.method != "diffusion"]
SIZE = 32


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Untrained models as files."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind in KINDS.items():
        config = save_untrained(folder / name, kind, SIZE)
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


def weights(models, name):
    return models / name / "best_model.pth"


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """The folder of each model's export."""
    place = tmp_path_factory.mktemp("exported")
    for name in KINDS:
        assert export_model(weights(models, name), place / name) is None
    return place


@pytest.fixture(scope="module")
def trained(models):
    return {name: load_model(weights(models, name))[0] for name in KINDS}


def facts_of(folder):
    return json.loads((folder / "project7.json").read_text(), parse_constant=pytest.fail)


# -- diffusers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusers_loads_the_network_and_it_predicts_the_same(exported, trained, name):
    unet = diffusers.UNet2DModel.from_pretrained(exported / name, subfolder="unet", use_safetensors=True)
    sample, timestep = torch.randn(3, unet.config.in_channels, 16, 24), torch.tensor([0, 20, 49])
    with torch.no_grad():
        found, wanted = unet(sample, timestep).sample, trained[name].unet(sample, timestep).sample
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@torch.no_grad()
def plain_loop(folder, kind, L):
    """The loop of a program that knows only diffusers and project7.json: L (B, 1, H, W) -> x_0 (B, 2, h, w)."""
    facts = facts_of(folder)
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(
        **({"timesteps": facts["timesteps"]} if kind.startswith("DPM") else {"num_inference_steps": STEPS})
    )
    cells = F.pixel_unshuffle(L, facts["chroma_scale"])
    no_hints = torch.zeros(len(L), facts["hint_channels"], *cells.shape[2:])
    generator = torch.Generator().manual_seed(5)
    noise = {"generator": generator} if kind == "DDPMScheduler" else {}
    x = torch.randn(len(L), 2, *cells.shape[2:], generator=generator)
    for t in scheduler.timesteps:
        prediction = unet(torch.cat([x, cells, no_hints], dim=1), t).sample
        x = scheduler.step(prediction, t, x, **noise).prev_sample
    return x


@pytest.mark.parametrize(
    ("name", "kind", "sampler"),
    [
        ("plain", "DPMSolverMultistepScheduler", "dpm++"),
        ("shifted", "DPMSolverMultistepScheduler", "dpm++"),
        ("classic", "DPMSolverMultistepScheduler", "dpm++"),
        ("plain", "DDPMScheduler", "ddpm"),
        ("classic", "DDPMScheduler", "ddpm"),
    ],
)
def test_a_loop_in_plain_diffusers_gives_the_colours_of_the_model(exported, trained, name, kind, sampler):
    model, L = trained[name], torch.rand(2, 1, 24, 16) * 2 - 1
    wanted = model.colorize(L, generator=torch.Generator().manual_seed(5), sampler=sampler, steps=STEPS)
    found = model.expand(plain_loop(exported / name, kind, L), L)
    assert wanted.std() > 0.1
    assert torch.allclose(found, wanted, atol=1e-5), (found - wanted).abs().max()


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_noise_schedule_comes_back_exactly(exported, trained, name):
    """Also in DDPMScheduler, except at the last step of a shifted schedule: 0 there, and 1e-8 here."""
    noise_scheduler = trained[name].noise_scheduler
    wanted = make_sampler("dpm++", noise_scheduler, steps=STEPS)
    found = diffusers.DPMSolverMultistepScheduler.from_pretrained(exported / name, subfolder="scheduler")
    assert torch.equal(found.alphas_cumprod, wanted.alphas_cumprod)
    assert facts_of(exported / name)["alphas_cumprod"] == wanted.alphas_cumprod.tolist()
    assert facts_of(exported / name)["timesteps"] == wanted.timesteps.tolist()
    ddpm = diffusers.DDPMScheduler.from_pretrained(exported / name, subfolder="scheduler")
    assert torch.equal(ddpm.alphas_cumprod[:-1], noise_scheduler.alphas_cumprod[:-1])
    assert torch.allclose(ddpm.alphas_cumprod[-1], noise_scheduler.alphas_cumprod[-1], atol=1e-8)
    assert (ddpm.config.clip_sample, ddpm.config.prediction_type) == (False, KINDS[name].prediction_type)


# -- ONNX ------------------------------------------------------------------------------------------------------------


def run_onnx(folder, **inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


@pytest.mark.parametrize("size", [(1, 16, 24), (4, 65, 47), (2, 1, 1)])
@pytest.mark.parametrize("name", DIFFUSION)
def test_onnxruntime_predicts_the_same_at_every_size(exported, trained, name, size):
    model, (batch, *sides) = trained[name], size
    sample = torch.randn(batch, model.unet.config.in_channels, *sides)
    timestep = torch.arange(batch) * 10
    scale = model.config.chroma_scale
    fine = min(scale, 4)
    L = F.interpolate(F.pixel_shuffle(sample[:, 2 : 2 + fine**2], fine), scale_factor=scale // fine)
    told = sample[:, 2 + fine**2 :]
    hints = (told[:, :2], told[:, 2:3]) if model.config.hints else None
    known = told[:, 3 * bool(hints) :] if model.config.encoder else None
    with torch.no_grad():
        wanted = model.denoise(sample[:, :2], timestep, L, hints, known)
    found = run_onnx(exported / name, sample=sample, timestep=timestep)
    assert torch.allclose(found["prediction"], wanted, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 16, 24), (4, 65, 47), (2, 1, 1)])
@pytest.mark.parametrize("name", ONE_PASS)
def test_onnxruntime_colours_the_same_at_every_size(exported, trained, name, size):
    L, encoder = torch.rand(size[0], 1, *size[1:]) * 2 - 1, KINDS[name].encoder
    found = run_onnx(exported / name, L=L, **({"view": trained[name].encoder.view(L)} if encoder else {}))
    wanted = trained[name].colorize(L)
    assert wanted.std() > 1e-3
    assert torch.allclose(found["dL_ab" if name == "faded" else "ab"], wanted, atol=1e-4)
    if name.startswith("classes"):
        assert torch.allclose(found["confidence"], trained[name].confidence(L), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 16, 24), (3, 40, 8)])
@pytest.mark.parametrize("name", ["seeing", "coarse"])
def test_onnxruntime_knows_the_same_of_a_photo(exported, trained, name, size):
    """The encoder, the neck and the head agree, also for views and grids of other sizes than were traced."""
    model, L = trained[name], torch.rand(size[0], 1, *size[1:]) * 2 - 1
    hints = model.no_hints(L) if model.config.hints else None
    with torch.no_grad():
        wanted = model.context(L, model.look(L), hints).known, model.blind(L, model.look(L), hints).known
        details = torch.cat([model.lightness(L), *(hints or ())], dim=1)
    session = onnxruntime.InferenceSession(exported / name / "context.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["known", "blind"], {"view": model.encoder.view(L).numpy(), "details": details.numpy()})
    for got, want in zip(found, wanted, strict=True):
        assert torch.allclose(torch.from_numpy(got), want, atol=1e-4)
        assert want.shape[1] == len(known_channels(model.config))
    assert not torch.allclose(*wanted)


def test_an_encoder_without_onnx_is_refused(models, tmp_path):
    with pytest.raises(ProjectError, match=r"exported as ONNX only.*--no-onnx"):
        export_model(weights(models, "seeing"), tmp_path / "x", with_onnx=False)
    assert not (tmp_path / "x").exists()


def test_the_graph_names_its_sizes_and_carries_the_facts(exported):
    proto = onnx.load(exported / "shifted" / "model.onnx")
    sizes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert sizes == {
        "sample": ["batch", 9, "height", "width"],
        "timestep": ["batch"],
        "prediction": ["batch", 2, "height", "width"],
    }
    (facts,) = proto.metadata_props
    assert json.loads(facts.value) == facts_of(exported / "shifted")


@pytest.mark.parametrize("axis", [2, 3])
def test_a_size_that_tracing_made_a_constant_is_found(tmp_path, axis):
    graph = ExportGraph(lambda L: L.narrow(axis, 0, min(int(L.shape[axis]), 45)), {"L": ("L",)}, {"ab": ("L",)})
    with pytest.raises(ProjectError, match="give different numbers"):
        module.write_onnx(tmp_path / "model.onnx", torch.nn.Identity(), graph, {})


# -- facts, words, licence -------------------------------------------------------------------------------------------


def test_the_facts_are_those_of_the_model(exported, trained):
    facts = facts_of(exported / "shifted")
    assert len(facts["sample_channels"]) == trained["shifted"].unet.config.in_channels == 9
    assert (facts["chroma_scale"], facts["hint_channels"], facts["sides_multiple_of"]) == (2, 3, 4)
    assert (facts["ab_mean"], facts["ab_std"]) == ([2.1, 8.9], [12.6, 17.7])
    assert (facts["model"], facts["method"], facts["working_size"]) == ("shifted", "diffusion", SIZE)
    for name in ("classes", "straight"):
        assert facts_of(exported / name)["sides_multiple_of"] == 1
        assert facts_of(exported / name)["licence"] == []
        assert sorted(path.name for path in (exported / name).iterdir()) == ["README.md", "model.onnx", "project7.json"]


def photo(size, seed=0):
    small = np.random.default_rng(seed).integers(60, 190, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def lightness(image):
    return rgb_to_lab(channels_first(np.asarray(image)[None]))[0, 0].numpy()


def follow(folder, monkeypatch):
    """Runs the code of the README of a folder in that folder, beside a photo.jpg, and returns the picture that it
    writes, and the variables of the code."""
    monkeypatch.chdir(folder)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    return np.asarray(Image.open("colour.png")), names


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
@pytest.mark.parametrize("name", KINDS)
def test_the_readme_says_how_to_colour_a_photo(exported, tmp_path, monkeypatch, name):
    folder = shutil.copytree(exported / name, tmp_path / "copy")
    photo((50, 37)).save(folder / "photo.jpg", quality=100)
    answer, names = follow(folder, monkeypatch)
    assert answer.shape == (37, 50, 3)
    assert np.ptp(answer.astype(int), axis=-1).mean() > 2, "there is colour"
    if names["facts"].get("guidance", 1) > 1:  # it acted before, and not in the last step
        assert np.array_equal(names["prediction"], names["pair"][:1])
        assert not np.allclose(names["guided"], names["pair"][:1], atol=1e-4)
    if name == "straight":  # the others have large answers while untrained, which leave the gamut of a screen
        with Image.open("photo.jpg") as gray:
            assert np.median(np.abs(lightness(answer) - lightness(gray))) < 1


def test_without_onnx_the_readme_gives_what_project7_gives(models, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert export_model(weights(models, "plain"), folder, with_onnx=False) is None
    assert not (folder / "model.onnx").exists()
    assert facts_of(folder)["onnx"] is None
    assert "onnxruntime" not in (folder / "README.md").read_text()
    gray = photo((SIZE, SIZE)).convert("L").convert("RGB")  # of the size that the network sees
    gray.save(folder / "photo.jpg", quality=100)
    found = follow(folder, monkeypatch)[0].astype(int)
    its_noise = [torch.Generator().manual_seed(0)]
    monkeypatch.setattr("Project7.colorize.photo_noise", lambda photo, seeds: its_noise)
    with Image.open("photo.jpg") as picture:
        wanted = np.asarray(Colorizer.load(weights(models, "plain"), device="cpu").colorize(picture, seed=0))
    shown = (wanted.min(axis=-1) > 8) & (wanted.max(axis=-1) < 247)  # at the edge of the gamut they differ
    assert shown.mean() > 0.3
    assert np.abs(found - wanted)[shown].max() <= 1


def test_the_licence_and_the_card_go_with_the_model(models, tmp_path):
    source = shutil.copytree(models / "straight", tmp_path / "models" / "licensed")
    for name in ("LICENSE.txt", "README.md", "notes.txt"):
        (source / name).write_text(f"the {name}")
    export_model(source / "best_model.pth", tmp_path / "out")
    assert facts_of(tmp_path / "out")["licence"] == ["LICENSE.txt", "MODEL_CARD.md"]
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "the LICENSE.txt"
    assert (tmp_path / "out" / "MODEL_CARD.md").read_text() == "the README.md"
    assert "LICENSE.txt, MODEL_CARD.md" in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "notes.txt").exists()

    shutil.move(source / "best_model.pth", source / "other.pth")  # other files beside a single file do not matter
    export_model(source / "other.pth", tmp_path / "other")
    assert (facts_of(tmp_path / "other")["model"], facts_of(tmp_path / "other")["licence"]) == ("other", [])


# -- without the packages --------------------------------------------------------------------------------------------


@pytest.fixture
def no_onnxruntime(monkeypatch):
    found = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name, *more: None if name == "onnxruntime" else found(name, *more)
    )


def test_without_its_packages_onnx_is_left_out_and_that_is_said(models, tmp_path, no_onnxruntime, capsys):
    flags = ["--to", str(tmp_path / "out"), "--models-dir", str(models)]
    assert command(["export", "plain", *flags]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "pip install onnxruntime" in err
    assert "model.onnx" not in out
    assert "diffusion_pytorch_model.safetensors" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unet", "scheduler", "project7.json", "README.md"}


def test_where_nothing_would_be_left_it_is_refused(models, tmp_path, no_onnxruntime):
    with pytest.raises(ProjectError, match=r"as ONNX only, and model\.onnx is left out because onnxruntime"):
        export_model(weights(models, "straight"), tmp_path / "out")
    with pytest.raises(UsageError, match="leave --no-onnx out"):
        export_model(weights(models, "classes"), tmp_path / "out", with_onnx=False)
    assert list(tmp_path.iterdir()) == []


# -- the folder ------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def file_size_limit(limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_command_lists_what_it_wrote(models, tmp_path, capsys):
    folder = tmp_path / "new" / "out"
    assert command(["export", "plain", "--to", str(folder), "--models-dir", str(models)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    *lines, use = out.splitlines()
    listed = {Path(re.split(r"(?:B|bytes)  ", line)[1]).relative_to(folder) for line in lines}
    assert listed == set(contents(folder))
    assert use.endswith(f"colorize PHOTO --model {folder}")
    assert [path.name for path in folder.parent.iterdir()] == ["out"], "no temporary folder stays"


def test_a_folder_with_something_in_it_is_refused_and_forced(models, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    export_model(weights(models, "plain"), folder)  # into an empty one
    (folder / "mine.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(UsageError, match="not empty; use --force"):
        export_model(weights(models, "straight"), folder)
    assert contents(folder) == before
    export_model(weights(models, "straight"), folder, force=True)
    after = {path.as_posix() for path in contents(folder)}
    assert after == {"README.md", "model.onnx", "project7.json", "mine.txt"}, "the U-Net of before is gone"
    assert facts_of(folder)["method"] == "regression"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_neither_the_model_nor_where_one_is_gets_replaced(models, tmp_path, monkeypatch):
    source = shutil.copytree(models / "plain", tmp_path / "models" / "plain")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path / "models")
    for place in (source, tmp_path / "models", ".", tmp_path, source / ".." / "plain"):
        with pytest.raises(UsageError, match="new or empty"):
            export_model(source / "best_model.pth", Path(place), force=True)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="is not a folder"):
            export_model(source / "best_model.pth", tmp_path / name, force=True)
    (tmp_path / "link").unlink()
    (tmp_path / "file").unlink()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ProjectError("x"), RuntimeError("x")])
def test_what_ends_an_export_early_leaves_the_earlier_one(exported, models, tmp_path, monkeypatch, error):
    folder = shutil.copytree(exported / "plain", tmp_path / "out")
    before = contents(folder)

    def fail(facts):
        raise error

    monkeypatch.setattr(module, "make_readme", fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        export_model(weights(models, "straight"), folder, force=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_earlier_export_comes_back_where_the_new_one_cannot_take_its_place(exported, models, tmp_path, monkeypatch):
    folder = shutil.copytree(exported / "plain", tmp_path / "out")
    before, rename = contents(folder), Path.rename

    def refuse(path, target):
        if Path(target) == folder and not path.name.endswith("-old"):
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ProjectError, match="Permission denied"):
        export_model(weights(models, "straight"), folder, force=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["plain", "straight"])
def test_a_full_disk_is_one_sentence_and_the_earlier_export_stays(exported, models, tmp_path, name):
    folder = shutil.copytree(exported / "classic", tmp_path / "out")
    before, sizes = contents(folder), [path.stat().st_size for path in (exported / name).rglob("*") if path.is_file()]
    for size in sizes:  # each file in turn is the first that is too large, or is never reached
        with file_size_limit(size - 1), pytest.raises(ProjectError, match="File too large") as caught:
            export_model(weights(models, name), folder, force=True)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert contents(folder) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_where_nothing_can_be_written_one_sentence_says_so(models, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ProjectError, match="could not be written") as caught:
        export_model(weights(models, "plain"), tmp_path / "file" / "out")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_those_may_read_it_whom_the_umask_allows(models, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        export_model(weights(models, "plain"), tmp_path / "out", with_onnx=False)
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["ghost", "--to", "x"], "ghost"), (["plain"], "--to"), (["plain", "--to", "x", "--steps", "3"], "--steps")],
)
def test_bad_requests_are_refused(models, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(said)):
        command(["export", *arguments, "--models-dir", str(models)])
    assert list(tmp_path.iterdir()) == []
