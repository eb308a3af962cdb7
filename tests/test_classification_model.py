"""classification_model.py: tiny generators, pictures of 16 pixels and of odd sizes; in one test a model learns."""

import copy
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34, resnet50

from Project7 import color
from Project7.answer_config import ColorizeConfig
from Project7.answer_options import method_options
from Project7.batch import Batch, BatchRandom
from Project7.checkpoints import load_model, save_checkpoint
from Project7.classification_model import (
    ClassificationColorizer,
    class_noise,
    encoder_start,
    load_resnet34,
    true_histograms,
)
from Project7.cli import command
from Project7.colorize import Colorizer
from Project7.colorize_files import colorize_files, plan_outputs
from Project7.config import RunConfig
from Project7.diffusion_model import DiffusionColorizer
from Project7.encoder import SHIPPED
from Project7.errors import ProjectError, UsageError
from Project7.model_config import ClassificationConfig, DiffusionConfig
from Project7.palette import Palette, annealed_mean, rarity_weights
from Project7.training_config import DataConfig

BINS = 12
TINY = {"width": 8, "blocks": (1, 1, 1, 1), "bins": BINS}
VARIANTS = {
    "stride 1": {},
    "stride 2": {"stem_stride": 2},
    "stride 4": {"stem_stride": 4},
    "focal": {"focal_gamma": 2.0},
    "width 6, more blocks": {"width": 6, "blocks": (1, 2, 1, 2)},
    "encoder of timm": {"encoder": SHIPPED, "encoder_size": 32, "stem_stride": 8},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
every_stride = pytest.mark.parametrize("stride", [1, 2, 4])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def palette(bins: int = BINS) -> Palette:
    """The palette, with the centre nearest to gray first."""
    centres = rand(bins, 2, seed=5) * 30
    return Palette(centres[centres.norm(dim=1).argsort()], 2.0 ** torch.arange(bins, 0, -1, dtype=torch.float64))


def tiny(**changes) -> ClassificationColorizer:
    torch.manual_seed(0)
    model = ClassificationColorizer(ClassificationConfig(**{**TINY, **changes}))
    model.set_palette(palette(model.config.bins))
    return model


def confident(**changes) -> ClassificationColorizer:
    """Makes the probabilities differ, because those of an untrained network are all alike."""
    model = tiny(**changes)
    with torch.no_grad():
        model.ab_class.weight.mul_(10)
    return model


def picture(count: int = 2, size: tuple[int, int] = (16, 16), seed: int = 1) -> Tensor:
    return rand(count, 1, *size, seed=seed).clamp(-1, 1)


def make_batch(count: int = 4, size: tuple[int, int] = (16, 16), image_share: float = 0.0) -> Batch:
    return Batch(picture(count, size), rand(count, 2, *size, seed=2), BatchRandom(3, 0, 0, count, count), image_share)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int = 0, size: tuple[int, int] = (48, 48)) -> Tensor:
    return class_noise(palette(60).centres, 1, size, seeded(seed))[0]


def roughness(x: Tensor) -> float:
    """Mean squared difference of neighbours, relative to that of distant places: about 1 for independent noise per
    pixel."""
    near = (x.diff(dim=-1).square().mean() + x.diff(dim=-2).square().mean()) / 2
    return (near / (2 * x.var())).item()


# ---- architecture


def names(model: nn.Module, kind: type) -> dict[str, tuple]:
    return {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, kind)}


def full_size() -> tuple[nn.Module, nn.Module]:
    """The default generator and torchvision's ResNet34, without memory."""
    with torch.device("meta"):
        return ClassificationColorizer(ClassificationConfig()), resnet34()


def test_each_batch_norm_of_resnet34_is_a_group_norm():
    ours, theirs = full_size()
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in ours.modules())
    expected = {n if n != "bn1" else "norm1": s for n, s in names(theirs, nn.BatchNorm2d).items()}
    assert len(expected) == 36
    assert names(ours.encoder, nn.GroupNorm) == expected


def test_convolutions_are_those_of_resnet34_with_a_stem_for_one_channel():
    ours, theirs = full_size()
    expected = names(theirs, nn.Conv2d) | {"conv1": (64, 1, 7, 7)}
    assert names(ours.encoder, nn.Conv2d) == expected
    strides = {n: m.stride for n, m in theirs.named_modules() if isinstance(m, nn.Conv2d)} | {"conv1": (1, 1)}
    assert {n: m.stride for n, m in ours.encoder.named_modules() if isinstance(m, nn.Conv2d)} == strides


def test_stem_stride_4_is_resnet34s_own_stem():
    with torch.device("meta"):
        encoder = ClassificationColorizer(ClassificationConfig(stem_stride=4)).encoder
    assert encoder.conv1.stride == (2, 2)
    assert (encoder.pool.kernel_size, encoder.pool.stride, encoder.pool.padding) == (3, 2, 1)


def test_heads_have_313_classes_2_nudges_and_1_confidence_on_64_channels():
    model, _ = full_size()
    heads = (model.ab_class, model.ab_residual, model.confidence_head)
    assert [(h.in_channels, h.out_channels) for h in heads] == [(64, 313), (64, 2), (64, 1)]
    assert model.attention.query.out_channels == 512 // 16


@pytest.mark.parametrize(("stride", "side", "places"), [(1, 64, 8), (2, 64, 4), (4, 64, 2), (4, 256, 8)])
def test_places_at_the_bottleneck(stride, side, places):
    model, seen = tiny(stem_stride=stride), []
    model.attention.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    model.colorize(picture(1, (side, side)))
    assert seen == [(1, 64, places, places)]


@every_stride
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (37, 21), (1, 9), (9, 1), (3, 40), (1, 1)])
def test_any_size(stride, size):
    model, L = confident(stem_stride=stride), picture(1, size)
    small = tuple(math.ceil(side / stride) for side in size)
    logits, residual, confidence, histograms = model.network(L)
    assert logits.shape == (1, BINS, *small)
    assert residual.shape == (1, 2, *small)
    assert confidence.shape == (1, 1, *small)
    assert histograms.shape == (1, 2, 64)
    ab, sure = model.colorize(L), model.confidence(L)
    assert ab.shape == (1, 2, *size)
    assert sure.shape == (1, 1, *size)
    assert ab.isfinite().all()
    assert ((sure >= 0) & (sure <= 1)).all()
    assert model(Batch(L, rand(1, 2, *size), BatchRandom(0, 0, 0, 1, 1), 1.0)).loss.isfinite().all()


@every_stride
def test_what_is_added_to_fill_up_a_picture_is_below_it_and_to_its_right(stride):
    model, L = confident(stem_stride=stride), picture(1, (13, 21))
    side = 8 * stride
    whole = F.pad(L, (0, -21 % side, 0, -13 % side), mode="replicate")
    h, w = math.ceil(13 / stride), math.ceil(21 / stride)
    assert torch.equal(model.network(whole)[0][..., :h, :w], model.network(L)[0])


@pytest.mark.parametrize("width", [4, 5, 6, 16])
def test_any_width_and_the_smallest_picture(width):
    assert confident(width=width).colorize(picture(1, (8, 8))).isfinite().all()


def test_the_histograms_steer_the_decoder():
    """FiLM starts as the identity; once it is trained, another histogram gives another picture."""
    model, L = confident(), picture()
    for stage in model.decoder:
        nn.init.normal_(stage.film.linear.weight)
    before = model.network(L)[0]
    with torch.no_grad():
        model.context.fc[-1].bias[:40].fill_(5.0)
    assert (model.network(L)[0] - before).abs().mean() > 1e-3


# ---- one training step


@every_variant
@pytest.mark.parametrize("size", [(16, 16), (13, 9)], ids=["16x16", "13x9"])
def test_loss_is_finite_and_reaches_every_parameter(changes, size):
    """The picture has the size times the stem's stride, because a single position at the bottleneck has nothing to
    attend to."""
    model = tiny(**changes)
    stride = model.config.stem_stride
    step = model(make_batch(6, (size[0] * stride, size[1] * stride)))
    assert step.loss.shape == (6,)
    assert step.loss.isfinite().all()
    assert step.estimate is None
    step.loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 1e-7, name


def test_the_batch_is_not_mutated():
    model, batch = tiny(), make_batch(image_share=1.0)
    before = copy.deepcopy(batch)
    model(batch).loss.sum().backward()
    assert torch.equal(batch.L, before.L)
    assert torch.equal(batch.ab, before.ab)


def test_the_loss_is_its_terms_by_their_weights():
    step = tiny()(make_batch())
    assert list(step.metrics) == ["class", "residual", "confidence", "histogram"]
    assert not any(v.requires_grad for v in step.metrics.values())
    m = step.metrics
    expected = m["class"] + m["residual"] + 0.1 * m["confidence"] + 0.1 * m["histogram"]
    torch.testing.assert_close(step.loss.detach(), expected)


def test_a_sample_has_its_own_loss():
    model, batch = tiny(), make_batch(4)
    alone = model(Batch(batch.L[2:3], batch.ab[2:3], BatchRandom(3, 0, 0, 1, 1))).loss
    torch.testing.assert_close(model(batch).loss[2:3], alone)


def class_loss_directly(logits: Tensor, ab: Tensor, gamma: float, mixing: float) -> float:
    """The class loss at one place: logits (Q,), ab (2,)."""
    centres, _ = palette()
    distance = (centres - ab).norm(dim=1)
    nearest = distance.argsort()[:5]
    soft = torch.softmax(-(distance[nearest] ** 2) / 50, dim=0)
    p = logits.exp() / logits.exp().sum()
    weight = rarity_weights(palette(), mixing)[nearest[0]]
    return (-weight * (soft * (1 - p[nearest]) ** gamma * p[nearest].log()).sum()).item()


@pytest.mark.parametrize(("rebalance", "gamma"), [(0.5, 0.0), (0.0, 0.0), (1.0, 0.0), (0.5, 2.0), (0.0, 0.5)])
def test_class_loss_place_by_place(rebalance, gamma):
    model = tiny(rebalance=rebalance, focal_gamma=gamma)
    logits, ab = rand(2, BINS, 3, 2), rand(2, 2, 3, 2, seed=1) * 40
    found = model.class_loss(logits, ab)
    for b in range(2):
        for y in range(3):
            for x in range(2):
                expected = class_loss_directly(logits[b, :, y, x], ab[b, :, y, x], gamma, 1 - rebalance)
                assert found[b, y, x].item() == pytest.approx(expected, rel=1e-3)


def test_without_rebalancing_every_colour_weighs_one():
    model = tiny(rebalance=0.0)
    centre = palette().centres[-1][None, :, None, None].expand(1, 2, 2, 2)
    classes, soft = model.encoding(centre)[0](centre)
    expected = -(soft * math.log(1 / BINS)).sum(dim=1)
    torch.testing.assert_close(model.class_loss(torch.zeros(1, BINS, 2, 2), centre), expected)
    assert (classes[:, 0] == BINS - 1).all()


def test_rare_colours_count_more():
    common, rare = palette().centres[[0, -1]]
    losses = [tiny().class_loss(torch.zeros(1, BINS, 1, 1), ab[None, :, None, None]).item() for ab in (common, rare)]
    assert losses[1] > 1.5 * losses[0]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_class_that_is_certain_has_no_loss_and_a_finite_gradient(gamma):
    model = tiny(focal_gamma=gamma)
    logits = torch.zeros(1, BINS, 1, 1)
    logits[:, 0] = 200
    logits.requires_grad_()
    loss = model.class_loss(logits, palette().centres[0][None, :, None, None])
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def losses(model: ClassificationColorizer, truth: Tensor, **outputs: Tensor) -> dict[str, Tensor]:
    """The loss terms of a network with the given outputs; outputs that are not given are 0."""
    b, _, h, w = truth.shape
    shapes = {"logits": (BINS, h, w), "residual": (2, h, w), "confidence": (1, h, w), "histograms": (2, 64)}
    given = {name: outputs.get(name, torch.zeros(b, *shape)) for name, shape in shapes.items()}
    return model.losses(**given, truth=truth)


def test_residual_term_by_hand():
    """The likeliest colour is the first centre, the truth lies (6, -4) from it, and the residual covers half of
    that."""
    model, logits = tiny(temperature=0.0), torch.zeros(1, BINS, 2, 2)
    logits[:, 0] = 1.0
    centre = palette().centres[0][None, :, None, None].expand(1, 2, 2, 2)
    off = torch.tensor([6.0, -4.0])[None, :, None, None]
    found = losses(model, centre + off, logits=logits, residual=(off / 2).expand(1, 2, 2, 2))["residual"]
    assert found.item() == pytest.approx((3 / 12.6 + 2 / 17.7) / 2, rel=1e-5)


def test_residual_term_is_on_the_annealed_mean():
    model, logits, truth = tiny(), rand(1, BINS, 3, 3), rand(1, 2, 3, 3, seed=1) * 20
    decoded = annealed_mean(logits, palette().centres, 0.38)
    expected = ((decoded - truth).abs() / torch.tensor([12.6, 17.7])[:, None, None]).mean()
    assert losses(model, truth, logits=logits)["residual"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_confidence_term_by_hand():
    """The network is sure at three places, one 9.9 Lab units off, one 10.1 and one far off, and unsure at the last,
    which is right."""
    model, logits = tiny(temperature=0.0), torch.zeros(1, BINS, 1, 4)
    logits[:, 0] = 1.0
    off = torch.tensor([[9.9, 0.0, 60.0, 50.0], [0.0, 10.1, 0.0, 0.0]])[None, :, None]
    truth = palette().centres[0][None, :, None, None] + off
    confidence = torch.tensor([2.0, 2.0, 2.0, -1.0])[None, None, None]
    found = losses(model, truth, logits=logits, confidence=confidence)["confidence"]
    right, wrong, unsure = (math.log(1 + math.exp(z)) for z in (-2, 2, -1))
    assert found.item() == pytest.approx((right + 2 * wrong + unsure) / 4, rel=1e-5)


def test_the_confidence_is_about_the_answer_with_its_nudge():
    model, truth = tiny(temperature=0.0), palette().centres[0][None, :, None, None] + torch.tensor([[[15.0]], [[0.0]]])
    logits, sure = torch.zeros(1, BINS, 1, 1), torch.full((1, 1, 1, 1), 20.0)
    logits[:, 0] = 1.0
    nudge = torch.tensor([[[[6.0]], [[0.0]]]])
    assert losses(model, truth, logits=logits, confidence=sure)["confidence"].item() == pytest.approx(20)
    assert losses(model, truth, logits=logits, confidence=sure, residual=nudge)["confidence"] < 1e-6


def test_histogram_term_by_hand():
    """Of four pixels, three have a = 0 (bin 32) and one a = 20 (bin 37); all have b = -110 (bin 0)."""
    a, b = torch.tensor([[0.0, 0.0], [0.0, 20.0]]), torch.full((2, 2), -110.0)
    truth = torch.stack([a, b])[None]
    assert true_histograms(truth)[0, 0, [32, 37]].tolist() == [0.75, 0.25]
    assert true_histograms(truth)[0, 1, 0] == 1
    histograms = rand(1, 2, 64)
    log_p = torch.log_softmax(histograms, dim=-1)[0]
    expected = -(0.75 * log_p[0, 32] + 0.25 * log_p[0, 37] + log_p[1, 0]) / 2
    assert losses(tiny(), truth, histograms=histograms)["histogram"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_true_histograms_add_up_to_one_whatever_the_colours():
    found = true_histograms(rand(3, 2, 5, 7) * 200)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(3, 2))


def test_the_nudge_is_bounded_by_10_lab_units():
    model, L = tiny(), picture()
    with torch.no_grad():
        model.ab_residual.bias.copy_(torch.tensor([1e4, -1e4]))
    residual = model.network(L)[1]
    torch.testing.assert_close(residual, torch.tensor([10.0, -10.0])[:, None, None].expand(2, 2, 16, 16))


def test_the_nudge_does_not_teach_the_classes():
    model = tiny()
    logits, residual, confidence, histograms = model.network(picture())
    terms = model.losses(logits, residual, confidence, histograms, rand(2, 2, 16, 16) * 20)
    terms["residual"].sum().backward(retain_graph=True)
    assert model.ab_class.weight.grad is None
    assert model.confidence_head.weight.grad is None
    assert model.ab_residual.weight.grad.any()
    model.zero_grad()
    terms["confidence"].sum().backward()
    assert model.ab_class.weight.grad is None
    assert model.ab_residual.weight.grad is None


@every_stride
def test_the_estimate_is_the_picture_and_teaches_all_heads(stride):
    model, batch = confident(stem_stride=stride), make_batch(4, (13, 9), image_share=1.0)
    ab_hat, truth, L, weight, _ = model(batch).estimate
    assert ab_hat.shape == truth.shape == (4, 2, 13, 9)
    assert torch.equal(L, batch.L)
    assert weight.tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(ab_hat, model.colorize(batch.L))
    assert not truth.requires_grad
    if stride == 1:
        torch.testing.assert_close(truth, batch.ab, atol=1e-5, rtol=1e-5)
    ab_hat.square().sum().backward()
    assert model.ab_class.weight.grad.any()
    assert model.ab_residual.weight.grad.any()


def test_a_share_of_the_samples_has_an_estimate_and_counts_for_the_rest():
    model = tiny()
    estimates = [
        model(make_batch(8)._replace(random=BatchRandom(3, step, 0, 8, 8), image_share=0.25)).estimate
        for step in range(40)
    ]
    assert sum(len(e.L) for e in estimates) == pytest.approx(0.25 * 8 * 40, abs=4)
    assert all((e.weight == 4).all() for e in estimates)


def test_another_palette_changes_the_loss_at_once():
    """Tables that were made for the old palette are not kept."""
    model, batch = tiny(), make_batch()
    before = model(batch).loss
    other = Palette(palette().centres.flip(0) + 7, palette().counts)
    model.set_palette(other)
    fresh = tiny()
    fresh.set_palette(other)
    assert torch.equal(model(batch).loss, fresh(batch).loss)
    assert not torch.equal(model(batch).loss, before)


def test_bf16_autocast_gives_nearly_the_same_loss_and_colours():
    model, batch = confident(), make_batch(image_share=1.0)
    exact, colours = model(batch).loss, model.colorize(batch.L)
    with torch.autocast("cpu", torch.bfloat16):
        step, half = model(batch), model.colorize(batch.L)
    assert step.loss.dtype == torch.float32
    torch.testing.assert_close(step.loss, exact, rtol=0.03, atol=0.03)
    assert half.dtype == torch.float32
    assert (half - colours).abs().mean() < 0.1


# ---- use


def test_colours_by_the_formula_of_the_heads():
    model, L = confident(), picture()
    logits, residual, _, _ = model.network(L)
    lab = annealed_mean(logits, model.centres, 0.38) + residual
    expected = (lab - torch.tensor([2.1, 8.9])[:, None, None]) / torch.tensor([12.6, 17.7])[:, None, None]
    torch.testing.assert_close(model.colorize(L), expected.detach())
    assert not model.colorize(L).requires_grad


def test_temperature_is_that_of_the_model_unless_given():
    model, L = confident(temperature=0.6), picture()
    assert torch.equal(model.colorize(L), model.colorize(L, temperature=0.6))
    assert not torch.equal(model.colorize(L), model.colorize(L, temperature=0.0))
    assert torch.equal(model.colorize(L, temperature=0.0), confident(temperature=0.0).colorize(L))


def test_steps_hints_and_nonsense_are_errors():
    with pytest.raises(TypeError):
        tiny().colorize(picture(), steps=20)
    with pytest.raises(ValueError, match="cannot take colour hints"):
        tiny().colorize(picture(), hints=(torch.zeros(2, 2, 16, 16), torch.zeros(2, 1, 16, 16)))


def test_without_variety_the_answer_is_the_annealed_mean_whatever_the_seed():
    model, L = confident(), picture()
    expected = model.colorize(L)
    assert torch.equal(model.colorize(L, generator=seeded(1)), expected)
    assert torch.equal(model.colorize(L, generator=seeded(2), variety=0.0), expected)


def test_variety_is_seeded():
    model, L = confident(), picture()
    first, again, other = (model.colorize(L, generator=seeded(s), variety=1.0) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.05
    assert (first - model.colorize(L)).abs().mean() > 0.05


def test_more_variety_leaves_the_likeliest_answer_further():
    model, L = confident(), picture()
    away = [(model.colorize(L, generator=seeded(1), variety=v) - model.colorize(L)).norm() for v in (0.1, 0.5, 1, 3)]
    assert away == sorted(away)


def test_a_picture_does_not_depend_on_its_company():
    model, L = confident(), picture(3)
    together = model.colorize(L, generator=[seeded(s) for s in (4, 5, 6)], variety=1.0)
    for k in range(3):
        alone = model.colorize(L[k : k + 1], generator=[seeded(4 + k)], variety=1.0)
        torch.testing.assert_close(alone[0], together[k], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(48, 48), (21, 37), (1, 1), (1, 30)])
def test_noise_of_any_size(size):
    assert noise(size=size).shape == (60, *size)
    assert noise(size=size).isfinite().all()


def test_noise_is_smooth_over_the_picture_and_over_the_colours():
    found = torch.stack([noise(seed) for seed in range(4)])  # (4, Q, h, w)
    assert roughness(torch.randn(60, 48, 48, generator=seeded())) == pytest.approx(1, abs=0.05)
    assert roughness(found) < 0.05
    distances = torch.cdist(palette(60).centres, palette(60).centres)
    alike = torch.corrcoef(found.movedim(1, 0).flatten(1))
    assert alike[(distances > 0) & (distances < 5)].min() > 0.9
    assert alike[distances > 80].abs().mean() < 0.3


def test_noise_has_mean_0_the_spread_of_gumbels_and_no_memory_over_far_places():
    found = torch.stack([noise(seed) for seed in range(12)])
    assert found.mean().abs() < 0.15
    assert found.std().item() == pytest.approx(math.pi / 6**0.5, rel=0.25)
    here, there = found[..., 24], found[..., 24 + 20]
    assert (here * there).mean().abs() < 0.2 * found.var()


def test_answers_differ_by_regions_and_not_by_pixels():
    """On a flat picture the logits are the same everywhere, so that only the noise varies."""
    model = confident()
    L = torch.zeros(1, 1, 48, 48)
    off = model.colorize(L, generator=seeded(1), variety=1.0) - model.colorize(L)
    assert off.std() > 0.1
    assert roughness(off) < 0.15


def test_confidence_is_a_probability_by_its_head():
    model, L = tiny(), picture()
    torch.testing.assert_close(model.confidence(L), torch.sigmoid(model.network(L)[2]).detach())
    for bias, expected in ((-1e3, 0), (1e3, 1)):
        nn.init.constant_(model.confidence_head.bias, bias)
        assert (model.confidence(L) == expected).all()


def saved(path: Path, model: ClassificationColorizer) -> Path:
    config = RunConfig(model=model.config, data=DataConfig(image_size=16))
    save_checkpoint(path, {"model_state_dict": model.state_dict(), "config": config.model_dump(mode="json")})
    return path


@every_variant
def test_a_saved_model_gives_the_same_bits(tmp_path, changes):
    model = confident(**changes).eval()
    again, stored = load_model(saved(tmp_path / "best_model.pth", model))
    assert stored.model == model.config
    assert torch.equal(again.centres, palette().centres)
    assert torch.equal(again.counts, palette().counts.float())
    L = picture(2, (16, 13))
    options = {"generator": seeded(3), "variety": 1.0}
    assert torch.equal(again.colorize(L), model.colorize(L))
    assert torch.equal(again.colorize(L, **options), model.colorize(L, **options | {"generator": seeded(3)}))
    assert torch.equal(again.confidence(L), model.confidence(L))
    assert torch.equal(again(make_batch()).loss, model(make_batch()).loss)


# ---- photos, as `project7 colorize` does them


def colorizer(**changes) -> Colorizer:
    config = RunConfig(model=ClassificationConfig(**{**TINY, **changes}), data=DataConfig(image_size=16))
    return Colorizer(confident(**changes).eval(), config)


def diffusion() -> Colorizer:
    config = DiffusionConfig(features=(8, 16), time_dim=16, timesteps=50)
    return Colorizer(DiffusionColorizer(config).eval(), RunConfig(model=config, data=DataConfig(image_size=16)))


def photo(seed: int = 0, size: tuple[int, int] = (40, 24)) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).convert("RGB"))


def test_variants_of_a_photo_differ():
    """`variants` gives different answers also when a person calls Colorizer."""
    one, two = (np.array(image) for image in colorizer().colorize(photo(), variants=2))
    assert (one != two).any()
    alone = np.array(colorizer().colorize(photo(), seed=1, variety=1.0))
    with_others = np.array(colorizer().colorize(photo(), seed=0, variants=2, variety=1.0)[1])
    assert (alone == with_others).mean() > 0.99


def test_options_of_the_method():
    settings, ours = ColorizeConfig(temperature=0.5, variants=3), colorizer()
    assert method_options(ours, settings, {"temperature", "variants"}) == {"temperature": 0.5, "variety": 1.0}
    assert method_options(ours, ColorizeConfig(), set()) == {}, "one answer is the likeliest"
    assert method_options(ours, ColorizeConfig(variety=0.3, variants=2), {"variety"}) == {"variety": 0.3}
    found = method_options(diffusion(), ColorizeConfig(steps=3, candidates=2, calm=0.5), {"steps"})
    assert found == {"steps": 3, "sampler": "dpm++", "guidance": 1.0, "candidates": 2, "calm": 0.5}
    assert method_options(diffusion(), ColorizeConfig(fast=True), set())["candidates"] == 1


@pytest.mark.parametrize("flag", ["steps", "sampler", "candidates", "calm"])
def test_a_classification_model_has_no_steps(flag):
    with pytest.raises(UsageError, match=f"--{flag} is for diffusion models; this one is a classification model"):
        method_options(colorizer(), ColorizeConfig(), {flag})


@pytest.mark.parametrize("flag", ["temperature", "variety"])
def test_a_diffusion_model_has_no_temperature(flag):
    with pytest.raises(UsageError, match=f"--{flag} is for classification models; this one is a diffusion model"):
        method_options(diffusion(), ColorizeConfig(), {flag})
    with pytest.raises(UsageError, match="A diffusion model has no confidence map"):
        diffusion().confidence(photo())


@pytest.mark.parametrize("stride", [1, 2])
def test_the_confidence_map_has_the_size_of_the_photo(stride):
    found = colorizer(stem_stride=stride).confidence(photo(size=(41, 23)))
    assert found.shape == (41, 23)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def files(tmp_path, *names: str) -> list:
    (tmp_path / "in").mkdir()
    for k, name in enumerate(names):
        Image.fromarray(photo(k)).save(tmp_path / "in" / name)
    return [(tmp_path / "in" / name, (tmp_path / "in" / name).relative_to(tmp_path / "in")) for name in names]


def test_the_confidence_map_is_written_beside_the_picture(tmp_path):
    """Each map is that of its own photo, from the pass of the network that coloured it."""
    jobs = plan_outputs(files(tmp_path, "a.png", "b.png"), tmp_path / "out", variants=2)
    loaded, passes = colorizer(), []
    loaded.model.attention.register_forward_hook(lambda *call: passes.append(len(call[2])))
    outcomes = list(colorize_files(loaded, jobs, seed=0, batch_size=4, force=False, confidence=True))
    assert [outcome.kind for outcome in outcomes] == ["done", "done"]
    assert passes == [4]
    names = [f"{name}-confidence.png" for name in "ab"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*confidence*")) == names
    for k, name in enumerate(names):
        shown = np.array(Image.open(tmp_path / "out" / name).convert("L")) / 255
        assert np.abs(shown - loaded.confidence(photo(k))).max() < 0.003


def test_a_confidence_map_does_not_take_the_place_of_another_photo(tmp_path):
    """Either both are written under different names, or the request is refused."""
    files(tmp_path, "a.png", "a-confidence.png")
    model, out = saved(tmp_path / "m.pth", confident()), tmp_path / "out"
    try:
        command(["colorize", f"{tmp_path / 'in'}", "--model", f"{model}", "--output", f"{out}", "--confidence"])
    except UsageError:
        assert not out.exists()
    else:
        assert len(list(out.iterdir())) == 4


# ---- ResNet34's convolutions


def small_file(path, network: type = resnet34):
    """A state dict with the right names and shapes, whose tensors hold one number each."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network().state_dict().items()}
    torch.save({name: torch.tensor(0.01).expand(shape) for name, shape in shapes.items()}, path)
    return path


def test_the_rgb_kernels_are_folded_so_that_a_gray_picture_gives_the_same():
    kernels, L = rand(64, 3, 7, 7), rand(2, 1, 16, 16, seed=1)
    folded = encoder_start({"conv1.weight": kernels})["encoder.conv1.weight"]
    assert folded.shape == (64, 1, 7, 7)
    rgb = F.conv2d(L.expand(-1, 3, -1, -1), kernels, padding=3)
    torch.testing.assert_close(F.conv2d(L, folded, padding=3), rgb, rtol=1e-4, atol=1e-4)


def test_a_file_of_resnet34_gives_every_convolution_of_the_encoder(tmp_path):
    start = encoder_start(load_resnet34(str(small_file(tmp_path / "resnet34.pth"))))
    model, _ = full_size()
    convolutions = {f"encoder.{n}.weight": s for n, s in names(model.encoder, nn.Conv2d).items()}
    assert {n: tuple(t.shape) for n, t in start.items()} == convolutions
    assert start["encoder.layer3.5.conv2.weight"].unique().tolist() == [pytest.approx(0.01)]
    assert start["encoder.conv1.weight"].unique().tolist() == [pytest.approx(0.03)]
    assert set(start) <= set(model.state_dict())


@pytest.mark.parametrize("network", [resnet18, resnet50])
def test_a_resnet_of_another_size_is_refused(tmp_path, network):
    """ResNet50 also has a stem and a layer4.2.conv2 of the same shapes."""
    path = small_file(tmp_path / "other.pth", network)
    with pytest.raises(ProjectError, match=r"other\.pth"):
        load_resnet34(str(path))


def test_resnet34_without_some_of_its_convolutions_is_refused(tmp_path):
    """Otherwise they would stay random without anybody noticing."""
    weights = torch.load(small_file(tmp_path / "resnet34.pth"), weights_only=True)
    del weights["layer2.0.downsample.0.weight"]
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(ProjectError, match=r"part\.pth"):
        load_resnet34(str(tmp_path / "part.pth"))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code from a file was run",)


@pytest.mark.parametrize("name", ["missing", "empty", "text", "pickle", "list", "other names", "folder"])
def test_files_that_are_not_resnet34_are_refused_with_the_cure(tmp_path, name):
    path = tmp_path / "w.pth"
    tensors = {"list": [torch.zeros(2)], "other names": {"features.0.weight": torch.zeros(64, 3, 3, 3)}}
    contents = {"empty": b"", "text": b"resnet", "pickle": pickle.dumps(Bomb(), protocol=2)}
    if name in tensors:
        torch.save(tensors[name], path)
    elif name in contents:
        path.write_bytes(contents[name])
    elif name == "folder":
        path.mkdir()
    with pytest.raises(ProjectError, match=r"--encoder-weights .*w\.pth .*; (give a file|leave)"):
        load_resnet34(str(path))


def test_imagenet_weights_that_cannot_be_downloaded(offline):
    with pytest.raises(ProjectError, match=r"--encoder-weights imagenet cannot be loaded .* train from scratch"):
        load_resnet34("imagenet")


# ---- learning


def test_it_learns_two_pictures():
    """Each picture has a dark and a light half in different colours: the loss falls, colours appear, and confidence
    grows."""
    torch.manual_seed(0)
    model = ClassificationColorizer(ClassificationConfig(**{**TINY, "bins": 4, "rebalance": 0.5}))
    centres = torch.tensor([[50.0, 30.0], [-40.0, 20.0], [10.0, -50.0], [0.0, 60.0]])
    model.set_palette(Palette(centres, torch.ones(4, dtype=torch.float64)))
    L = torch.full((2, 1, 16, 16), -0.6)
    L[0, :, :, 8:] = L[1, :, 8:] = 0.6
    lab = torch.empty(2, 2, 16, 16)
    lab[0, :, :, :8], lab[0, :, :, 8:] = centres[0, :, None, None], centres[1, :, None, None]
    lab[1, :, :8], lab[1, :, 8:] = centres[2, :, None, None], centres[3, :, None, None]
    batch = Batch(L, model.from_lab(lab), BatchRandom(0, 0, 0, 2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model(batch)
    for _ in range(80):
        optimizer.zero_grad()
        model(batch).loss.mean().backward()
        optimizer.step()
    after = model(batch)
    assert after.loss.mean() < 0.4 * before.loss.mean()
    for name in ("class", "residual", "confidence", "histogram"):
        assert after.metrics[name].mean() < before.metrics[name].mean(), name
    error = (model.to_lab(model.colorize(L)) - lab).norm(dim=1)
    assert error.mean() < 0.3 * lab.norm(dim=1).mean()
    picture_lab = torch.cat([(L + 1) * 50, model.to_lab(model.colorize(L))], dim=1)
    assert color.show(picture_lab).float().std(dim=1).mean() > 10  # colours, not gray
    assert model.confidence(L).mean() > 0.7
