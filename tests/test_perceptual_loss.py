"""perceptual_loss.py: torchvision's VGG16 to the bit, LPIPS as in its package, gradients everywhere, and no silent
fallback."""

import os
import pickle
import socket
import urllib.error
import urllib.request
import warnings

import lpips
import pytest
import torch
import torchvision
from torch import Tensor, nn

from Project7 import color, perceptual_loss
from Project7.perceptual_loss import LPIPS, PerceptualLoss, WeightsMissing, load_lpips, load_perceptual

# Without their cache, because the content of files and of the network differs from test to test.
load, load_similarity = load_perceptual.__wrapped__, load_lpips.__wrapped__
AB_MEAN, AB_STD = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])
FILE_NAME = "vgg16-397923af.pth"  # as torchvision's cache calls it
FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": FILE_NAME}
TRUNKS = {"alex": "AlexNet", "vgg": "VGG16"}
THE_THREE_WAYS = ("--perceptual-weights FILE", "--perceptual-net random", "--perceptual-weight 0")


def made_up(build) -> nn.Sequential:
    """The `features` of a torchvision network with random weights; the millions of its classifier take no memory."""
    with torch.device("meta"):
        features = build().features
    features = features.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.normal_(layer.bias, std=0.1, generator=generator)
    return features


def as_stored(build, features: nn.Sequential) -> dict[str, Tensor]:
    """The content of torchvision's file, by name and shape: `features.*` and `classifier.*`."""
    with torch.device("meta"):
        shapes = build().state_dict()
    one = torch.full((1,), torch.nan)  # expanded to any shape it takes four bytes, and reading it gives NaN
    weights = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    return {name: weights.get(name, one.expand(tensor.shape)) for name, tensor in shapes.items()}


def imaginary_vgg16() -> nn.Module:
    return torchvision.models.vgg16(init_weights=False)


@pytest.fixture(scope="module")
def vgg16() -> nn.Sequential:
    return made_up(imaginary_vgg16)


@pytest.fixture(scope="module")
def state(vgg16) -> dict[str, Tensor]:
    return as_stored(imaginary_vgg16, vgg16)


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return str(path)


@pytest.fixture(scope="module")
def alex_state() -> dict[str, Tensor]:
    return as_stored(torchvision.models.alexnet, made_up(torchvision.models.alexnet))


@pytest.fixture(scope="module")
def files(file, alex_state, tmp_path_factory) -> dict[str, str]:
    """Files of the trunks in torchvision's format, by the names of LPIPS."""
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alex_state, path)
    return {"alex": str(path), "vgg": file}


@pytest.fixture(scope="module")
def similarities(files) -> dict[str, LPIPS]:
    return {net: load_similarity(net, files[net]) for net in files}


@pytest.fixture(scope="module")
def untrained() -> PerceptualLoss:
    return load_perceptual("random")


def pictures(count: int = 2, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def same_features(loss: PerceptualLoss, other: PerceptualLoss) -> bool:
    return all(torch.equal(a, b) for a, b in zip(loss.parameters(), other.parameters(), strict=True))


def refusal(net: str, *arguments) -> str:
    """The message of load_perceptual or load_lpips: one or two sentences on one line, with the three ways to go on."""
    with pytest.raises(WeightsMissing) as caught:
        (load if net == "vgg16" else load_similarity)(net, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert all(way in message for way in THE_THREE_WAYS)
    assert ("--perceptual-net tiny" in message) == (net == "vgg16"), "LPIPS has no such network"
    assert FILES.get(net, FILE_NAME) in message
    assert caught.value.exit_code == 1
    return message


# ---- the network


def test_the_features_are_those_of_torchvision(vgg16, file):
    """relu1_2, relu2_2, relu3_3 and relu4_3 follow the second, fourth, seventh and tenth convolution."""
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
    ours = PerceptualLoss("VGG16").features
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


def test_the_addresses_are_torchvisions():
    weights = {"VGG16": torchvision.models.VGG16_Weights, "AlexNet": torchvision.models.AlexNet_Weights}
    assert {name: w.IMAGENET1K_V1.url for name, w in weights.items()} == perceptual_loss._URLS
    assert {name: perceptual_loss.cached(TRUNKS[name]).name for name in FILES} == FILES


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
    """The distance d of two unit features, d^2 = 2 - 2 cos, at each place and layer, is smoothed below 0.01."""
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
    """At black and white the RGB cube and the sRGB curve have corners; ab of 110 and more is far out of gamut."""
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
    """Otherwise a single extreme pixel would dominate a layer."""
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
    """The gradient is useful: following it alone brings a gray picture closer to its colours."""
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
    """The classifier in this file is NaN, and is ignored."""
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
    """`dict(model.named_parameters())` holds tensors that require a gradient."""
    parameters = {f"features.{name}": nn.Parameter(tensor) for name, tensor in vgg16.state_dict().items()}
    torch.save(parameters, tmp_path / "parameters.pth")
    loss = load("vgg16", str(tmp_path / "parameters.pth"))
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_file_in_the_home_folder_may_be_named_with_a_tilde(file, monkeypatch):
    monkeypatch.setenv("HOME", os.path.dirname(file))
    assert "file" in load("vgg16", "~/vgg16.pth").name


@pytest.mark.parametrize("place", ["features.0.weight", "features.21.weight"])
def test_the_name_tells_other_weights_from_these(file, state, tmp_path, place):
    """Losses under the same name are compared with each other, so other features need another name, whichever layer
    differs."""
    torch.save({**state, place: state[place] * 1.5}, tmp_path / "other.pth")
    other = load("vgg16", str(tmp_path / "other.pth")).name
    assert other != load("vgg16", file).name
    torch.save(state, tmp_path / "copy.pth")
    assert load("vgg16", str(tmp_path / "copy.pth")).name == load("vgg16", file).name


def test_the_name_does_not_depend_on_what_is_left_out(file, state, tmp_path):
    """The same features are the same objective, with or without a classifier in the file."""
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
    """An empty cache of torch.hub without network access, so that a test that would download fails."""

    def refuse(*arguments, **settings):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_a_file_in_torchs_cache_is_used_without_a_network(cache, file, state):
    """torch.hub checks the hash only when it downloads, so this artificial file passes for torchvision's."""
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
    """For example, a full disk may have cut a download short: the message must say which file to remove."""
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
    """A person who puts the file where the message says can continue in the same run."""
    load_perceptual.cache_clear()
    with pytest.raises(WeightsMissing):
        load_perceptual("vgg16")
    (cache / FILE_NAME).symlink_to(file)
    try:
        assert load_perceptual("vgg16").name == "VGG16"
    finally:
        load_perceptual.cache_clear()  # these weights are not torchvision's


# ---- LPIPS

every_net = pytest.mark.parametrize("net", FILES)


def the_packages_own(net: str) -> lpips.LPIPS:
    """LPIPS as its users get it: it asks torchvision for the trunk, which finds the file in its cache."""
    with warnings.catch_warnings(action="ignore"):
        return lpips.LPIPS(net=net, verbose=False)


@pytest.mark.slow
@every_net
def test_lpips_is_that_of_its_package(net, files, cache, similarities):
    """Trunk, learnt weights, scaling and mean agree: ours from the file and from the cache, the package's from the
    cache."""
    (cache / FILES[net]).symlink_to(files[net])
    theirs, rgb, truth = the_packages_own(net), pictures(3, 40), pictures(3, 40, seed=1)
    mine = {"file": similarities[net], "cache": load_similarity(net)}
    with torch.no_grad():
        expected = theirs(rgb, truth, normalize=True).flatten()
        assert (expected > 0.01).all()
        for similarity in mine.values():
            torch.testing.assert_close(similarity(rgb, truth), expected, rtol=1e-4, atol=1e-6)
    gradients = []
    for function in (mine["file"], lambda *pair: theirs(*pair, normalize=True)):
        x = rgb.clone().requires_grad_()
        function(x, truth).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3 * gradients[1].abs().max().item())
    assert mine["cache"].name == f"LPIPS of {TRUNKS[net]}"


@every_net
def test_the_trunk_of_lpips_is_that_of_the_file(net, similarities, state, alex_state):
    """It agrees layer by layer, in torchvision's numbering; the classifier in this file is NaN, and is ignored."""
    stored = {"vgg": state, "alex": alex_state}[net]
    found = {name.split(".", 1)[1]: tensor for name, tensor in similarities[net].network.net.state_dict().items()}
    assert len(found) == {"alex": 10, "vgg": 26}[net]
    assert all(torch.equal(tensor, stored[f"features.{name}"]) for name, tensor in found.items())
    assert len(similarities[net].extract(pictures(1, 32))) == 5


@every_net
def test_lpips_is_each_samples_own_and_0_at_the_truth(net, similarities):
    rgb, truth = pictures(3, 32), pictures(3, 32, seed=1)
    with torch.no_grad():
        values = similarities[net](rgb, truth)
        assert values.shape == (3,)
        torch.testing.assert_close(similarities[net](rgb[1:2], truth[1:2]), values[1:2], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(similarities[net](truth, rgb), values, rtol=1e-4, atol=1e-6)
        assert similarities[net](rgb, rgb).tolist() == [0, 0, 0]


def test_where_all_features_are_0_the_gradient_is_finite(files):
    """The package divides by sqrt(sum of squares), whose slope at 0 is infinite; times 0 that makes the gradient of the
    features NaN. Only the ReLU before them keeps it from the picture."""
    similarity = load_similarity("alex", files["alex"])
    similarity.network.net.slice1[0].weight.fill_(0.01)  # now its first layer sees only light, above a high threshold
    similarity.network.net.slice1[0].bias.fill_(-1.0)
    rgb, truth = pictures(2, 48), pictures(2, 48, seed=1)
    rgb[..., 24:] = 0
    features = similarity.extract(rgb)[0]
    assert not features[..., -1].any()
    assert features.any()
    slopes = {}
    for normalize in (lpips.normalize_tensor, perceptual_loss.unit):
        found = features.clone().requires_grad_()
        (normalize(found) - 1).square().sum().backward()
        slopes[normalize] = found.grad
    assert slopes[lpips.normalize_tensor].isnan().any()
    assert slopes[perceptual_loss.unit].isfinite().all()
    x = rgb.clone().requires_grad_()
    values = similarity(x, truth)
    values.sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.any()
    expected = similarity.network(rgb, truth, normalize=True).flatten()  # the same distance all the same
    torch.testing.assert_close(values, expected, rtol=1e-3, atol=0)


def test_where_features_are_nearly_0_the_gradient_is_bounded_and_the_packages_is_not(files):
    """Two channels are a millionth above 0 and the others 0, so a minimal change of the picture reverses the
    direction."""
    similarity = load_similarity("alex", files["alex"])
    rgb, truth = torch.full((1, 3, 32, 32), 0.4), pictures(1, 32)
    first, seen = similarity.network.net.slice1[0], similarity.network.scaling_layer(2 * rgb - 1)[0, :, 0, 0]
    strong = similarity.network.lins[0].model[1].weight.flatten().topk(2).indices  # channels that LPIPS looks at
    first.weight.zero_()
    first.bias.fill_(-1.0)
    for plane, (channel, height) in enumerate(zip(strong, (1e-6, 2e-6), strict=True)):
        first.weight[channel, plane, 5, 5] = 1.0
        first.bias[channel] = height - seen[plane]
    steepest = []
    for function in (similarity, lambda *pair: similarity.network(*pair, normalize=True)):
        x = rgb.clone().requires_grad_()
        function(x, truth).sum().backward()
        steepest.append(x.grad.abs().max().item())
    ours, theirs = steepest
    assert ours < 200  # a length counts as a thousandth at least
    assert theirs > 100 * ours


@pytest.mark.parametrize(
    ("value", "precision"),
    [(0.0, "float32"), (0.5, "float32"), (-3.0, "float32"), (1e4, "float32"), (0.5, "bf16"), (1e4, "bf16")],
)
@pytest.mark.parametrize("net", [*FILES, "random"])
def test_the_gradient_of_lpips_is_finite_at_every_picture(net, value, precision, similarities):
    similarity = similarities[net] if net in FILES else load_lpips("random")
    for truth in (torch.full((1, 3, 32, 32), value), pictures(1, 32)):
        rgb = torch.full((1, 3, 32, 32), value, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            distance = similarity(rgb, truth)
        distance.sum().backward()
        assert distance.dtype == torch.float32
        assert distance.isfinite().all()
        assert rgb.grad.isfinite().all()


def test_bf16_lpips_is_near_float32(similarities):
    rgb, truth = pictures(2, 32), pictures(2, 32, seed=1)
    for similarity in similarities.values():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rough = similarity(rgb, truth)
        torch.testing.assert_close(rough, similarity(rgb, truth), rtol=0.05, atol=1e-3)


def test_the_dropout_of_lpips_never_drops(files):
    """Its learnt layers have dropout, and .train() is called on a loss together with the network that it trains."""
    similarity = load_similarity("alex", files["alex"])
    rgb, truth = pictures(2, 32), pictures(2, 32, seed=1)
    before = similarity(rgb, truth)
    dropouts = [module for module in similarity.modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    for told in (similarity, nn.ModuleList([nn.Sequential(similarity)])):
        told.train()
        assert not any(module.training for module in (similarity, *dropouts))
        assert torch.equal(similarity(rgb, truth), before)
    similarity.network.train()  # the test can fail
    assert not torch.equal(similarity(rgb, truth), before)


def test_the_network_of_lpips_is_frozen(similarities):
    rgb, truth = pictures(1, 32).requires_grad_(), pictures(1, 32, seed=1).requires_grad_()
    for similarity in similarities.values():
        similarity(rgb, truth).sum().backward()
        assert rgb.grad.any()
        assert truth.grad is None
        for parameter in similarity.parameters():
            assert not parameter.requires_grad
            assert parameter.grad is None


def test_the_untrained_lpips_is_the_same_every_time_takes_no_file_and_is_named_so(cache, monkeypatch):
    """Neither the cache nor the network is asked."""
    monkeypatch.setattr(perceptual_loss, "download", lambda trunk: pytest.fail("asked the network"))
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), load_similarity("random")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_features(load_similarity("random"), first)
    assert "random" in first.name
    assert "untrained" in first.name
    rgb, truth = pictures(2, 32), pictures(2, 32, seed=1)
    expected = sum(
        (perceptual_loss.unit(f) - perceptual_loss.unit(g)).square().sum(dim=1).mean(dim=(1, 2))
        for f, g in zip(first.extract(rgb), first.extract(truth), strict=True)
    )
    torch.testing.assert_close(first(rgb, truth), expected)  # all channels count alike
    assert first(rgb, truth).min() > 0.01
    assert load_lpips("random") is load_lpips("random")


@every_net
def test_lpips_without_its_trunk_names_the_ways(net, cache):
    message = refusal(net)
    assert f"The weights of {TRUNKS[net]} cannot be downloaded" in message
    assert perceptual_loss._URLS[TRUNKS[net]] in message
    assert str(cache) in message
    assert not list(cache.iterdir())


@every_net
def test_the_other_networks_file_is_refused(net, files):
    other = next(name for name in FILES if name != net)
    message = refusal(net, files[other])
    assert f"does not hold {TRUNKS[net]}" in message
    assert os.path.basename(files[other]) in message


def test_lpips_refuses_files_that_are_damaged_or_hold_nan(alex_state, tmp_path):
    assert "none.pth does not exist" in refusal("alex", str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_bytes(b"these are no weights\n" * 20)
    assert "text.pth cannot be read" in refusal("alex", str(tmp_path / "text.pth"))
    last = alex_state["features.10.bias"]
    torch.save({**alex_state, "features.10.bias": last * torch.nan}, tmp_path / "nan.pth")
    assert "holds NaN or infinity" in refusal("alex", str(tmp_path / "nan.pth"))
    torch.save({**alex_state, "features.10.bias": last[:-1].clone()}, tmp_path / "less.pth")
    assert "features.10.bias" in refusal("alex", str(tmp_path / "less.pth"))


def test_the_name_of_lpips_tells_other_weights_from_these(files, similarities, alex_state, tmp_path):
    names = [similarities[net].name for net in FILES]
    torch.save({**alex_state, "features.10.weight": alex_state["features.10.weight"] * 1.5}, tmp_path / "other.pth")
    names += [load_similarity("alex", str(tmp_path / "other.pth")).name, load_lpips("random").name]
    assert len(set(names)) == 4
    assert names[0].startswith("LPIPS of AlexNet from a file")
    assert names[1].startswith("LPIPS of VGG16 from a file")
    assert load_similarity("alex", files["alex"]).name == names[0]


def test_a_damaged_alexnet_in_the_cache_is_named(cache):
    (cache / FILES["alex"]).write_bytes(b"cut")
    assert str(cache / FILES["alex"]) in refusal("alex")


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 57), (64, 33)])
def test_lpips_takes_pictures_of_32_pixels_and_more(similarities, height, width):
    rgb = pictures(1, 64)[..., :height, :width]
    for similarity in (*similarities.values(), load_lpips("random")):
        assert similarity(rgb, rgb.flip(1)).item() > 0
