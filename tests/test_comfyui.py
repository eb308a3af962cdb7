"""The nodes for ComfyUI, with a stand-in for the part of its API that they use."""

import asyncio
import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from Project7.checkpoints import save_checkpoint
from Project7.color import gray
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import ProjectError
from Project7.methods import build_model
from Project7.model_config import RegressionConfig
from Project7.photo import from_array, open_photo
from Project7.photo_source import sample_photos
from Project7.training_config import DataConfig
from Project7.transfer import transfer

NODES = Path(__file__).resolve().parent.parent / "integrations" / "comfyui" / "__init__.py"


def kind_of_input(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        Input=lambda id, **how: SimpleNamespace(kind=kind, id=id, **how), Output=lambda: SimpleNamespace(kind=kind)
    )


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """The module as ComfyUI imports it, with one model in the user's folder."""
    models = tmp_path_factory.mktemp("models")
    config = RunConfig(
        model=RegressionConfig(model_channels=4, channel_multipliers=(1, 2)), data=DataConfig(image_size=16)
    )
    torch.manual_seed(0)
    (models / "project7" / "mine").mkdir(parents=True)
    state = {"model_state_dict": build_model(config.model).state_dict(), "config": config.model_dump(mode="json")}
    save_checkpoint(models / "project7" / "mine" / "best_model.pth", state)
    (models / "project7" / "mine" / "config.json").write_text(config.model_dump_json())
    io = SimpleNamespace(
        **{kind: kind_of_input(kind) for kind in ("Image", "Combo", "Int", "Float")},
        ComfyNode=type("ComfyNode", (), {}),
        Schema=SimpleNamespace,
        NodeOutput=lambda *values: SimpleNamespace(args=values),
    )
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, type("ComfyExtension", (), {})
    paths = types.ModuleType("folder_paths")
    paths.models_dir = str(models)
    stubs = {"comfy_api": types.ModuleType("comfy_api"), "comfy_api.latest": latest, "folder_paths": paths}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stubs.items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("custom_nodes_project7", NODES)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_both_nodes_are_offered_and_take_what_they_declare(nodes):
    extension = asyncio.run(nodes.comfy_entrypoint())
    offered = asyncio.run(extension.get_node_list())
    schemas = [node.define_schema() for node in offered]
    assert [schema.display_name for schema in schemas] == ["Colorize", "Transfer Chroma"]
    for node, schema in zip(offered, schemas, strict=True):
        code = node.execute.__func__.__code__
        assert code.co_varnames[1 : code.co_argcount] == tuple(given.id for given in schema.inputs)
        assert [out.kind for out in schema.outputs] == ["Image"]
    (model,) = (given for given in schemas[0].inputs if given.kind == "Combo")
    assert model.options == ["base", "base-classification", "mine"]


def test_a_batch_comes_back_in_colour_picture_by_picture(nodes):
    image = torch.rand(2, 20, 28, 3, generator=torch.Generator().manual_seed(0))
    (answer,) = nodes.Colorize.execute(image=image, model="mine", seed=3, saturation=1.5).args
    assert (answer.shape, answer.dtype) == (image.shape, torch.float32)
    mine = Colorizer.load("mine", models_dir=nodes.MODELS)
    for given, got in zip(image, answer, strict=True):
        pixels = (given * 255).round().to(torch.uint8).numpy()
        wanted = np.asarray(mine.colorize(pixels, seed=3, saturation=1.5))
        assert np.array_equal((got * 255).round().to(torch.uint8).numpy(), wanted)
    with_alpha = torch.cat([image, torch.ones(2, 20, 28, 1)], dim=-1)
    (same,) = nodes.Colorize.execute(image=with_alpha, model="mine", seed=3, saturation=1.5).args
    assert torch.equal(same, answer)


def test_chroma_of_a_copy_goes_onto_each_original(nodes):
    photo = open_photo(sample_photos()["astronaut"]).rgb
    colour = torch.from_numpy(photo)[None, ::2, ::2].float() / 255  # (1, 256, 256, 3)
    originals = gray(colour.movedim(-1, 1)).movedim(1, -1).float() / 255
    originals = torch.cat([originals, originals.flip(2)])
    copies = torch.cat([colour, colour.flip(2)])[:, ::2, ::2]
    (answer,) = nodes.TransferChroma.execute(original=originals, edited=copies).args
    assert answer.shape == originals.shape
    first, copy = (from_array((x[0] * 255).round().to(torch.uint8).numpy()) for x in (originals, copies))
    assert np.array_equal((answer[0] * 255).round().to(torch.uint8).numpy(), transfer(first, copy))
    assert (answer[1] - answer[0].flip(1)).abs().mean() < 0.01
    with pytest.raises(ProjectError, match="2 originals and 3 edited copies; give one copy per original"):
        nodes.TransferChroma.execute(original=originals, edited=copies[[0, 0, 1]])
