"""A fourth method is its own module, its settings, two lines (methods.py, model_config.py) and a recipe, and nothing
else. The package is copied and a toy method is added (every photo gets one learnt colour); the public programs train,
resume, diagnose, evaluate, export and colour with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

MODULE = '''
"""ConstantColorizer: one colour for everything."""

import torch
from torch import nn

from Project7.batch import Estimate, Step
from Project7.export_parts import one_pass


class ConstantColorizer(nn.Module):
    OPTIONS = ()
    LOSS = "mse"
    METRICS = ()

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.ab = nn.Parameter(torch.zeros(2))
        with torch.device("cpu"):
            for name in ("ab_mean", "ab_std"):
                self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)

    @staticmethod
    def first_weights(config, make_palette):
        return {}

    def comparison_options(self):
        return {}

    def shown(self, L, random):
        return L

    def look(self, view):
        return None

    def export_parts(self):
        return one_pass(lambda L: self.answer(L), {"ab": ("a", "b")}, sees=False)

    def answer(self, L):
        return self.ab[None, :, None, None] + torch.zeros_like(L).expand(-1, 2, -1, -1)

    def forward(self, batch):
        ab_hat = self.answer(batch.L)
        mse = (ab_hat - batch.ab).square().mean(dim=(1, 2, 3))
        estimate = Estimate(ab_hat, batch.ab, batch.L, torch.ones_like(mse.detach())) if batch.image_share else None
        return Step(mse, {"mse": mse.detach()}, estimate)

    @torch.no_grad()
    def colorize(self, L, *, generator=None, hints=None, maps=None):
        return self.answer(L)
'''

SETTINGS = '''
class ConstantConfig(BaseModel):
    """One colour for everything."""

    model_config = SETTINGS
    SCRIPTS: ClassVar = ("train_constant.py",)
    UNIT_TARGETS: ClassVar = False

    method: Literal["constant"] = "constant"
    encoder: str | None = None
    ab_mean: Pair = setting((2.1, 8.9), "a and b that the network sees as 0")
    ab_std: Pair = setting((12.6, 17.7), "a and b that the network sees as 1")

    def fitted(self, image_size, given):
        return self

    @property
    def own_loss(self):
        return "mse"

    def loss_in_words(self):
        return "mean squared error"

    def network_in_words(self):
        return "one colour"

    def method_in_words(self):
        return "the same for every photo"

    def colour_cure(self, run, name, slower):
        return slower

    def calmer_cure(self):
        return "nothing"

    def wider_cure(self):
        return "another method"


METHOD_CONFIGS: '''

RECIPE = '''
"""Recipe: one colour for everything."""

import sys

from Project7 import program, recipe
from Project7.config import SECTIONS
from Project7.model_config import ConstantConfig


def main(argv=None):
    return recipe.main(recipe.Recipe("train_constant.py", "One colour.", SECTIONS | {"model": ConstantConfig}), argv)


if __name__ == "__main__":
    sys.exit(program.run(main))
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with the toy in it."""
    root = tmp_path_factory.mktemp("house")
    package = shutil.copytree(ROOT / "Project7", root / "Project7", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "constant_model.py").write_text(MODULE)
    (package / "train_constant.py").write_text(RECIPE)
    config = (package / "model_config.py").read_text().replace("METHOD_CONFIGS: ", SETTINGS, 1)
    config = config.replace(
        '"diffusion": DiffusionConfig,', '"diffusion": DiffusionConfig,\n    "constant": ConstantConfig,'
    )
    (package / "model_config.py").write_text(config)
    methods = (package / "methods.py").read_text()
    line = "METHODS: dict[str, Any] = {"
    assert line in methods
    methods = methods.replace(line, line + '\n    "constant": ConstantColorizer,', 1)
    methods = methods.replace(
        "from Project7.class", "from Project7.constant_model import ConstantColorizer\nfrom Project7.class"
    )
    (package / "methods.py").write_text(methods)
    photos = root / "photos"
    photos.mkdir()
    for n in range(12):
        orange = np.array([230, 140, 40]) + np.random.default_rng(n).integers(-15, 15, (24, 24, 3))
        Image.fromarray(orange.astype(np.uint8)).save(photos / f"{n}.png")
    return root


def run(house: Path, *arguments: str, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(house), "PROJECT7_CACHE": str(house / "cache")}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == code, result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_fourth_method_needs_nothing_else(house):
    train = ("-m", "Project7.train_constant", "--models-dir", "models", "--yes")
    settings = ("--image-size", "24", "--batch-size", "4", "--learning-rate", "0.05", "--warmup-steps", "0")
    shown = run(house, *train, "--name", "toy", "--data", "photos", *settings, "--ema-decay", "0.5", "--epochs", "8")
    assert "one colour" in shown
    assert "the same for every photo" in shown
    run(house, *train, "--resume", "toy", "--epochs", "2")
    history = json.loads((house / "models" / "toy" / "training_history.json").read_text())
    assert len(history) == 10
    assert history[-1]["val_loss"] < 0.5 * history[0]["val_loss"]
    said = run(house, "-m", "Project7", "doctor", "toy", "--models-dir", "models", code=1)
    assert "toy" in said
    assert "bold" in said, "a learning rate 500 times the usual, which two weights can bear"
    cli = ("-m", "Project7")
    run(house, *cli, "evaluate", "--model", "toy", "--models-dir", "models", "--data", "photos", "--json", "r.json")
    rows = {row["model"]: row for row in json.loads((house / "r.json").read_text())["rows"]}
    assert rows["toy"]["ab_rmse"] < 0.5 * rows["gray"]["ab_rmse"]
    run(house, *cli, "colorize", "photos/3.png", "--model", "toy", "--models-dir", "models", "--output", "out")
    found = np.asarray(Image.open(house / "out" / "3.png")).mean(axis=(0, 1))
    assert found[0] > found[1] + 30 > found[2] + 60  # orange
    run(house, *cli, "export", "toy", "--models-dir", "models", "--to", "exported")
    assert (house / "exported" / "model.onnx").exists()
    refused = ("-m", "Project7.train_diffusion", "--models-dir", "models", "--resume", "toy", "--epochs", "1")
    run(house, *refused, code=2)
