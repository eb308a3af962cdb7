"""A method's export to other programs: graphs for ONNX, facts for project7.json, a function for diffusers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VIEW = "view"  # the name of the input that an encoder looks at
Channels = dict[str, tuple[str, ...]]  # channel names of each input or output, by its name; () for timesteps


class ExportGraph(NamedTuple):
    """A function of tensors (B, C, H, W) of any picture size, with the names of its channels."""

    function: Callable[..., Any]
    inputs: Channels
    outputs: Channels


class ExportParts(NamedTuple):
    graphs: dict[str, ExportGraph]  # name of the part -> graph; "onnx" is model.onnx
    facts: dict[str, Any]  # what other programs need besides the graphs
    save_for_diffusers: Callable[[Path], None] | None = None  # saves into a folder; None if it has no such network


def one_pass(function: Callable[..., Any], outputs: Channels, *, sees: bool) -> ExportParts:
    """The parts of a method that answers in one pass: L, and the view if there is an encoder -> the answer."""
    inputs: Channels = {"L": ("L",)}
    if sees:
        inputs[VIEW] = ("L",)
    return ExportParts({"onnx": ExportGraph(function, inputs, outputs)}, {})
