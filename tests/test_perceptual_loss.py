"""perceptual_loss.py: torchvision's VGG16 to the bit, a distance with gradients everywhere, and no silent fallback."""

import os
import pickle
import socket
import urllib.error
import urllib.request

import pytest
import torch
import torchvision
from torch import Tensor, nn

from Project7 import color, perceptual_loss
from Project7.perceptual_loss import PerceptualLoss, WeightsMissing, load_perceptual

load = (
    load_perceptual.__wrapped__
)  # without its cache: what is in a file or behind the network differs from test to test
AB_MEAN, AB_STD = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])
FILE_NAME = "vgg16-397923af.pth"  # as torchvision's cache calls it
THE_THREE_WAYS = ("--perceptual-weights FILE", "--perceptual-net random", "--perceptual-weight 0")


@pytest.fixture(scope="module")
def vgg16() -> nn.Sequential:
    """torchvision's own vgg16().features with random weights; its classifier's 120 M weights stay imaginary."""
    with torch.device("meta"):
        features = torchvision.models.vgg16(init_weights=False).features
    features = features.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
    return features


@pytest.fixture(scope="module")
def state(vgg16) -> dict[str, Tensor]:
    """What torchvision's file holds, by name and shape: `features.*` and `classifier.*`."""
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(init_weights=False).state_dict()
    one = torch.full((1,), torch.nan)  # stretched to any shape it takes four bytes; and whoever reads it has NaN
    weights = {f"features.{name}": tensor for name, tensor in vgg16.state_dict().items()}
    return {name: weights.get(name, one.expand(tensor.shape)) for name, tensor in shapes.items()}


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def untrained() -> PerceptualLoss:
    return load_perceptual("random")


def pictures(count: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def same_features(loss: PerceptualLoss, other: PerceptualLoss) -> bool:
    return all(torch.equal(a, b) for a, b in zip(loss.parameters(), other.parameters(), strict=True))


def refusal(*arguments) -> str:
    """What load_perceptual says: one sentence or two, on one line, with the three ways on."""
    with pytest.raises(WeightsMissing) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(way in message for way in THE_THREE_WAYS)
    assert FILE_NAME in message
    assert caught.value.exit_code == 1
    return message


# ---- the network


def test_the_features_are_those_of_torchvision(vgg16, file):
    """relu1_2, relu2_2, relu3_3 and relu4_3 stand after the second, fourth, seventh and tenth convolution."""
    loss, rgb = load("vgg16", file), pictures(2, 32)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    x, after, expected = (rgb - mean) / std, 0, []
    for layer in vgg16:
        x = layer(x)
        after += isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.ReLU) and after in (2, 4, 7, 10):
            expected.append(x.clone())  # a ReLU in place may follow
    found = loss.extract(rgb)
    assert [tuple(f.shape[1:]) for f in found] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_the_positions_are_torchvisions(vgg16):
    ours = perceptual_loss.make_features()
    for layer, theirs in zip(ours, vgg16, strict=False):  # ours ends with relu4_3
        assert str(layer).split("(")[0] == str(theirs).split("(")[0]
    assert len(ours) == 23
    names = {"features." + name for name in ours.state_dict()}
    assert names == {
        f"features.{i}.{kind}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21) for kind in ("weight", "bias")
    }


def test_the_mean_and_spread_are_those_that_torchvisions_weights_expect(untrained):
    preset = torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()
    torch.testing.assert_close(untrained.mean.flatten(), torch.tensor(preset.mean))
    torch.testing.assert_close(untrained.std.flatten(), torch.tensor(preset.std))


def test_the_address_is_torchvisions():
    assert torchvision.models.VGG16_Weights.IMAGENET1K_V1.url == perceptual_loss._URL


def test_the_untrained_network_is_the_same_every_time_and_named_so():
    torch.manual_seed(1)
    first = load("random")
    torch.manual_seed(2)
    assert same_features(load("random"), first)
    assert "untrained" in first.name
    assert "random" in first.name
    assert float(first.features[21].weight.std()) == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)  # He et al. 2015


def test_it_is_loaded_once(untrained):
    assert load_perceptual("random") is untrained


# ---- the distance


def test_a_picture_is_at_no_distance_from_itself(untrained):
    rgb = pictures()
    assert untrained(rgb, rgb).tolist() == [0, 0]


def test_the_distance_is_symmetric_and_each_samples_own(untrained):
    rgb, other = pictures(3), pictures(3, seed=1)
    there = untrained(rgb, other)
    assert there.shape == (3,)
    assert (there > 0.1).all()
    torch.testing.assert_close(untrained(other, rgb), there)
    torch.testing.assert_close(untrained(rgb[1:2], other[1:2]), there[1:2])
    mixed = untrained(torch.cat([rgb[:1], other[1:]]), torch.cat([rgb[:1], rgb[1:]]))
    assert mixed[0] == 0
    torch.testing.assert_close(mixed[1:], there[1:])


def test_the_distance_by_its_equation(untrained):
    """The distance d of two unit features, d^2 = 2 - 2 cos, by places and layers, rounded off below 0.01."""
    rgb, other = pictures(2, 32), pictures(2, 32, seed=1)
    expected = 0
    for f, g in zip(untrained.extract(rgb), untrained.extract(other), strict=True):
        squared = 2 - 2 * nn.functional.cosine_similarity(f, g, dim=1)
        expected = expected + ((squared + 1e-4).sqrt() - 0.01).mean(dim=(1, 2))
    torch.testing.assert_close(untrained(rgb, other), expected, rtol=1e-3, atol=1e-4)
    assert (untrained(rgb, other) <= 8).all()


def chroma_and_its_distance(loss: PerceptualLoss, L: Tensor, ab: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    ab = ab.clone().requires_grad_()
    distance = loss.of_chroma(L, ab, truth, AB_MEAN, AB_STD)
    distance.sum().backward()
    return ab.grad, distance.detach()


@pytest.mark.parametrize("kind", ["random", "file"])
def test_the_distance_grows_with_the_error_of_colour(kind, file):
    loss = load("random") if kind == "random" else load("vgg16", file)
    L, truth = color.split(pictures(2, 32) * 0.4 + 0.3, AB_MEAN, AB_STD)
    hue = torch.tensor([1.0, -1.0])[:, None, None]
    with torch.no_grad():
        errors = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)
        distances = torch.stack([loss.of_chroma(L, truth + e * hue, truth, AB_MEAN, AB_STD) for e in errors])
    assert distances[0].max() == 0
    assert (distances.diff(dim=0) > 0).all()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("tint", [0.0, 30.0, -110.0, 120.0], ids=["neutral", "tinted", "green", "red"])
@pytest.mark.parametrize("lightness", [-1.0, 0.0, 1.0], ids=["black", "gray", "white"])
def test_gradients_are_finite_and_there_at_every_colour(untrained, lightness, tint, precision):
    """At black and white the cube and the sRGB curve have their corners; ab of 110 and more is far out of gamut."""
    L = torch.full((1, 1, 16, 16), lightness)
    ab = (torch.full((1, 2, 16, 16), tint) - AB_MEAN[:, None, None]) / AB_STD[:, None, None]
    truth = ab.roll(1, dims=1) * 0.5 + 1
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        gradient, distance = chroma_and_its_distance(untrained, L, ab, truth)
    assert distance.dtype == torch.float32
    assert distance > 0
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()  # in a and in b


@pytest.mark.parametrize("value", [1e3, -1e3, 1e6])
@pytest.mark.parametrize("lightness", [-1.0, 0.0, 1.0])
def test_an_estimate_that_is_no_colour_at_all_is_finite_too(untrained, lightness, value):
    L, ab = torch.full((1, 1, 16, 16), lightness), torch.full((1, 2, 16, 16), value)
    gradient, distance = chroma_and_its_distance(untrained, L, ab, torch.zeros_like(ab))
    assert distance.isfinite().all()
    assert gradient.isfinite().all()


def test_no_colour_lies_beyond_128(untrained):
    """Or one wild pixel would be all that a layer sees."""
    L, truth = color.split(pictures(), AB_MEAN, AB_STD)
    within, far = (
        untrained.of_chroma(
            L, (ab - AB_MEAN[:, None, None]) / AB_STD[:, None, None] + 0 * truth, truth, AB_MEAN, AB_STD
        )
        for ab in (torch.tensor([128.0, -128.0])[:, None, None], torch.tensor([5000.0, -300.0])[:, None, None])
    )
    torch.testing.assert_close(far, within, rtol=1e-3, atol=1e-4)


def test_features_of_nothing_are_nothing_and_their_gradient_is_finite():
    features = torch.zeros(2, 5, 3, 3, requires_grad=True)
    found = perceptual_loss.unit(features)
    found.sum().backward()
    assert not found.any()
    assert features.grad.isfinite().all()


def test_the_gradient_at_the_truth_is_nothing_and_not_nan(untrained):
    L, truth = color.split(pictures(), AB_MEAN, AB_STD)
    gradient, distance = chroma_and_its_distance(untrained, L, truth, truth)
    assert distance.tolist() == [0, 0]
    assert not gradient.any()


def test_bf16_is_near_float32(untrained):
    L, truth = color.split(pictures(2, 32), AB_MEAN, AB_STD)
    exact_gradient, exact = chroma_and_its_distance(untrained, L, truth * 0.2, truth)
    with torch.autocast("cpu", torch.bfloat16):
        gradient, distance = chroma_and_its_distance(untrained, L, truth * 0.2, truth)
    torch.testing.assert_close(distance, exact, rtol=0.05, atol=1e-3)
    assert torch.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.9


def test_colours_walk_towards_the_truth(untrained):
    """The gradient is of use: following it alone brings a gray picture nearer to its colours."""
    L, truth = color.split(pictures(1, 16) * 0.4 + 0.3, AB_MEAN, AB_STD)
    ab = torch.zeros_like(truth, requires_grad=True)
    optimizer = torch.optim.Adam([ab], lr=0.1)
    distances = []
    for _ in range(12):
        loss = untrained.of_chroma(L, ab, truth, AB_MEAN, AB_STD).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert distances[-1] < 0.7 * distances[0]


def test_the_network_is_frozen(untrained):
    L, truth = color.split(pictures(), AB_MEAN, AB_STD)
    chroma_and_its_distance(untrained, L, truth * 0, truth)
    assert not untrained.training
    for parameter in untrained.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_the_truth_gets_no_gradient(untrained):
    truth = pictures(seed=1).requires_grad_()
    rgb = pictures().requires_grad_()
    untrained(rgb, truth).sum().backward()
    assert truth.grad is None
    assert rgb.grad.any()


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (13, 9), (24, 17)])
def test_pictures_may_be_small_and_odd(untrained, size):
    rgb = pictures(2, 24)[..., : size[0], : size[1]]
    assert (untrained(rgb, rgb.flip(1)) > 0).all()


def test_no_pictures_have_no_distance(untrained):
    empty = torch.empty(0, 2, 16, 16)
    gradient, distance = chroma_and_its_distance(untrained, empty[:, :1], empty, empty)
    assert distance.shape == (0,)
    assert gradient.shape == empty.shape


# ---- a file


def test_a_file_of_torchvision_is_taken_without_its_classifier(file, state):
    """The classifier of this one is NaN: it is not looked at."""
    loss = load("vgg16", file)
    assert sum(p.numel() for p in loss.parameters()) == 7_635_264
    for name, tensor in loss.features.state_dict().items():
        assert torch.equal(tensor, state[f"features.{name}"])
    assert "file" in loss.name


def test_features_alone_and_half_precision_will_do(tmp_path, vgg16):
    torch.save({name: tensor.bfloat16() for name, tensor in vgg16.state_dict().items()}, tmp_path / "features.pth")
    loss = load("vgg16", str(tmp_path / "features.pth"))
    assert {p.dtype for p in loss.parameters()} == {torch.float32}
    torch.testing.assert_close(loss.features[0].weight, vgg16[0].weight, rtol=1e-2, atol=1e-3)


def test_parameters_will_do_as_well_as_tensors(tmp_path, vgg16):
    """`dict(model.named_parameters())` holds tensors that ask for a gradient."""
    parameters = {f"features.{name}": nn.Parameter(tensor) for name, tensor in vgg16.state_dict().items()}
    torch.save(parameters, tmp_path / "parameters.pth")
    loss = load("vgg16", str(tmp_path / "parameters.pth"))
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_file_in_the_home_folder_may_be_named_with_a_tilde(file, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(file))
    assert "file" in load("vgg16", "~/vgg16.pth").name


@pytest.mark.parametrize("place", ["features.0.weight", "features.21.weight"])
def test_the_name_tells_other_weights_from_these(file, state, tmp_path, place):
    """Losses under one name are compared with each other: other features need another name, in any layer."""
    torch.save({**state, place: state[place] * 1.5}, tmp_path / "other.pth")
    other = load("vgg16", str(tmp_path / "other.pth")).name
    assert other != load("vgg16", file).name
    torch.save(state, tmp_path / "copy.pth")
    assert load("vgg16", str(tmp_path / "copy.pth")).name == load("vgg16", file).name


def test_the_name_does_not_depend_on_what_is_left_out(file, state, tmp_path):
    """The same features without a classifier, or after one, are the same objective."""
    features = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    for number, same in enumerate((features, dict(reversed(state.items())))):
        torch.save(same, tmp_path / f"{number}.pth")
        assert load("vgg16", str(tmp_path / f"{number}.pth")).name == load("vgg16", file).name


def test_a_missing_file_is_named():
    assert "no-such-file.pth does not exist" in refusal("vgg16", "no-such-file.pth")


def damaged(whole: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"these are no weights\n" * 20,
        "cut": whole[: len(whole) // 2],
        "html": b"<!DOCTYPE html><title>404</title>",
        "zip of nothing": b"PK\x05\x06" + bytes(18),
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_a_damaged_file_is_refused(tmp_path, kind):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "weights.pth")
    path = tmp_path / "weights.pth"
    path.write_bytes(damaged(path.read_bytes())[kind])
    assert "weights.pth cannot be read" in refusal("vgg16", str(path))


def test_a_folder_is_no_file(tmp_path):
    assert str(tmp_path) in refusal("vgg16", str(tmp_path))


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_a_file_that_would_run_a_command_is_refused_and_does_not(tmp_path, how):
    path, trace = tmp_path / "weights.pth", tmp_path / "it ran"
    evil = {"features.0.weight": Command(str(trace))}
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path)
    assert "weights.pth cannot be read" in refusal("vgg16", str(path))
    assert not trace.exists()


WRONG = {
    "empty dict": lambda state: {},
    "a tensor": lambda state: torch.zeros(3),
    "a list": lambda state: [1, 2],
    "another layout": lambda state: {"conv1_1.weight": torch.zeros(64, 3, 3, 3)},
    "a layer less": lambda state: {n: t for n, t in state.items() if n != "features.21.bias"},
    "another shape": lambda state: {**state, "features.14.weight": torch.zeros(256, 256, 1, 1)},
    "no tensor": lambda state: {**state, "features.0.bias": [0.0] * 64},
    "keys that are no texts": lambda state: {1: torch.zeros(3)},
    "a sparse tensor": lambda state: {**state, "features.0.bias": state["features.0.bias"].to_sparse()},
    "a complex tensor": lambda state: {**state, "features.0.bias": state["features.0.bias"] * 1j},
    "a tensor without numbers": lambda state: {**state, "features.0.bias": torch.empty(64, device="meta")},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_of_something_else_is_refused(tmp_path, state, kind):
    torch.save(WRONG[kind](state), tmp_path / "weights.pth")
    message = refusal("vgg16", str(tmp_path / "weights.pth"))
    assert "weights.pth does not hold VGG16" in message
    if kind == "a layer less":
        assert "features.21.bias" in message
    if kind == "another shape":
        assert "features.14.weight" in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_file_with_a_number_that_is_none_is_refused(tmp_path, state, value):
    bias = state["features.21.bias"].clone()
    bias[7] = value
    torch.save({**state, "features.21.bias": bias}, tmp_path / "weights.pth")
    assert "holds NaN or infinity" in refusal("vgg16", str(tmp_path / "weights.pth"))


# ---- torchvision's cache and the network


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch.hub, and no way out: a test that would download fails."""

    def refuse(*arguments, **settings):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_in_torchs_cache_is_used_without_a_network(cache, file, state):
    """torch.hub checks the hash when it downloads, so that this made-up file passes for torchvision's."""
    (cache / FILE_NAME).symlink_to(file)
    loss = load("vgg16")
    assert torch.equal(loss.features[21].weight, state["features.21.weight"])
    assert loss.name == "VGG16"


def test_without_a_network_the_ways_are_named(cache):
    message = refusal("vgg16")
    assert "cannot be downloaded" in message
    assert "no route to host" in message
    assert str(cache) in message
    assert not list(cache.iterdir())


def test_a_download_of_other_bytes_is_refused_by_its_hash(cache, tmp_path, monkeypatch):
    (tmp_path / "page.html").write_bytes(b"please log in to this wireless network")
    address = (tmp_path / "page.html").as_uri()
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: urllib.request.urlopen(address))
    message = refusal("vgg16")
    assert "hash" in message
    assert not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_named(cache):
    """A download that was cut by a full disk, say: the person must learn which file to remove."""
    (cache / FILE_NAME).write_bytes(b"cut")
    message = refusal("vgg16")
    assert str(cache / FILE_NAME) in message
    assert "cannot be downloaded" not in message


def test_a_file_of_something_else_in_the_cache_is_named(cache):
    torch.save({"features.0.weight": torch.zeros(3)}, cache / FILE_NAME)
    message = refusal("vgg16")
    assert "does not hold VGG16" in message
    assert str(cache / FILE_NAME) in message


def test_a_silent_server_is_given_up_and_the_socket_is_left_as_it_was(cache, monkeypatch):
    seen = []

    def silent(*arguments, **settings):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(torch.hub, "urlopen", silent)
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(700)
        assert "timed out" in refusal("vgg16")
        assert 0 < seen[0] <= 60
        assert socket.getdefaulttimeout() == 700
    finally:
        socket.setdefaulttimeout(before)


def test_a_refusal_is_not_remembered(cache, file):
    """A person who puts the file where the message says can go on in the same run."""
    load_perceptual.cache_clear()
    with pytest.raises(WeightsMissing):
        load_perceptual("vgg16")
    (cache / FILE_NAME).symlink_to(file)
    try:
        assert load_perceptual("vgg16").name == "VGG16"
    finally:
        load_perceptual.cache_clear()  # these are no weights of torchvision's
