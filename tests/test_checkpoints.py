"""checkpoints.py: what was saved is restored bit for bit; nothing damaged, foreign or unsafe is loaded or run."""

import io
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from Project7.atomic_file import seal, seal_holds
from Project7.checkpoints import CheckpointError, check_weights, load_checkpoint, load_model, rebuild, save_checkpoint
from Project7.config import RunConfig
from Project7.discriminator import MultiScalePatchGAN
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig

ROOT = Path(__file__).resolve().parent.parent
CONFIG = RunConfig(model=DiffusionConfig(features=(8, 16), time_dim=8, timesteps=20))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return build_model(CONFIG.model).eval()


@pytest.fixture
def checkpoint(model) -> dict:
    """A whole checkpoint whose tensors a test may change."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"epoch": 3, "model_state_dict": weights, "config": CONFIG.model_dump(mode="json")}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> bytes:
    """The bytes of best_model.pth."""
    path = tmp_path_factory.mktemp("whole") / "best_model.pth"
    save_checkpoint(
        path, {"epoch": 3, "model_state_dict": model.state_dict(), "config": CONFIG.model_dump(mode="json")}
    )
    return path.read_bytes()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "best_model.pth"


def foreign(path: Path, content: dict, *, sealed: bool = False) -> Path:
    """A file that torch.save wrote, without a checksum of ours."""
    with open(path, "w+b") as file:
        torch.save(content, file)
        if sealed:
            seal(file)
    return path


def refusal(path: Path, load=load_checkpoint) -> str:
    """The message of a refused loading, which names the file and what is wrong."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert caught.value.exit_code == 1
    return str(caught.value)


def one_line(path: Path) -> str:
    """A refusal as a person sees it: one line, and no warning of torch."""
    with warnings.catch_warnings(action="error"):
        message = refusal(path)
    assert "\n" not in message
    return message.removeprefix(str(path))


def colours(model: nn.Module) -> torch.Tensor:
    L = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16)  # (1, 1, H, W)
    return model.colorize(L, generator=torch.Generator().manual_seed(3), steps=2)  # (1, 2, H, W)


# -- what was saved comes back ---------------------------------------------------------------------------------------


def test_a_loaded_model_gives_the_same_colours_bit_for_bit(model, path, whole):
    path.write_bytes(whole)
    loaded, config = load_model(path)
    assert config == CONFIG
    assert torch.equal(colours(loaded), colours(model))
    assert not torch.equal(colours(loaded), colours(build_model(CONFIG.model).eval())), "an untrained one gives others"


def test_a_loaded_model_is_ready_to_colour(path, whole):
    path.write_bytes(whole)
    loaded, _ = load_model(path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert {t.device.type for t in [*loaded.parameters(), *loaded.buffers()]} == {"cpu"}, "nothing is left on meta"


def test_everything_in_a_checkpoint_comes_back(path, checkpoint):
    checkpoint |= {"history": [{"val_loss": None}], "best_val_loss": 0.5, "progress": {"step": 7, "sums": {}}}
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    weights, expected = loaded.pop("model_state_dict"), checkpoint.pop("model_state_dict")
    assert loaded == {"format": 1, **checkpoint}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    with open(path, "rb") as file:
        assert seal_holds(file) is True


def test_a_discriminator_and_its_optimizer_come_back_and_do_not_hinder_colouring(model, path, checkpoint):
    """All keys of the source document are there; the parametrizations of spectral norm hold buffers, too."""
    critic = MultiScalePatchGAN(16, width=8)
    optimizer = torch.optim.AdamW(critic.parameters(), fused=True)
    answers = critic(torch.zeros(1, 1, 16, 16), torch.zeros(1, 2, 16, 16))
    answers[0][-1].mean().backward()
    optimizer.step()
    states = {
        "discriminator_state_dict": critic.state_dict(),
        "discriminator_optimizer_state_dict": optimizer.state_dict(),
    }
    weights = {"mse_weight": 1.0, "perceptual_weight": 0.1, "adversarial_weight": 0.01, "use_gan": True}
    losses = {"train_loss": 0.4, "val_loss": 0.6, "best_val_loss": 0.5}
    save_checkpoint(path, checkpoint | losses | {"optimizer_state_dict": {}, "loss_state_dict": weights | states})

    loaded = load_checkpoint(path)["loss_state_dict"]
    assert {name: loaded[name] for name in weights} == weights
    again = MultiScalePatchGAN(16, width=8)
    again.load_state_dict(loaded["discriminator_state_dict"])
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in critic.state_dict().items())
    moments = loaded["discriminator_optimizer_state_dict"]["state"]
    assert all(torch.equal(m["exp_avg"], optimizer.state_dict()["state"][k]["exp_avg"]) for k, m in moments.items())
    assert len(moments) == 10
    assert torch.equal(colours(load_model(path)[0]), colours(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(path, checkpoint, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in checkpoint["model_state_dict"].items()}
    save_checkpoint(path, checkpoint | {"model_state_dict": weights})
    loaded, _ = load_model(path)
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in loaded.state_dict().items())
    assert colours(loaded).isfinite().all()


def test_a_foreign_file_without_a_checksum_loads(path, checkpoint, model):
    foreign(path, checkpoint)
    assert torch.equal(colours(load_model(path)[0]), colours(model))


# -- saving ----------------------------------------------------------------------------------------------------------


def test_weights_saved_out_of_torch_compile_have_the_same_names(path, checkpoint, model):
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in checkpoint["model_state_dict"].items()}
    foreign(path, {**checkpoint, "model_state_dict": wrapped})
    assert torch.equal(colours(load_model(path)[0]), colours(model))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["model_state_dict", "raw_state_dict"])
def test_weights_that_are_no_numbers_are_never_saved(path, checkpoint, whole, key, number):
    path.write_bytes(whole)
    bad = {name: tensor.clone() for name, tensor in checkpoint["model_state_dict"].items()}
    next(iter(bad.values())).view(-1)[-1] = number
    with pytest.raises(CheckpointError, match="was not written: the weights hold NaN or infinity"):
        save_checkpoint(path, checkpoint | {key: bad})
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == [path.name]


SAVE_TWICE = """
import resource, sys
import torch
from Project7.checkpoints import save_checkpoint
from Project7.program import run
def main():
    checkpoint = {"model_state_dict": {"w": torch.zeros(100_000)}, "config": {}}
    save_checkpoint(sys.argv[1], checkpoint)
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    checkpoint["model_state_dict"]["w"] += 1
    save_checkpoint(sys.argv[1], checkpoint)
sys.exit(run(main))
"""


@pytest.mark.parametrize("accident", ["kill", "full"])
def test_a_kill_or_a_full_disk_leaves_the_old_model(path, accident):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    if accident == "kill":
        environment["PROJECT7_FAULT"] = "before-rename:2"
    command = [sys.executable, "-c", SAVE_TWICE, str(path), accident]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    assert load_checkpoint(path)["model_state_dict"]["w"].abs().max() == 0
    if accident == "kill":
        assert result.returncode == -signal.SIGKILL
        return
    assert os.listdir(path.parent) == [path.name]
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"{path} could not be written" in result.stderr
    assert "4,096 bytes" in result.stderr


def test_ctrl_c_inside_a_save_leaves_the_old_model(path, checkpoint, whole, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    path.write_bytes(whole)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == whole
    assert os.listdir(path.parent) == [path.name]


def test_a_reader_sees_whole_models_while_a_trainer_replaces_them(path):
    """There are 30 replacements, and all tensors of one save hold its number."""

    def content(number: int) -> dict:
        return {"model_state_dict": {n: torch.full((20_000,), float(number)) for n in "abc"}, "config": {}}

    def write():
        for number in range(1, 31):
            save_checkpoint(path, content(number))

    save_checkpoint(path, content(0))
    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while writer.is_alive() or not seen or seen[-1] != 30:
        values = torch.cat(list(load_checkpoint(path)["model_state_dict"].values())).unique().tolist()
        assert len(values) == 1
        seen += values
    writer.join()
    assert seen == sorted(seen)


# -- pickles that run code -------------------------------------------------------------------------------------------


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def as_zip(content: dict, path: Path) -> None:
    torch.save(content, path)


def as_sealed_zip(content: dict, path: Path) -> None:
    foreign(path, content, sealed=True)


def as_legacy(content: dict, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_raw_pickle(content: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def as_newest_pickle(content: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=5))


def as_text_pickle(content: dict, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=0))


def as_legacy_tar(content: dict, path: Path) -> None:
    """The format of torch 0.1: a tar archive of pickles."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            data = pickle.dumps(content if name == "pickle" else 0, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


FORMS = [as_zip, as_sealed_zip, as_legacy, as_raw_pickle, as_newest_pickle, as_text_pickle, as_legacy_tar]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["whole", "weights", "beside", "discriminator"])
def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, path, form, place):
    marker = tmp_path / "marker"
    evil = Malicious(marker)
    content = {"model_state_dict": {"w": torch.zeros(2)}, "config": {}}
    content = {
        "whole": evil,
        "weights": content | {"model_state_dict": evil},
        "beside": content | {"note": evil},
        "discriminator": content | {"loss_state_dict": {"discriminator_state_dict": {"w": evil}}},
    }[place]
    form(content, path)
    one_line(path)
    assert not marker.exists()


@pytest.mark.parametrize("form", [as_zip, as_legacy, as_raw_pickle])
def test_the_same_pickle_would_have_run(tmp_path, path, form):
    """Without weights_only it runs, so the test above can fail."""
    form(Malicious(tmp_path / "marker"), path)
    if form is as_raw_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "marker").exists()


def test_a_file_that_could_run_code_is_called_that(tmp_path, path):
    as_zip({"model_state_dict": Malicious(tmp_path / "marker"), "config": {}}, path)
    assert "could run code" in one_line(path)


@pytest.mark.parametrize("form", [as_zip, as_legacy])
def test_a_whole_module_is_refused(path, form):
    form(nn.Linear(2, 2), path)
    assert "could run code" in one_line(path)


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused(path, whole, kept):
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    one_line(path)


def test_a_file_that_lost_only_its_end_is_refused(path, whole):
    accepted = []
    for lost in (1, 2, 10, 63, 64, 70, 71, 72, 80, 92, 93, 94, 100):
        path.write_bytes(whole[:-lost])
        try:
            load_checkpoint(path)
            accepted.append(lost)
        except CheckpointError:
            pass
    assert not accepted, "bytes cut from the end"


def test_one_flipped_bit_is_a_checksum_error(path, whole):
    size = len(whole)
    for at in [0, 1, *range(size // 100, size, size // 100), *range(size - 100, size, 9), size - 1]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert "is damaged: its checksum does not match" in one_line(path), f"bit {at % 8} of byte {at} of {size}"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_without_a_checksum_loads_or_is_refused(path, legacy):
    """There are 400 seeded mutations: torch raises many kinds of errors for them, and none of them gets out."""
    buffer = io.BytesIO()
    content = {
        "model_state_dict": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)},
        "config": {"a": [1, ""]},
    }
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    seeded, refusals, leaks = random.Random(1), set(), set()
    for _ in range(400):
        damaged = bytearray(buffer.getvalue())
        for _ in range(seeded.choice([1, 2, 8])):
            damaged[seeded.randrange(len(damaged))] = seeded.randrange(256)
        path.write_bytes(damaged)
        try:
            with warnings.catch_warnings(action="ignore"):
                load_checkpoint(path)
        except CheckpointError as error:
            refusals.add(str(error))
        except Exception as error:
            leaks.add(type(error).__name__)
    assert not leaks
    assert len(refusals) > 1
    assert "\n" not in "".join(refusals)


# -- not a checkpoint at all -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
        (b"\n  <HTML>\n<head>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n", "is a Git LFS pointer"),
        (b"\xef\xbb\xbf<!doctype html><html><body>Sign in</body></html>", "is a web page"),
        (b'{"error": "not found", "status": 404}', "is JSON"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(99), "is a picture"),
        (b"x", "has only a few bytes"),
        (safetensors.torch.save({"w": torch.zeros(3)}), "is a safetensors file"),
    ],
    ids=["empty", "html", "HTML", "xml", "lfs", "html with a mark", "json", "jpeg", "one byte", "safetensors"],
)
def test_what_is_no_checkpoint_is_named_for_what_it_is(path, content, said):
    path.write_bytes(content)
    assert one_line(path).startswith(f" {said}")


def test_a_small_file_that_fills_the_memory_is_refused_before_it_is_read(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(64 << 20))
    assert "and would take 67,108,864 in memory" in one_line(path)


@pytest.mark.parametrize("content", [b"a few words\n" * 9, b"\x89PNG\r\n\x1a\n" + bytes(99), b"\x1f\x8b\x08" * 9])
def test_any_other_file_is_refused(path, content):
    path.write_bytes(content)
    one_line(path)


def test_a_zip_of_something_else_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.png", b"picture")
    one_line(path)


def test_a_missing_file_and_a_folder_are_refused(path):
    assert one_line(path) == " does not exist."
    path.mkdir()
    assert " cannot be read: Is a directory" in one_line(path)


@pytest.mark.parametrize("content", [[], 3, {"a": 1}, {"model_state_dict": {}}, {"state_dict": {}}, torch.zeros(3)])
def test_a_file_of_another_toolkit_is_refused(path, content):
    assert "is not a model of this toolkit: it has no " in one_line(foreign(path, content))


@pytest.mark.parametrize("config", [None, 3, {"model": {"features": [10**6]}}, {"model": {"colour": 1}}])
def test_a_checkpoint_with_a_bad_config_is_refused(path, checkpoint, config):
    foreign(path, checkpoint | {"config": config}, sealed=True)
    with pytest.raises(Exception, match="is not a configuration of this toolkit") as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code in (1, 2)


# -- weights that do not fit -----------------------------------------------------------------------------------------


def test_an_expanded_view_of_a_million_million_elements_is_refused(path, checkpoint):
    checkpoint["model_state_dict"]["unet.conv_in.bias"] = torch.zeros(1).expand(10**6, 10**6)
    foreign(path, checkpoint, sealed=True)
    assert path.stat().st_size < 1e6
    message = refusal(path, load_model)
    assert "1 misshapen: unet.conv_in.bias (1000000, 1000000) instead of (8,)" in message


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_never_served(path, checkpoint, number):
    checkpoint["model_state_dict"]["unet.conv_in.bias"][3] = number
    foreign(path, checkpoint, sealed=True)
    assert "hold NaN or infinity" in refusal(path, load_model)


def test_weights_that_overflow_are_never_served(path, checkpoint):
    checkpoint["model_state_dict"]["unet.conv_in.bias"] = torch.full((8,), 1e300, dtype=torch.float64)
    foreign(path, checkpoint, sealed=True)
    assert "hold NaN or infinity" in refusal(path, load_model)


def test_weights_that_do_not_fit_are_summed_up_in_at_most_five_lines(path, checkpoint):
    weights = checkpoint["model_state_dict"]
    names = list(weights)
    for name in names[:4]:
        del weights[name]
    for name in names[4:7]:
        weights[name] = torch.zeros(1, 2, 3)
    weights |= {f"extra.{i}": torch.zeros(1) for i in range(200)}
    lines = refusal(foreign(path, checkpoint), load_model).splitlines()
    assert len(lines) <= 5
    text = "\n".join(lines)
    assert f"4 missing: {names[0]} ..." in text
    assert "200 unexpected: extra.0 ..." in text
    assert f"3 misshapen: {names[4]} (1, 2, 3) instead of " in text
    assert max(map(len, lines)) < 300


@pytest.mark.parametrize("kind", ["missing", "unexpected", "misshapen"])
def test_one_weight_that_does_not_fit_is_enough(path, checkpoint, kind):
    weights = checkpoint["model_state_dict"]
    if kind == "missing":
        del weights["unet.conv_in.bias"]
    elif kind == "unexpected":
        weights["unet.conv_in.scale"] = torch.ones(8)
    else:
        weights["unet.conv_in.bias"] = torch.zeros(9)
    message = refusal(foreign(path, checkpoint), load_model)
    assert f"1 {kind}: unet.conv_in." in message
    assert "..." not in message.splitlines()[-1]


def test_the_weights_of_another_architecture_are_refused(path, checkpoint):
    other = RunConfig(model=DiffusionConfig(features=(8, 24), time_dim=8, timesteps=20))
    foreign(path, checkpoint | {"config": other.model_dump(mode="json")})
    assert " misshapen: " in refusal(path, load_model)


@pytest.mark.parametrize("weights", [None, [], {"a": 1}, {"a": [torch.zeros(1)]}])
def test_weights_that_are_no_tensors_are_refused(path, checkpoint, weights):
    foreign(path, checkpoint | {"model_state_dict": weights})
    assert "model_state_dict is not a dict of" in refusal(path, load_model)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(8).to_sparse(), torch.zeros(8, device="meta"), torch.zeros(8, dtype=torch.complex64)],
    ids=["sparse", "meta", "complex"],
)
def test_tensors_of_a_kind_that_no_model_holds_are_refused(path, checkpoint, tensor):
    checkpoint["model_state_dict"]["unet.conv_in.bias"] = tensor
    refusal(foreign(path, checkpoint), load_model)


def test_a_model_is_not_changed_by_weights_that_are_refused(model, checkpoint):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint["model_state_dict"]["unet.conv_in.bias"][0] = float("nan")
    with pytest.raises(CheckpointError):
        check_weights(model, checkpoint["model_state_dict"], "f")
    with pytest.raises(CheckpointError):
        rebuild(CONFIG, checkpoint["model_state_dict"], "f")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
