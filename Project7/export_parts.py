"""What a method gives to other programs: graphs for ONNX, facts for project7.json, a way to save for diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VIEW = "view"  # the name of the input that an encoder looks at
Channels = dict[str, tuple[str, ...]]  # of each input or output, by its name; () for timesteps


class ExportGraph(NamedTuple):
    """A function of tensors (B, C, H, W) at any size of picture, and what its channels are."""

    function: Callable[..., Any]
    inputs: Channels
    outputs: Channels


class ExportParts(NamedTuple):
    graphs: dict[str, ExportGraph]  # name of the part -> graph; "onnx" is model.onnx
    facts: dict[str, Any]  # that the files do not say themselves
    save_for_diffusers: Callable[[Path], None] | None = None  # into a folder; None: diffusers has no such network


def one_pass(function: Callable[..., Any], outputs: Channels, *, sees: bool) -> ExportParts:
    """L, and the view of an encoder where there is one -> the answer."""
    inputs: Channels = {"L": ("L",)}
    if sees:
        inputs[VIEW] = ("L",)
    return ExportParts({"onnx": ExportGraph(function, inputs, outputs)}, {})
