"""Exports a trained model for other programs: diffusers' folders, ONNX, and the constants that go with them.

DIR/unet/, DIR/scheduler/   a diffusion model, as diffusers' own `from_pretrained` reads it
DIR/model.onnx              the network for onnxruntime and others: any batch size, height and width
DIR/context.onnx            for a diffusion model with an encoder: what is known about a photo before the first step
DIR/project7.json           ranges, order of channels, noise schedule: what the other files do not tell
DIR/README.md               how to colour a photo with these files
"""

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
from safetensors import SafetensorError
from torch import Tensor, nn

from Project7 import __version__
from Project7.checkpoints import StoredModel, open_model
from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError
from Project7.export_parts import VIEW, Channels, ExportGraph, ExportParts
from Project7.model_folder import name_of
from Project7.working_size import view_shape

_OPSET = 17  # of 2022: every onnxruntime from 1.12 on reads it
_SIDES = (33, 41)  # pixels of the traced picture: they stay odd when halved, so that all padding is in the graph
_TRIALS = ((1, 24, 56), (3, 50, 23))  # batch, height, width at which onnxruntime is compared with torch
_TOLERANCE = 1e-4
_LARGE = 1024  # smallest number of values for which half precision is worthwhile
_NEEDED = ("onnx", "onnxruntime")
_LICENCE = re.compile(r"(licen[cs]e|notice|copying)\b.*", re.IGNORECASE)
_WRITTEN = {"unet", "scheduler", "model.onnx", "context.onnx", "project7.json", "README.md", "MODEL_CARD.md"}
_FLAT_LIST = re.compile(r"\[([^\[\]{}]*)\]")  # goes on one line of project7.json


def export_model(
    weights: Path, to: Path, *, with_onnx: bool = True, half: bool = False, force: bool = False
) -> str | None:
    """Exports the model in the file `weights` to the folder `to`, completely or not at all. half: whether ONNX files
    store weights in half precision.

    Returns a sentence about what was left out because a package is missing, or None. Raises UsageError if `to` is not
    free (with `force`: if it may not be replaced) or nothing would be written, ProjectError if writing fails.
    """
    with replacing_folder(to, keep=weights, force=force) as folder:
        stored = open_model(weights)
        parts = stored.model.export_parts()
        missing = [name for name in _NEEDED if with_onnx and importlib.util.find_spec(name) is None]
        note = missing_note(missing)
        if missing or not with_onnx:
            check_without_onnx(parts, stored.config, note)
        if parts.save_for_diffusers:
            parts.save_for_diffusers(folder)
        facts = make_facts(weights, stored, parts) | {"licence": copy_licence(weights, folder)}
        if with_onnx and not missing:
            for name, graph in parts.graphs.items():
                described = {"inputs": graph.inputs, "outputs": graph.outputs}
                facts[name] = {"file": file_of(name), "opset": _OPSET, **described}
            for name, graph in parts.graphs.items():
                write_onnx(folder / file_of(name), stored.model, graph, facts)
                if half:
                    halve(folder / file_of(name))
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


def check_without_onnx(parts: ExportParts, config: RunConfig, note: str | None) -> None:
    """Raises an error if a model is of no use without its graphs. note: which packages are missing."""
    if parts.save_for_diffusers and len(parts.graphs) == 1:
        return
    if parts.save_for_diffusers:
        raise ProjectError(
            f"The encoder of a model is exported as ONNX only, and {note or '--no-onnx was given; leave it out.'}"
        )
    if note:
        raise ProjectError(f"A {config.model.method} model is exported as ONNX only, and {note}")
    raise UsageError(f"A {config.model.method} model is exported as ONNX only; leave --no-onnx out.")


def file_of(part: str) -> str:
    return "model.onnx" if part == "onnx" else f"{part}.onnx"


# -- ONNX ------------------------------------------------------------------------------------------------------------


class Graph(nn.Module):
    """A function of tensors as a module, as torch's exporter requires. model: the module that has the weights."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *inputs: Tensor):
        return self.function(*inputs)


def write_onnx(path: Path, model: nn.Module, part: ExportGraph, facts: dict[str, Any]) -> None:
    """Traces a graph, writes it with the facts as its metadata, and checks that onnxruntime gives the same numbers.

    It uses the tracing exporter (dynamo=False), which writes the same graph in torch 2.11 to 2.15, the versions in
    requirements.txt, needs no package but onnx, takes a second, and writes an opset that old runtimes read. The newer
    exporter (dynamo=True) needs a matching version of onnxscript; it took ten times as long, and refused the attention
    over (B, places, channels) in layers.py. `check_onnx` looks for the usual fault of tracing: a size that becomes a
    constant.
    """
    import onnx

    graph, inputs, outputs = Graph(model, part.function), part.inputs, part.outputs
    free = {name: free_axes(name) if channels else {0: "batch"} for name, channels in (inputs | outputs).items()}
    traced: Any = io.BytesIO()  # the exporter's types name paths alone
    with warnings.catch_warnings(action="ignore"):  # about the exporter's age, and about each comparison of sizes
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
    for output in proto.graph.output:  # tracing does not know the number of channels where padding was cut off
        output.type.tensor_type.shape.dim[1].dim_value = len(outputs[output.name])
    onnx.helper.set_model_props(proto, {"project7.json": to_json(facts)})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    check_onnx(path, graph, inputs)


def halve(path: Path) -> None:
    """Stores the large weights of an ONNX file in half precision; the graph casts them to float32, so that the
    arithmetic is unchanged.

    The shipped checkpoints are in half precision, so that nothing of them is lost. A frozen encoder, whose norms were
    folded in full precision, is a constant of the graph rather than a parameter, and stays as it is.
    """
    import onnx

    proto = onnx.load(path)
    nodes = []
    for weight in proto.graph.initializer:
        values, name = onnx.numpy_helper.to_array(weight), weight.name
        if values.dtype == np.float32 and values.size >= _LARGE:
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name} in half precision"))
            nodes.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes += proto.graph.node
    proto.graph.ClearField("node")
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def free_axes(name: str) -> dict[int, str]:
    before = "view_" if name == VIEW else ""  # the view has its own sides
    return {0: "batch", 2: f"{before}height", 3: f"{before}width"}


def random_inputs(inputs: Channels, batch: int, height: int, width: int) -> tuple[Tensor, ...]:
    """Random pictures (B, C, H, W) in [-1, 1]; timesteps (B,) for an input without channels."""
    generator = torch.Generator().manual_seed(0)
    sizes = {VIEW: view_shape((height, width), 48)}
    return tuple(
        torch.rand(batch, len(channels), *sizes.get(name, (height, width)), generator=generator) * 2 - 1
        if channels
        else torch.arange(batch)
        for name, channels in inputs.items()
    )


@torch.no_grad()
def check_onnx(path: Path, graph: Graph, inputs: Channels) -> None:
    """Raises ProjectError unless onnxruntime gives torch's numbers, at sizes and batches that were not traced.

    One number in a hundred may differ: at a low temperature, classes of a classification model with nearly the same
    probability can change places.
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
                    "onnxruntime and torch give different numbers for this model, so nothing was exported; use "
                    f"--no-onnx, or other versions than onnxruntime {onnxruntime.__version__} and torch "
                    f"{torch.__version__}."
                )


# -- what goes with them ---------------------------------------------------------------------------------------------


def make_facts(weights: Path, stored: StoredModel, parts: ExportParts) -> dict[str, Any]:
    """The content of project7.json: what another program has to know about the model."""
    config = stored.config
    facts = {
        "project7": __version__,
        "model": name_of(weights),
        "method": config.model.method,
        "weights_sha256": stored.sha256,
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
    return facts | parts.facts


def to_json(facts: dict[str, Any]) -> str:
    text = json.dumps(facts, indent=2)
    return _FLAT_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def copy_licence(weights: Path, folder: Path) -> list[str]:
    """Copies the files of the model's folder about licence and data; returns the names of the copies."""
    if weights.name != "best_model.pth":
        return []  # a single file, and other files beside it may not belong to it
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
    if "prediction_type" not in facts:  # one pass gives the colours
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
What is known of the photo, once for all steps, and what would be known if the encoder saw nothing:

```python
import onnxruntime

context = onnxruntime.InferenceSession("context.onnx")
known_and_blind = context.run(["known", "blind"], {"view": view, "details": given})
given = np.concatenate([np.repeat(given, 2, axis=0), np.concatenate(known_and_blind)], axis=1)
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
With diffusers (another seed gives another answer). A model with an encoder predicts with and without it, and the
difference counts `guidance` times (Ho & Salimans 2022), about at the strength of the first (Lin et al. 2024):

```python
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DModel

unet = UNet2DModel.from_pretrained(".", subfolder="unet")
scheduler = DPMSolverMultistepScheduler.from_pretrained(".", subfolder="scheduler")
scheduler.set_timesteps(timesteps=facts["timesteps"])
x = torch.randn(1, 2, h // c, w // c, generator=torch.Generator().manual_seed(0))
for t in scheduler.timesteps:
    with torch.no_grad():
        pair = unet(torch.cat([x.expand(len(given), -1, -1, -1), torch.from_numpy(given)], dim=1), t).sample
    prediction = pair[:1]
    if facts["guided"][0] <= t <= facts["guided"][1]:
        guided = pair[-1:] + facts["guidance"] * (pair[:1] - pair[-1:])
        prediction = guided * (facts["rescale"] * prediction.std() / guided.std() + 1 - facts["rescale"])
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
    noisy = np.concatenate([np.repeat(x, len(given), axis=0), given], axis=1)
    pair = session.run(["prediction"], {{"sample": noisy, "timestep": np.full(len(given), t)}})[0]
    prediction = pair[:1]
    if facts["guided"][0] <= t <= facts["guided"][1]:
        guided = pair[-1:] + facts["guidance"] * (pair[:1] - pair[-1:])
        prediction = guided * (facts["rescale"] * prediction.std() / guided.std() + 1 - facts["rescale"])
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
    """Makes a folder beside `path`, which replaces `path` in one step when the block ends without an error.

    keep: a file that must not be replaced. Raises UsageError if `path` may not be replaced, ProjectError if it cannot
    be written. If the block ends early, `path` stays as it was.
    """
    path = Path(os.path.abspath(path))  # resolves `..` but not links
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
    """Raises UsageError unless an export may be written to `path`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"--to {path} is not a folder; give one that is new or empty.")
    if any(path in [place, *place.parents] for place in (Path.cwd(), Path(os.path.abspath(keep)))):
        raise UsageError(f"--to {path} is where the model is, or where you are; give a folder that is new or empty.")
    if path.exists() and any(path.iterdir()) and not force:
        raise UsageError(f"--to {path} is not empty; use --force to replace an export there, or give another folder.")


def settle(folder: Path) -> None:
    """Flushes all files to the disk, and gives them the permissions that project7.json got from the umask.

    safetensors writes files with mode 0600.
    """
    mode = (folder / "project7.json").stat().st_mode & 0o777
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.chmod(mode)
        with open(file, "r+b") as opened:
            os.fsync(opened.fileno())


def exchange(new: Path, path: Path) -> None:
    """Replaces `path` by `new`. Files in `path` that do not belong to an export are moved to the new folder."""
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
