"""The description of a run before it begins: the model, the objective and its terms."""

import io

import pytest
from rich.console import Console

from Project7.config import RunConfig
from Project7.loss_config import LossConfig
from Project7.model_config import ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.run_summary import objective_text, run_table, warnings_of
from Project7.settings import parse_settings
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (None, "mean squared error"),
        (ObjectiveConfig(), "1 mse + 0.1 perceptual (VGG16)"),
        (ObjectiveConfig(perceptual_net="random"), "1 mse + 0.1 perceptual (random VGG16, untrained)"),
        (ObjectiveConfig(perceptual_weight=0, mse_weight=2), "2 mse"),
        (ObjectiveConfig(gan=True, perceptual_weight=0), "1 mse + 0.01 adversarial"),
        (ObjectiveConfig(stage1_epochs=1), "1 mse + 0.1 perceptual (VGG16), after 1 epoch of mse alone"),
        (ObjectiveConfig(stage1_epochs=3), "1 mse + 0.1 perceptual (VGG16), after 3 epochs of mse alone"),
    ],
)
def test_the_objective_is_said_before_the_run(tmp_path, objective, text):
    assert objective_text(RunConfig(objective=objective)) == text
    console = Console(file=io.StringIO(), width=160)
    folder = ModelFolder(tmp_path)
    console.print(run_table(folder, RunConfig(objective=objective), training=9, validation=1, device="cpu"))
    assert any(line.split() == ["objective", *text.split()] for line in console.file.getvalue().splitlines())


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ({}, "simple: 1 perceptual + 1 lab + 2 ab (alex)"),
        ({"diversity_weight": 0.01, "perceptual_weight": 0}, "simple: 1 lab + 2 ab + 0.01 diversity"),
        ({"loss": "weighted"}, "weighted: 1 ab"),
        ({"loss": "weighted", "perceptual_weight": 0.01}, "weighted: 0.01 perceptual + 1 ab (alex)"),
        ({"loss": "enhanced", "perceptual_net": "random"},
         "enhanced: 0.5 perceptual + 0.3 l + 3 ab + 0.5 saturation (random)"),
        ({"loss": "enhanced", "perceptual_weight": 0, "b_weight": 2},
         "enhanced: 0.3 l + 3 ab + 0.5 saturation, a : b = 1 : 2"),
    ],
)  # fmt: skip
def test_the_loss_of_direct_regression_is_said_before_the_run(loss, text):
    assert objective_text(RunConfig(model=RegressionConfig(), loss=LossConfig(**loss))) == text


def test_a_file_of_features_of_the_loss_is_named_before_the_run():
    """AlexNet from a file is not torchvision's, and a person who compares two runs must see that."""
    config = RunConfig(model=RegressionConfig(), loss=LossConfig(perceptual_weights="alex.pth"))
    assert "alex.pth" in objective_text(config)


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        (RegressionConfig(model_channels=8, channel_multipliers=(1, 2)), ["8 channels times 1,2", "from L to ab"]),
        (RegressionConfig(outputs="lab", fade=0.7), ["96 channels times 1,2,3,4", "from L, up to 70% faded, to Lab"]),
        (ClassificationConfig(), ["width 64, blocks 3,4,6,3", "313 colours"]),
    ],
)
def test_the_model_is_said_before_the_run(tmp_path, model, lines):
    console = Console(file=io.StringIO(), width=200)
    console.print(run_table(ModelFolder(tmp_path), RunConfig(model=model), training=9, validation=1, device="cpu"))
    assert all(line in console.file.getvalue() for line in lines)
    assert f"\n{model.method}  " in console.file.getvalue()


def test_direct_regression_without_a_loss_of_its_own_is_the_squared_error():
    assert objective_text(RunConfig(model=RegressionConfig())) == "mean squared error"


def test_brackets_in_a_path_are_no_markup(tmp_path):
    console = Console(file=io.StringIO(), width=160)
    config = RunConfig(data=DataConfig(data="/photos [raw]/[/old]"))
    console.print(run_table(ModelFolder(tmp_path), config, training=9, validation=1, device="cpu"))
    assert "from /photos [raw]/[/old]" in console.file.getvalue()


def test_a_file_of_features_is_named_before_the_run():
    """VGG16 from a file is not torchvision's, and a person who compares two runs must see that."""
    assert "vgg.pth" in objective_text(RunConfig(objective=ObjectiveConfig(perceptual_weights="vgg.pth")))


def test_feature_matching_is_said_before_the_run():
    text = objective_text(RunConfig(objective=ObjectiveConfig(gan=True, feature_matching_weight=0.5)))
    assert text.endswith("0.01 adversarial + 0.5 feature matching")


@pytest.mark.parametrize(
    ("epochs", "done", "objective", "said"),
    [
        (4, 0, {"gan": True}, "--gan-start), and there are 288"),
        (9, 0, {"gan": True}, ""),
        (9, 5, {"gan": True}, "--gan-start), and there are 288"),
        (9, 0, {"gan": True, "stage1_epochs": 5}, "--gan-start), and there are 288"),
        (4, 0, {}, ""),
    ],
)
def test_a_run_too_short_for_its_discriminator_is_said(epochs, done, objective, said):
    training = TrainingConfig(epochs=epochs, batch_size=8)
    config = RunConfig(training=training, objective=ObjectiveConfig(**objective))
    lines = warnings_of(config, training=576, processes=1, done=done)
    assert [said in line for line in lines] == [True] * bool(said)


@pytest.mark.parametrize(
    ("features", "unusual"), [("64,128,192", False), ("16,32", False), ("8", True), ("10,20", True), ("64,32", True)]
)
def test_unusual_features_are_said(features, unusual):
    config = RunConfig(model=parse_settings(DiffusionConfig, {"features": features}))
    lines = warnings_of(config, training=100, processes=1)
    assert [f"Features {features} are unusual" in line for line in lines] == [True] * unusual
