"""Nodes for ComfyUI: Colorize and Transfer Chroma. README.md says how to install them.

ComfyUI's IMAGE is a float tensor (B, H, W, 3) in [0, 1]; each picture of the batch is coloured separately.
"""

import functools
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

from Project7 import Colorizer, model_folder
from Project7.errors import UsageError
from Project7.photo import from_array
from Project7.transfer import transfer

MODELS = (
    Path(folder_paths.models_dir) / "project7"
)  # your own models; those that come with the toolkit are always there
CATEGORY = "image/colour"


@functools.lru_cache(maxsize=2)
def colorizer(model: str) -> Colorizer:
    return Colorizer.load(model, models_dir=MODELS)


def model_names() -> list[str]:
    found = {model.name for model in [*model_folder.shipped_models(), *model_folder.list_models(MODELS)]}
    return sorted(found, key=lambda name: (name != "base", name))


def to_arrays(image: torch.Tensor) -> list[np.ndarray]:
    """(B, H, W, 3 or 4) in [0, 1] -> B pictures (H, W, 3) of uint8, without alpha."""
    return list((image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def to_image(pictures: list) -> torch.Tensor:
    """Pictures of the same size, from Pillow or as (H, W, 3) uint8 -> (B, H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).float() / 255


class Colorize(io.ComfyNode):
    """Colours gray pictures, and keeps their lightness."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Project7Colorize",
            display_name="Colorize",
            category=CATEGORY,
            description="Colours gray pictures. Their lightness is kept; another seed gives other colours.",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("model", options=model_names()),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=True),
                io.Float.Input("saturation", default=1.0, min=0.0, max=2.0, step=0.05),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, model: str, seed: int, saturation: float) -> io.NodeOutput:
        pictures = colorizer(model).colorize(to_arrays(image), seed=seed, saturation=saturation)
        return io.NodeOutput(to_image(pictures))


class TransferChroma(io.ComfyNode):
    """Gives the original the colours of an edited copy, and keeps its lightness."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Project7TransferChroma",
            display_name="Transfer Chroma",
            category=CATEGORY,
            description="Gives the original the colours of an edited copy of any size. The detail and the lightness of "
            "the original stay as they were, whatever the editor did to them.",
            inputs=[io.Image.Input("original"), io.Image.Input("edited")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, original: torch.Tensor, edited: torch.Tensor) -> io.NodeOutput:
        if len(edited) not in (1, len(original)):
            raise UsageError(
                f"There are {len(original)} originals and {len(edited)} edited copies; give one copy per original, or "
                "one for all."
            )
        copies = to_arrays(edited.expand(len(original), -1, -1, -1))
        pairs = zip(to_arrays(original), copies, strict=True)
        return io.NodeOutput(to_image([transfer(from_array(first), from_array(copy)) for first, copy in pairs]))


class Project7(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Colorize, TransferChroma]


async def comfy_entrypoint() -> Project7:
    return Project7()
