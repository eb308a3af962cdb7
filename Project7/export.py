"""A trained model for other programs: diffusers' folders, ONNX, and the constants that go with them.

DIR/unet/, DIR/scheduler/   a diffusion model, as diffusers' own `from_pretrained` reads it
DIR/model.onnx              the network for onnxruntime and others: any batch, height and width
DIR/context.onnx            of a diffusion model with an encoder: what is known of a photo before the first step
DIR/project7.json           ranges, order of channels, noise schedule: what the files do not say themselves
DIR/README.md               how to colour a photo with them
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from Project7 import __version__
from Project7.checkpoints import load_model
from Project7.config import ColorizeConfig, RunConfig
from Project7.diffusion_model import FINEST
from Project7.encoder import view_shape
from Project7.errors import ProjectError, UsageError
from Project7.guided_filter import pad_to_multiple
from Project7.palette import annealed_mean
from Project7.samplers import make_sampler

_OPSET = 17  # of 2022: every onnxruntime from 1.12 on reads it
_SIDES = (33, 41)  # of the traced picture: halved and rounded up they stay odd, so that all padding is in the graph
_TRIALS = ((1, 24, 56), (3, 50, 23))  # batch, height, width at which onnxruntime is compared: less, and more
_TOLERANCE = 1e-4
_NEEDED = ("onnx", "onnxruntime")
_LICENCE = re.compile(r"(licen[cs]e|notice|copying)\b.*", re.IGNORECASE)
_WRITTEN = {"unet", "scheduler", "model.onnx", "context.onnx", "project7.json", "README.md", "MODEL_CARD.md"}
_VIEW = "view"  # the name of the input that an encoder looks at
_FLAT_LIST = re.compile(r"\[([^\[\]{}]*)\]")  # goes on one line of project7.json

Channels = dict[str, tuple[str, ...]]  # of each input or output, by its name; () for timesteps


def export_model(weights: Path, to: Path, *, with_onnx: bool = True, force: bool = False) -> str | None:
    """Writes the model in the file `weights` into the folder `to`, whole or not at all.

    Returns a sentence about what was left out because a package is missing, or None. Raises UsageError where `to` is
    not free (`force`: where it may not be replaced) or nothing would be written; ProjectError where it cannot be.
    """
    with replacing_folder(to, keep=weights, force=force) as folder:
        model, config = load_model(weights)
        missing = [name for name in _NEEDED if with_onnx and importlib.util.find_spec(name) is None]
        note = missing_note(missing)
        sees = bool(config.model.encoder)
        if sees and (missing or not with_onnx):
            need = note or "--no-onnx was given."
            raise ProjectError(f"The encoder of a model is exported as ONNX only, and {need}")
        if config.model.method == "diffusion":
            write_diffusers(folder, model)
        elif missing:
            raise ProjectError(f"A {config.model.method} model is exported as ONNX only, and {note}")
        elif not with_onnx:
            raise UsageError(f"A {config.model.method} model is exported as ONNX only; leave --no-onnx out.")
        facts = make_facts(weights, model, config) | {"licence": copy_licence(weights, folder)}
        if with_onnx and not missing:
            graph, names = make_graph(model)
            facts["onnx"] = {"file": "model.onnx", "opset": _OPSET, **names}
            if sees and config.model.method == "diffusion":
                context, context_names = make_context_graph(model)
                facts["context"] = {"file": "context.onnx", "opset": _OPSET, **context_names}
                write_onnx(folder / "context.onnx", context, facts, context_names)
            write_onnx(folder / "model.onnx", graph, facts, names)
        (folder / "project7.json").write_text(to_json(facts), encoding="utf-8")
        (folder / "README.md").write_text(make_readme(facts), encoding="utf-8")
    return note


def missing_note(missing: list[str]) -> str | None:
    if not missing:
        return None
    return (
        f"model.onnx is left out because {' and '.join(missing)} cannot be found; for it, "
        f"pip install {' '.join(missing)} and export again with --force."
    )


# -- diffusers -------------------------------------------------------------------------------------------------------


def write_diffusers(folder: Path, model: nn.Module) -> None:
    model.unet.save_pretrained(folder / "unet", safe_serialization=True)
    ready_scheduler(model).save_pretrained(folder / "scheduler")


def ready_scheduler(model: nn.Module):
    """colorize's DPM-Solver++ on the model's noise schedule, such that its configuration alone gives both again.

    diffusers puts 2^-24 for a zero at the end of abar, and samplers.py mends the result where that is more than the
    abar before it. A configuration cannot say so, but betas can: the last one is then 1 - abar_T / abar_{T-1}.
    """
    steps = min(ColorizeConfig().steps, model.config.timesteps)
    sampler = make_sampler("dpm++", model.noise_scheduler, steps=steps)
    plain = type(sampler).from_config(sampler.config)
    if not torch.equal(plain.alphas_cumprod, sampler.alphas_cumprod):
        betas = model.noise_scheduler.betas.clone()
        betas[-1] = 1 - sampler.alphas_cumprod[-1] / sampler.alphas_cumprod[-2]
        schedule = {"trained_betas": betas.tolist(), "rescale_betas_zero_snr": False}
        plain = type(sampler).from_config(sampler.config, **schedule)
    plain.set_timesteps(timesteps=sampler.timesteps.tolist())
    return plain


# -- ONNX ------------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """A function of tensors as the module that torch's exporter asks for; `model` brings the weights."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor):
        return self.function(*inputs)


def make_graph(model: nn.Module) -> tuple[Graph, dict[str, Channels]]:
    """What model.onnx computes, at any size of picture, and {"inputs": ..., "outputs": ...}.

    Diffusion: one prediction of the U-Net. The others: L -> ab, in the network's range; for a classification model
    by the annealed mean at its own temperature, and its confidence beside.
    """
    method, config = model.config.method, model.config
    if method == "diffusion":
        multiple = 2 ** (len(config.features) - 1)

        def predict(sample: Tensor, timestep: Tensor) -> Tensor:
            h, w = sample.shape[-2:]
            return model.unet(pad_to_multiple(sample, multiple), timestep).sample[..., :h, :w]

        predicted = "v" if config.prediction_type == "v_prediction" else "noise"
        inputs = {"sample": sample_channels(config), "timestep": ()}
        outputs = {"prediction": (f"{predicted} of a", f"{predicted} of b")}
        return Graph(model, predict), {"inputs": inputs, "outputs": outputs}
    inputs = {"L": ("L",)} | ({_VIEW: ("L",)} if config.encoder else {})
    if method == "regression":

        def answer(L: Tensor, view: Tensor | None = None) -> Tensor:
            return model.answer(L, None if view is None else model.encoder(view))

        outputs = {"dL_ab": ("change of L", "a", "b")} if model.restores else {"ab": ("a", "b")}
        return Graph(model, answer), {"inputs": inputs, "outputs": outputs}

    def classify(L: Tensor, view: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits, residual, confidence, _ = model.network(L, None if view is None else model.encoder(view))
        ab = model.from_lab(annealed_mean(logits, model.centres, config.temperature) + residual)
        return model.expand(ab, L), F.interpolate(torch.sigmoid(confidence), L.shape[-2:], mode="bilinear")

    outputs = {"ab": ("a", "b"), "confidence": ("probability",)}
    return Graph(model, classify), {"inputs": inputs, "outputs": outputs}


def make_context_graph(model: nn.Module) -> tuple[Graph, dict[str, Channels]]:
    """What context.onnx computes, once per photo: the encoder, the neck and the head of a diffusion model."""
    hints = 3 if model.config.hints else 0

    def look(view: Tensor, details: Tensor) -> Tensor:
        known = model.neck(model.encoder(view), details)
        return model.told(known, None if model.head is None else model.head(known))

    details = sample_channels(model.config)[2 : 2 + cell_side(model.config) ** 2 + hints]
    inputs = {_VIEW: ("L",), "details": details}
    return Graph(model, look), {"inputs": inputs, "outputs": {"known": known_channels(model.config)}}


def cell_side(config) -> int:
    """The pixels of L on a side that the network is shown of a cell."""
    return min(config.chroma_scale, FINEST)


def known_channels(config) -> tuple[str, ...]:
    if not config.encoder:
        return ()
    told = ["mean a", "mean b"] if config.head != "none" else []
    return (*(f"known {n}" for n in range(config.neck_width)), *told, *["entropy"] * config.head_entropy)


def sample_channels(config) -> tuple[str, ...]:
    """The U-Net's input channels in their order: noisy ab, the L of a cell's pixels row by row, hints, what
    context.onnx gives."""
    cells = range(cell_side(config))
    lightness = [f"L of row {row}, column {column} of a cell" for row in cells for column in cells]
    hints = ["hinted a", "hinted b", "1 where a hint is"] if config.hints else []
    return ("noisy a", "noisy b", *(lightness if len(cells) > 1 else ["L"]), *hints, *known_channels(config))


def write_onnx(path: Path, graph: Graph, facts: dict[str, Any], names: dict[str, Channels]) -> None:
    """Traces a graph, writes it with the facts as its metadata, and sees to it that onnxruntime gives its numbers.

    The exporter is the one by tracing (dynamo=False). torch 2.11 to 2.15, all that requirements.txt allows, have it
    and write the same graph with it; it needs no package but onnx, takes a second, and writes an opset that old
    runtimes read. The newer one (dynamo=True) needs onnxscript, whose versions go with torch's; it took ten times as
    long, and refused the attention over (B, places, channels) of layers.py. What tracing could get wrong, a size that
    becomes a constant, is what `check_onnx` looks for.
    """
    import onnx

    inputs, outputs = names["inputs"], names["outputs"]
    free = {name: free_axes(name) if channels else {0: "batch"} for name, channels in (inputs | outputs).items()}
    traced = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of the exporter's age, and of each size that it sees compared
        torch.onnx.export(
            graph.eval(),
            random_inputs(inputs, 2, *_SIDES),
            traced,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=free,
            opset_version=_OPSET,
            dynamo=False,
        )
    proto = onnx.load_from_string(traced.getvalue())
    for output in proto.graph.output:  # tracing lost sight of the number of channels where padding was cut off
        output.type.tensor_type.shape.dim[1].dim_value = len(outputs[output.name])
    onnx.helper.set_model_props(proto, {"project7.json": to_json(facts)})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    check_onnx(path, graph, inputs)


def free_axes(name: str) -> dict[int, str]:
    before = "view_" if name == _VIEW else ""  # its sides are its own
    return {0: "batch", 2: f"{before}height", 3: f"{before}width"}


def random_inputs(inputs: Channels, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Pictures (B, C, H, W) in [-1, 1], and timesteps (B,) for what has no channels."""
    generator = torch.Generator().manual_seed(0)
    sizes = {_VIEW: view_shape((height, width), 48)}
    return tuple(
        torch.rand(batch, len(channels), *sizes.get(name, (height, width)), generator=generator) * 2 - 1
        if channels
        else torch.arange(batch)
        for name, channels in inputs.items()
    )


@torch.no_grad()
def check_onnx(path: Path, graph: Graph, inputs: Channels) -> None:
    """Raises ProjectError unless onnxruntime gives torch's numbers at sizes and batches that were not traced.

    One in a hundred may differ: at a low temperature a classification model's nearly equal classes change places.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for trial in _TRIALS:
        arguments = random_inputs(inputs, *trial)
        wanted = graph(*arguments)
        found = session.run(None, {name: x.numpy() for name, x in zip(inputs, arguments, strict=True)})
        for want, got in zip(wanted if isinstance(wanted, tuple) else (wanted,), found, strict=True):
            want = want.numpy()
            same = want.shape == got.shape and np.isclose(got, want, rtol=_TOLERANCE, atol=_TOLERANCE).mean() > 0.99
            if not same:
                raise ProjectError(
                    "onnxruntime gives other numbers than torch for this model, so that nothing was exported; use "
                    f"--no-onnx, or other versions than onnxruntime {onnxruntime.__version__} and torch "
                    f"{torch.__version__}."
                )


# -- what goes with them ---------------------------------------------------------------------------------------------


def make_facts(weights: Path, model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """The content of project7.json: what a program must know that cannot ask Project7."""
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "project7": __version__,
        "model": weights.parent.name if weights.name == "best_model.pth" else weights.stem,
        "method": config.model.method,
        "weights_sha256": digest,
        "lab": "CIE Lab of sRGB, D65, 2-degree observer; L in [0, 100], as scikit-image has it",
        "L_range": [-1.0, 1.0],  # black, white
        "ab_mean": list(config.model.ab_mean),
        "ab_std": list(config.model.ab_std),
        "working_size": config.data.image_size,
        "sides_multiple_of": 1,
        "onnx": None,
        "context": None,
        "view_size": config.model.encoder_size if config.model.encoder else None,
    }
    return facts | (diffusion_facts(model) if config.model.method == "diffusion" else {})


def diffusion_facts(model: nn.Module) -> dict[str, Any]:
    config, scheduler = model.config, ready_scheduler(model)
    return {
        "chroma_scale": config.chroma_scale,
        "cell_side": cell_side(config),
        "sides_multiple_of": config.chroma_scale * 2 ** (len(config.features) - 1),
        "sample_channels": sample_channels(config),
        "hint_channels": 3 if config.hints else 0,
        "prediction_type": config.prediction_type,
        "timesteps": scheduler.timesteps.tolist(),
        "alphas_cumprod": scheduler.alphas_cumprod.tolist(),
    }


def to_json(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, indent=2)
    return _FLAT_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def copy_licence(weights: Path, folder: Path) -> list[str]:
    """Copies what the model's folder says about licence and data; returns the names of the copies."""
    if weights.name != "best_model.pth":
        return []  # a file somewhere: what lies beside it need not belong to it
    notes = {path.name: path for path in sorted(weights.parent.iterdir()) if _LICENCE.fullmatch(path.name)}
    card = weights.parent / "README.md"
    notes |= {"MODEL_CARD.md": card} if card.exists() else {}
    for name, path in notes.items():
        (folder / name).write_bytes(path.read_bytes())
    return list(notes)


def make_readme(facts: dict[str, Any]) -> str:
    licence = f"\nLicence and data: see {', '.join(facts['licence'])}.\n" if facts["licence"] else ""
    start = _START.format(model=facts["model"], method=facts["method"], version=__version__, licence=licence)
    view = _LOOK if facts["view_size"] else ""
    if facts["method"] != "diffusion":
        answer = "answer" if "dL_ab" in facts["onnx"]["outputs"] else "ab"
        lightness = _LIGHTNESS if answer == "answer" else ""
        inputs = '{"L": small, "view": view}' if view else '{"L": small}'
        return start + _PHOTO + view + _ONE_PASS.format(answer=answer, lightness=lightness, inputs=inputs) + _PICTURE
    implied = _V if facts["prediction_type"] == "v_prediction" else _NOISE
    onnx = _DDIM.format(implied=implied) if facts["onnx"] else ""
    return start + _PHOTO + view + _CELLS + (_CONTEXT if view else "") + _DIFFUSERS + onnx + _PICTURE


_START = """\
# {model}: a {method} model that gives gray photos their colour

Written by `project7 export` (Project7 {version}). The network is given the lightness L of a photo and answers with its
colour, a and b of CIE Lab; `project7.json` says in which ranges and in which order (`model.onnx` has it in its
metadata, too). What follows runs as it stands, in this folder, with a `photo.jpg` in it and numpy, pillow and
scikit-image installed. Project7 itself enlarges the colours along the edges of L, which is the finer way.
{licence}"""

_PHOTO = """
```python
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import lab2rgb, rgb2lab
from skimage.transform import resize

facts = json.loads(Path("project7.json").read_text())
L = rgb2lab(np.asarray(Image.open("photo.jpg").convert("RGB")))[..., 0]  # 0 is black, 100 is white
multiple, scale = facts["sides_multiple_of"], facts["working_size"] / min(L.shape)
h, w = (max(1, round(side * scale / multiple)) * multiple for side in L.shape)
small = (resize(L, (h, w)) / 50 - 1).astype(np.float32)[None, None]  # (1, 1, h, w) in [-1, 1]
```
"""

_LOOK = """
The encoder looks at the photo itself, at sides of 32 n + 1 pixels:

```python
scale = min(facts["view_size"] / min(L.shape), 4 * facts["view_size"] / max(L.shape))
sides = [32 * max(1, round(side * scale / 32)) + 1 for side in L.shape]
view = (resize(L, sides) / 50 - 1).astype(np.float32)[None, None]
```
"""

_CONTEXT = """
What is known of the photo, once for all steps:

```python
import onnxruntime

context = onnxruntime.InferenceSession("context.onnx")
known = context.run(["known"], {"view": view, "details": given})[0]
given = np.concatenate([given, known], axis=1)
```
"""

_CELLS = """
The U-Net works on cells of `chroma_scale` x `chroma_scale` pixels: the L of their pixels, or of parts of them where
`cell_side` is smaller, are channels (space to depth).

```python
c, s = facts["chroma_scale"], facts["cell_side"]
parts = small.reshape(1, 1, h // c * s, c // s, w // c * s, c // s).mean(axis=(3, 5))
cells = parts.reshape(1, h // c, s, w // c, s).transpose(0, 2, 4, 1, 3).reshape(1, s * s, h // c, w // c)
no_hints = np.zeros((1, facts["hint_channels"], h // c, w // c), np.float32)  # or known colours, and 1 where they are
given = np.concatenate([cells, no_hints], axis=1)
```
"""

_DIFFUSERS = """
With diffusers (another seed gives another answer):

```python
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(".", subfolder="unet")
scheduler = DPMSolverMultistepScheduler.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps(timesteps=facts["timesteps"])
x = torch.randn(1, 2, h // c, w // c, generator=torch.Generator().manual_seed(0))
for t in scheduler.timesteps:
    with torch.no_grad():
        prediction = unet(torch.cat([x, torch.from_numpy(given)], dim=1), t).sample
    x = scheduler.step(prediction, t, x).prev_sample
ab = x.numpy()
```
"""

_DDIM = """
Or with onnxruntime alone, by DDIM:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
x = np.random.default_rng(0).standard_normal((1, 2, h // c, w // c), np.float32)
abar = np.array([*facts["alphas_cumprod"], 1], np.float32)  # the last is that of no noise
for t, after in zip(facts["timesteps"], [*facts["timesteps"][1:], -1]):
    inputs = {{"sample": np.concatenate([x, given], axis=1), "timestep": np.array([t])}}
    prediction = session.run(["prediction"], inputs)[0]
    signal, sigma = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
    {implied}
    x = np.sqrt(abar[after]) * clean + np.sqrt(1 - abar[after]) * noise
ab = x
```
"""

_V = "clean, noise = signal * x - sigma * prediction, sigma * x + signal * prediction"
_NOISE = "clean, noise = (x - sigma * prediction) / signal, prediction"

_ONE_PASS = """
```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
{answer} = session.run(None, {inputs})[0]
{lightness}```
"""

_LIGHTNESS = """\
change, ab = np.split(answer, [1], axis=1)  # this model gives a faded photo its lightness back, too
L = np.clip(L + 50 * resize(change[0, 0], L.shape), 0, 100)
"""

_PICTURE = """
```python
ab = resize(ab[0].transpose(1, 2, 0), (*L.shape, 2)) * facts["ab_std"] + facts["ab_mean"]
rgb = lab2rgb(np.dstack([L, ab]))
Image.fromarray((rgb * 255).round().astype(np.uint8)).save("colour.png")
```
"""


# -- the folder ------------------------------------------------------------------------------------------------------


@contextmanager
def replacing_folder(path: Path, *, keep: Path, force: bool) -> Iterator[Path]:
    """Makes a folder beside `path`; when the block ends well, it becomes `path` in one step.

    Raises UsageError where something stands there that may not be replaced (`keep` is a file that must stay);
    ProjectError where it cannot be written. Whatever ends the block early leaves `path` as it was.
    """
    path = Path(os.path.abspath(path))  # `..` goes, links stay
    check_free(path, keep=keep, force=force)
    new = path.parent / f".project7-tmp-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        yield new
        settle(new)
        exchange(new, path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ProjectError(
            f"{path} could not be written ({reason}), and nothing was changed there; give another folder, or free "
            "some space."
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_free(path: Path, *, keep: Path, force: bool) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"--to {path} is no folder; give one that is new or empty.")
    if any(path in [place, *place.parents] for place in (Path.cwd(), Path(os.path.abspath(keep)))):
        raise UsageError(f"--to {path} is where the model is, or where you are; give a folder that is new or empty.")
    if path.exists() and any(path.iterdir()) and not force:
        raise UsageError(f"--to {path} is not empty; use --force to replace an export there, or give another folder.")


def settle(folder: Path) -> None:
    """Brings everything to the disk, and lets those read it who may read what this person writes.

    safetensors writes with mode 0600; project7.json has the mode that the umask gives.
    """
    mode = (folder / "project7.json").stat().st_mode & 0o777
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.chmod(mode)
        with open(file, "r+b") as opened:
            os.fsync(opened.fileno())


def exchange(new: Path, path: Path) -> None:
    """`new` becomes `path`. What stood there goes, but for files that are none of an export's: they move over."""
    if not path.exists():
        new.rename(path)
        return
    old = new.with_name(f"{new.name}-old")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    for entry in old.iterdir():
        if entry.name not in _WRITTEN and not (path / entry.name).exists():
            entry.rename(path / entry.name)
    shutil.rmtree(old)
