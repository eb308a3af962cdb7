"""feature_networks.py and benchmarks/train_features.py: the two networks, their files, and how they are trained."""

import importlib.util
import json
import stat
import sys
import tomllib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from Project7 import feature_networks
from Project7.errors import ProjectError, UsageError
from Project7.feature_networks import (
    NETWORKS,
    SIZE,
    FeaturesMissing,
    JudgeFeatures,
    JudgeResNet,
    TinyVGG,
    folded,
    load_network,
    read_about,
    save_network,
    shipped,
)
from Project7.image_set import ImageSet
from Project7.perceptual_loss import WeightsMissing, load_perceptual

ROOT = Path(__file__).resolve().parent.parent
every_network = pytest.mark.parametrize("name", NETWORKS)


def photos(count: int = 2, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Photos (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def untrained(name: str, classes: int = 5) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name](classes)


@pytest.fixture
def files(tmp_path, monkeypatch) -> dict[str, Path]:
    """Both networks with random weights, in place of the shipped files."""
    monkeypatch.setattr(feature_networks, "WEIGHTS", tmp_path)
    for name in NETWORKS:
        save_network(tmp_path / f"{name}.safetensors", name, untrained(name), {"top1": "0.25", "data": "none"})
    return {name: shipped(name) for name in NETWORKS}


# -- the networks ----------------------------------------------------------------------------------------------------


@every_network
def test_a_network_is_small_and_answers_for_photos_as_bytes_or_as_numbers(name):
    network = NETWORKS[name]().eval()
    assert sum(p.numel() for p in network.parameters()) <= 2_000_000
    with torch.no_grad():
        logits = network(photos())
        assert logits.shape == (2, 200)
        torch.testing.assert_close(network(photos().float() / 255), logits)
        assert network(photos(1, 48)).shape == (1, 200), "squares of other sizes are trained on"


def test_without_its_norms_tiny_vgg_answers_the_same():
    torch.manual_seed(1)
    network = TinyVGG(5, norm=True)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after a training: nothing is 0 or 1
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    plain = folded(network)
    assert network.training, "it can be trained on"
    assert [type(layer) for layer in plain.features] == [type(layer) for layer in TinyVGG().features]
    with torch.no_grad():
        torch.testing.assert_close(plain(photos()), network.eval()(photos()), rtol=1e-4, atol=1e-4)


def test_what_is_compared_is_the_last_of_each_size():
    features = list(TinyVGG().features)
    ends = [n - 1 for n, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)] + [len(features) - 1]
    assert list(TinyVGG.LAYERS) == ends
    assert all(isinstance(features[n], nn.ReLU) for n in TinyVGG.LAYERS)


def test_the_judge_is_not_built_like_the_network_that_is_learnt_from():
    kinds = {name: {type(layer).__name__ for layer in NETWORKS[name]().modules()} for name in NETWORKS}
    assert kinds["judge"] & kinds["tiny-vgg"] == {"Conv2d", "Linear", "Sequential"}


def test_the_judge_sees_photos_of_any_size_at_64_pixels():
    """They are reduced as by Pillow, except for rounding of the last bit."""
    judge, large = JudgeFeatures(untrained("judge").eval()), photos(2, 128)
    pictures = [
        Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for p in large.movedim(1, -1).numpy()
    ]
    small = torch.from_numpy(np.stack(pictures)).movedim(-1, 1)
    with torch.no_grad():
        found = judge(small)
        assert found.shape == (2, judge.num_features)
        torch.testing.assert_close(found, judge.network.describe(small))
        torch.testing.assert_close(judge(large), found, rtol=0.02, atol=0.002)
        assert (judge.network.describe(large) - found).abs().max() > 0.02, "at another size it would see other things"


# -- files -----------------------------------------------------------------------------------------------------------


@every_network
def test_weights_come_back_in_half_precision_with_what_is_said_of_them(files, name):
    network = load_network(name)
    for key, tensor in untrained(name).state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor.half().float() if tensor.is_floating_point() else tensor)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert read_about(name)["top1"] == "0.25"
    weights = sum(p.numel() for p in network.parameters())
    assert files[name].stat().st_size < 2.02 * weights
    assert stat.S_IMODE(files[name].stat().st_mode) & 0o044, "others may read it: it is installed with the package"


def flip(content: bytes) -> bytes:
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


@every_network
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "There is no"),
        (lambda content: b"", "cannot be read"),
        (lambda content: content[: len(content) // 2], "cannot be read"),
        (lambda content: b"<html>please log in</html>" * 9, "cannot be read"),
        (flip, "its checksum does not match"),
    ],
)
def test_a_missing_or_damaged_file_is_said_in_one_sentence_with_the_cure(files, name, damage, said):
    path, content = files[name], files[name].read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    with pytest.raises(FeaturesMissing, match=said) as caught:
        load_network(name)
    message = str(caught.value)
    assert str(path) in message
    assert f"train_features.py --network {name}" in message
    assert "\n" not in message
    assert len(message) < 500


def test_another_network_or_a_part_of_one_is_refused(files, tmp_path):
    with pytest.raises(FeaturesMissing, match=r"does not hold the network judge \(its header says network 'tiny-vgg'"):
        load_network("judge", files["tiny-vgg"])
    part = untrained("judge")
    del part.stem
    save_network(tmp_path / "part.safetensors", "judge", part, {})
    with pytest.raises(FeaturesMissing, match="does not hold the network judge"):
        load_network("judge", tmp_path / "part.safetensors")
    one = nn.Linear(2, 2)
    save_network(tmp_path / "one.safetensors", "judge", one, {})
    with pytest.raises(FeaturesMissing, match="does not hold the network judge"):
        load_network("judge", tmp_path / "one.safetensors")


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_half_precision_cannot_hold_are_not_written(tmp_path, value):
    network = untrained("judge")
    with torch.no_grad():
        network.classifier.bias[0] = value
    with pytest.raises(ProjectError, match="NaN or infinity"):
        save_network(tmp_path / "x.safetensors", "judge", network, {})
    assert not list(tmp_path.iterdir())


def test_the_files_are_part_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["Project7.weights"]
    for name in NETWORKS:
        inside = shipped(name).relative_to(ROOT / "Project7" / "weights")
        assert any(inside.match(pattern) for pattern in patterns)


@pytest.mark.parametrize("name", [name for name in NETWORKS if shipped(name).exists()])
def test_what_is_shipped_is_whole_and_has_learnt(name):
    assert isinstance(load_network(name), NETWORKS[name])
    about = read_about(name)
    assert float(about["top1"]) > 0.3
    assert shipped(name).stat().st_size < 8e6
    assert "/" not in about["command"].removeprefix("python benchmarks/train_features.py")


# -- in the perceptual term ------------------------------------------------------------------------------------------


def test_the_perceptual_term_on_tiny_vgg(files):
    """It follows its equation on the features of this network, and its name distinguishes it from VGG16 in a log."""
    loss = load_perceptual.__wrapped__("tiny")
    assert loss.name == "tiny-vgg"
    rgb, truth = (photos(seed=seed).float() / 255 for seed in (0, 1))
    network, expected = load_network("tiny-vgg"), 0
    maps = [], []
    for found, picture in zip(maps, (rgb, truth), strict=True):
        x = feature_networks.standardize(picture)
        for layer in network.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(x)
            x = layer(x).clone()  # the ReLUs work in place
        found.append(x)
    for f, g in zip(*maps, strict=True):
        squared = 2 - 2 * nn.functional.cosine_similarity(f, g, dim=1)
        expected = expected + ((squared + 1e-4).sqrt() - 0.01).mean(dim=(1, 2))
    torch.testing.assert_close(loss(rgb, truth), expected, rtol=1e-3, atol=1e-3)
    rgb.requires_grad_()
    loss(rgb, truth).sum().backward()
    assert rgb.grad.isfinite().all()
    assert rgb.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_tiny_vgg_of_ones_own_is_another_objective(files, tmp_path):
    own = tmp_path / "own.safetensors"
    torch.manual_seed(2)
    save_network(own, "tiny-vgg", TinyVGG(3), {})
    names = {load_perceptual.__wrapped__("tiny", str(path)).name for path in (own, files["tiny-vgg"])}
    assert len(names) == 2
    assert all(name.startswith("tiny-vgg from a file (") for name in names)


def test_without_the_shipped_weights_the_other_ways_are_named(files):
    files["tiny-vgg"].unlink()
    with pytest.raises(WeightsMissing, match="There is no") as caught:
        load_perceptual.__wrapped__("tiny")
    for way in ("--perceptual-net vgg16", "--perceptual-net random", "--perceptual-weight 0"):
        assert way in str(caught.value)


# -- training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    """benchmarks/train_features.py as a module, with batches of eight."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("train_features", ROOT / "benchmarks" / "train_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    module.BATCH = 8
    return module


def red_and_blue(count: int, seed: int) -> ImageSet:
    random = np.random.default_rng(seed)
    labels = tuple(("n01", "n02")[n % 2] for n in range(count))
    images = random.integers(0, 60, (count, SIZE, SIZE, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., 0 if label == "n01" else 2] += random.integers(60, 190, dtype=np.uint8)
    return ImageSet(images, tuple(f"{n}.png" for n in range(count)), labels, f"print-{seed}", None)


def training_of(script, name: str, **settings):
    arguments = Namespace(**{"network": name, "epochs": 3, "seed": 0, "device": "cpu"} | settings)
    return script.Training(arguments, red_and_blue(24, 0), red_and_blue(10, 1))


def weights(training) -> list[torch.Tensor]:
    return list(training.network.state_dict().values())


@pytest.mark.slow
@every_network
def test_a_run_that_was_stopped_goes_on_bit_for_bit(script, name, tmp_path):
    whole, first, second = (training_of(script, name) for _ in range(3))
    for _ in range(6):
        whole.train_step()
    for _ in range(4):
        first.train_step()
    first.save(tmp_path / "c.pth")
    second.load(tmp_path / "c.pth")
    for _ in range(2):
        second.train_step()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(second), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(whole), weights(first), strict=True))


def test_a_checkpoint_of_another_run_or_none_is_refused(script, tmp_path):
    training = training_of(script, "judge")
    with pytest.raises(UsageError, match="to resume"):
        training.load(tmp_path / "c.pth")
    training.save(tmp_path / "c.pth")
    with pytest.raises(UsageError, match="seed: 0, not 1"):
        training_of(script, "judge", seed=1).load(tmp_path / "c.pth")
    (tmp_path / "c.pth").write_bytes(b"cut")
    with pytest.raises(ProjectError, match="cannot be read"):
        training.load(tmp_path / "c.pth")


def test_photos_without_classes_teach_nothing(script):
    photos = red_and_blue(8, 0)
    plain = ImageSet(photos.images, photos.names, ("",) * 8, "print", None)
    with pytest.raises(UsageError, match="no classes"):
        script.Training(Namespace(network="judge", epochs=1, seed=0, device="cpu"), plain, plain)


@pytest.mark.slow
def test_the_clock_stops_a_run_and_resume_finishes_it(script, tmp_path, monkeypatch, capsys):
    """The whole script runs on a set in the layout of Tiny ImageNet, and the network that it writes has learnt."""
    write_set(tmp_path / "set")
    output = tmp_path / "out" / "tiny-vgg.safetensors"
    flags = ["--network", "tiny-vgg", "--data", tmp_path / "set", "--output", output, "--epochs", 3]
    monkeypatch.setenv("PROJECT7_CACHE", str(tmp_path / "cache"))
    for more in (["--minutes", 0], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["train_features.py", *map(str, [*flags, *more])])
        assert not script.main()
        if "--minutes" in more:
            assert "Stopped at step 1/9" in capsys.readouterr().out
            assert [path.name for path in output.parent.iterdir()] == ["tiny-vgg.checkpoint.pth"]
    shown = capsys.readouterr().out
    assert [f"epoch {n}/3" in shown for n in (1, 2, 3)] == [True] * 3
    assert [path.name for path in output.parent.iterdir()] == ["tiny-vgg.safetensors"]
    about = read_about("tiny-vgg", output)
    assert float(about["top1"]) >= 0.9
    assert about["command"].endswith("--network tiny-vgg --epochs 3 --seed 0 --data set")
    assert about["classes"] == "n01 n02"
    with torch.no_grad():
        found = load_network("tiny-vgg", output)(torch.from_numpy(red_and_blue(10, 7).images).movedim(-1, 1))
    assert found.argmax(dim=1).tolist() == [0, 1] * 5


def write_set(folder: Path) -> None:
    training, validation = red_and_blue(24, 0), red_and_blue(10, 1)
    for image, name, label in zip(training.images, training.names, training.labels, strict=True):
        (folder / "train" / label / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "train" / label / "images" / name)
    (folder / "val" / "images").mkdir(parents=True)
    for image, name in zip(validation.images, validation.names, strict=True):
        Image.fromarray(image).save(folder / "val" / "images" / name)
    lines = [f"{name}\t{label}\t0\t0\t9\t9\n" for name, label in zip(validation.names, validation.labels, strict=True)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


@pytest.mark.parametrize(("side", "shrunk"), [(64, 1), (48, 1), (64, 2)])
def test_squares_are_mirrored_and_shifted_pieces_of_their_photo(script, side, shrunk):
    """Each square is found again by an exhaustive search in the photo, reflected beyond its edges, or in its mirror
    image."""
    images = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8)
    found = script.squares(images, side, shrunk, np.random.default_rng(3))
    assert found.shape == (6, 3, side // shrunk, side // shrunk)
    places = set()
    for photo, square in zip(images, found, strict=True):
        wide = np.pad(photo, ((script.SHIFT,) * 2, (script.SHIFT,) * 2, (0, 0)), mode="reflect")
        for mirrored, picture in enumerate((wide, wide[:, ::-1])):
            windows = torch.from_numpy(np.ascontiguousarray(picture)).movedim(-1, 0).float().unfold(1, side, 1)
            windows = windows.unfold(2, side, 1).permute(1, 2, 0, 3, 4) / 255
            pieces = nn.functional.avg_pool2d(windows.flatten(0, 1), shrunk)
            apart = (pieces - square).abs().amax(dim=(1, 2, 3))
            places |= {(mirrored, int(n)) for n in (apart < 1e-5).nonzero()}
    assert len(places) == 6, "each in its own place"
    assert {mirrored for mirrored, _ in places} == {0, 1}


def test_the_learning_rate_rises_and_falls_to_nothing(script):
    parts = np.linspace(0, 1, 1001)
    rates = [script.one_cycle(part) for part in parts]
    assert parts[int(np.argmax(rates))] == pytest.approx(script.WARMUP, abs=0.001)
    assert (rates[0], max(rates), rates[-1]) == (0, pytest.approx(1), pytest.approx(0))
    assert [script.phase_of(epoch, 6) for epoch in range(6)] == [(64, 2)] * 2 + [(48, 1)] * 2 + [(64, 1)] * 2


def test_accuracy_counts_the_first_and_the_first_five(script):
    class Fixed(nn.Module):
        def forward(self, rgb):
            return torch.tensor([[9.0, 8, 7, 6, 5, 4, 3]]).repeat(len(rgb), 1)

    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = torch.tensor([0, 0, 4, 6])
    assert script.accuracy(Fixed(), images, labels, torch.device("cpu"), 1) == (0.5, 0.75)


def test_a_header_is_text_that_any_reader_of_safetensors_shows(files):
    content = files["judge"].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["network"] == "judge"
    assert header["classifier.bias"]["dtype"] == "F16"
    assert isinstance(JudgeResNet(5), NETWORKS[header["__metadata__"]["network"]])
