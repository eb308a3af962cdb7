"""The precision of a run: the one that was asked for, or the one that a measurement chooses."""

from types import SimpleNamespace

import pytest
import torch

from Project7 import precision
from Project7.config import RunConfig
from Project7.errors import UsageError
from Project7.methods import build_model
from Project7.model_config import ENCODER, ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.trainer import compile_networks, make_accelerator
from Project7.training_config import DataConfig, TrainingConfig

TINY = {
    "diffusion": DiffusionConfig(features=(8, 16), time_dim=16),
    "with an encoder": DiffusionConfig(
        features=(8, 16), time_dim=16, chroma_scale=4, encoder=ENCODER, encoder_size=32, head="classes", bins=8
    ),
    "classification": ClassificationConfig(width=4, blocks=(1, 1, 1, 1), bins=8),
    "regression": RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
}


def run_config(method: str = "diffusion", **training) -> RunConfig:
    return RunConfig(model=TINY[method], data=DataConfig(image_size=16), training=TrainingConfig(**training))


@pytest.mark.parametrize("asked", ["no", "bf16", "fp16"])
def test_what_was_asked_for_is_kept_unmeasured(monkeypatch, asked):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda *_: pytest.fail("nothing was to be measured"))
    config = run_config(mixed_precision=asked)
    assert precision.settle_precision(config) == (config, "")


@pytest.mark.parametrize(("gain", "choice"), [(0.8, "no"), (1.1, "no"), (1.2, "bf16"), (3.0, "bf16")])
def test_auto_takes_bfloat16_only_where_it_gains(monkeypatch, gain, choice):
    monkeypatch.setattr(precision, "bfloat16_gain", lambda *_: gain)
    config, said = precision.settle_precision(run_config(mixed_precision="auto", device="cpu"))
    assert config.training.mixed_precision == choice
    assert choice in said
    assert f"{gain:.1f}" in said


@pytest.fixture
def hopeful(monkeypatch):
    """Lets the training step be measured whatever a convolution shows."""
    monkeypatch.setattr(precision, "convolution_gain", lambda device: 1.0)


def test_a_convolution_that_is_far_slower_tells_enough(monkeypatch):
    monkeypatch.setattr(precision, "convolution_gain", lambda device: 0.05)
    monkeypatch.setattr(precision, "build_model", lambda *_: pytest.fail("nothing more was to be measured"))
    assert precision.bfloat16_gain(run_config(), torch.device("cpu")) == 0.05


def test_a_convolution_is_really_timed():
    assert 0.001 < precision.convolution_gain(torch.device("cpu")) < 1000


@pytest.mark.parametrize(
    ("chosen", "gain", "new", "said"),
    [
        ("no", 1.8, True, "--mixed-precision auto"),
        ("no", 1.8, False, None),
        ("no", 1.1, True, None),
        ("bf16", 0.05, False, "20.0 times as long"),
        ("bf16", 0.05, True, "--mixed-precision no"),
        ("bf16", 1.8, True, None),
        ("fp16", 1.8, True, None),
    ],
)
def test_a_precision_that_is_slower_here_is_said(monkeypatch, chosen, gain, new, said):
    monkeypatch.setattr(precision, "convolution_gain", lambda device: gain)
    advice = precision.advice(chosen, torch.device("cpu"), new=new)
    assert said in advice if said else advice == ""


@pytest.mark.parametrize(("supported", "choice"), [(True, "bf16"), (False, "no")])
def test_a_gpu_is_asked_whether_it_has_bfloat16(monkeypatch, supported, choice):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    monkeypatch.setattr(precision, "PartialState", lambda **_: SimpleNamespace(device=torch.device("cuda")))
    config, said = precision.settle_precision(run_config(mixed_precision="auto"))
    assert config.training.mixed_precision == choice
    assert said == f"precision: {choice} (this GPU has {'it' if supported else 'no bfloat16'})"
    assert bool(precision.advice("no", torch.device("cuda"), new=True)) == supported


@pytest.mark.parametrize("method", TINY)
def test_every_method_can_be_measured(method, hopeful):
    assert 0.01 < precision.bfloat16_gain(run_config(method), torch.device("cpu")) < 100


def test_measuring_draws_nothing_from_the_common_random_numbers(hopeful):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    precision.bfloat16_gain(run_config(), torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_both_precisions_are_really_timed(monkeypatch, hopeful):
    """The ratio is that of the best times, so that one slow step does not decide."""
    times = {torch.float32: iter([9, 4, 8, 6]), torch.bfloat16: iter([9, 2, 5, 1])}
    monkeypatch.setattr(precision, "step_seconds", lambda model, batch, dtype: next(times[dtype]))
    assert precision.bfloat16_gain(run_config(), torch.device("cpu")) == 4 / 1


def test_an_accelerator_is_not_made_of_an_unsettled_precision():
    with pytest.raises(UsageError, match="settled first"):
        make_accelerator(TrainingConfig(mixed_precision="auto", device="cpu"))


def test_compiling_is_refused_where_it_gains_nothing():
    with pytest.raises(UsageError, match="--compile is for CUDA only"):
        make_accelerator(TrainingConfig(compile=True, device="cpu"))


@pytest.mark.parametrize("method", TINY)
def test_compiled_networks_keep_the_names_of_their_weights(monkeypatch, method):
    model = build_model(TINY[method])
    names = list(model.state_dict())
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    compile_networks(model)
    assert list(model.state_dict()) == names
    inside = {id(p) for network in compiled for p in network.parameters()}
    assert inside == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("method", TINY)
def test_channels_last_changes_no_number(method):
    """Weights have this layout on CUDA, and the rest of the code must not depend on it."""
    model = build_model(TINY[method])
    if method == "classification":
        model.set_palette(precision.Palette(torch.randn(8, 2) * 30, torch.ones(8)))
    L = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    answer = lambda: model.colorize(L, generator=torch.Generator().manual_seed(1))  # noqa: E731
    before = answer()
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(answer(), before, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", ["diffusion", "regression"])
def test_a_training_step_on_cuda_waits_for_nothing(tmp_path, method):
    """There must be no transfer to the host within the step; torch raises if there is one."""
    import numpy as np

    from Project7.image_set import ImageSet
    from Project7.model_folder import ModelFolder
    from Project7.trainer import Run

    pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    images = ImageSet(pictures, ("",) * 8, ("",) * 8, "", None)
    config = run_config(method, batch_size=4, mixed_precision="bf16")
    run = Run(config, ModelFolder(tmp_path), (images, images), make_accelerator(config.training), None)
    run.objective.begin(0)
    run.state.schedule_steps = 100
    rgb = torch.from_numpy(pictures[:4])
    run.optimizer_step(4, np.arange(4), rgb)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.optimizer_step(4, np.arange(4), rgb)
    finally:
        torch.cuda.set_sync_debug_mode("default")
