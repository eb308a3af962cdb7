"""losses.py: each term by hand and in scikit-image's Lab, what a weight of 0 saves, and gradients that never
explode."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor

from Project7 import color, losses
from Project7.loss_config import LOSS_WEIGHTS, PRESETS, LossConfig
from Project7.losses import ColorizationLossEnhanced, ColorizationLossSimple, ColorizationWeightedLoss, make_loss
from Project7.perceptual_loss import load_lpips

LOSSES = {
    "simple": ColorizationLossSimple,
    "weighted": ColorizationWeightedLoss,
    "enhanced": ColorizationLossEnhanced,
}
EVERYTHING = {  # every term of each loss, by weights that no two share; LPIPS by an untrained network
    "simple": {"perceptual_weight": 0.7, "lab_weight": 1.1, "ab_weight": 2.3, "diversity_weight": 0.13},
    "weighted": {"perceptual_weight": 0.01, "ab_weight": 1.7},
    "enhanced": {
        "perceptual_weight": 0.6,
        "l_weight": 0.31,
        "ab_weight": 2.9,
        "saturation_weight": 0.53,
        "a_weight": 1.2,
        "b_weight": 0.8,
    },
}
NAMES = {
    "simple": ("perceptual", "lab", "ab", "diversity"),
    "weighted": ("ab", "perceptual"),
    "enhanced": ("perceptual", "l_luminance", "ab_chrominance", "saturation"),
}
OF_TERM = {"lab": "lab_weight", "l_luminance": "l_weight", "saturation": "saturation_weight"} | {
    "perceptual": "perceptual_weight",
    "ab": "ab_weight",
    "ab_chrominance": "ab_weight",
    "diversity": "diversity_weight",
}
every_loss = pytest.mark.parametrize("kind", LOSSES)


def whole(kind: str) -> torch.nn.Module:
    return LOSSES[kind](**EVERYTHING[kind], perceptual_net="random")


def without_lpips(kind: str, **weights: float) -> torch.nn.Module:
    return LOSSES[kind](**{**EVERYTHING[kind], "perceptual_weight": 0.0, **weights})


def pictures(count: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def flat(*lab: float, size: int = 4) -> Tensor:
    return torch.tensor(lab, dtype=torch.float32)[None, :, None, None].expand(1, 3, size, size).clone()


def total_of(loss: torch.nn.Module, rgb: Tensor, truth: Tensor) -> float:
    with torch.no_grad():
        return loss(rgb, truth)[0].item()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a perceptual network was asked for")

    monkeypatch.setattr(losses, "load_lpips", refuse)


# ---- the terms


def test_the_terms_of_two_flat_colours_by_hand():
    """L is off by 10 (0.1), a by 22 (0.2), b by -44 (-0.4); the true chroma is 33 (0.3), that of the answer sqrt(22^2 +
    11^2)."""
    answer, truth = flat(60, 22, -11), flat(50, 0, 33)
    simple = without_lpips("simple").of_lab(answer, truth)
    assert simple["lab"].item() == pytest.approx((0.1**2 + 0.2**2 + 0.4**2) / 3)
    assert simple["ab"].item() == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert simple["diversity"].item() == 1  # a flat picture has no variance: 1 / (0 + 1)
    x = (33 - 5) / 30
    weight = 0.5 + 3 * x**2 - 2 * x**3
    assert without_lpips("weighted").of_lab(answer, truth)["ab"].item() == pytest.approx(weight * 0.1, rel=1e-5)
    enhanced = without_lpips("enhanced", a_weight=1, b_weight=1).of_lab(answer, truth)
    assert enhanced["l_luminance"].item() == pytest.approx(0.1**2)
    assert enhanced["ab_chrominance"].item() == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert enhanced["saturation"].item() == pytest.approx((math.hypot(0.2, 0.1) - 0.3) ** 2, rel=1e-4)


def test_the_terms_in_scikit_images_lab():
    rgb, truth = pictures(3), pictures(3, seed=1)
    found, true = (torch.from_numpy(rgb2lab(color.channels_last(p.double()))).movedim(-1, 1) for p in (rgb, truth))
    dL, (da, db) = (found - true)[:, 0] / 100, ((found - true)[:, 1:] / 110).unbind(1)
    ab = torch.stack([da, db]).square()
    (_, terms), (_, weighted), (_, enhanced) = (without_lpips(kind)(rgb, truth) for kind in LOSSES)
    close = {"rel": 1e-4}
    assert terms["lab"].item() == pytest.approx(torch.stack([dL, da, db]).square().mean().item(), **close)
    assert terms["ab"].item() == pytest.approx(ab.mean().item(), **close)
    variance = (found[:, 1:] / 110).var(dim=(2, 3)).mean(dim=1)
    assert terms["diversity"].item() == pytest.approx((1 / (1 + variance)).mean().item(), **close)
    x = ((true[:, 1:].norm(dim=1) - 5) / 30).clamp(0, 1)
    weight = 0.5 + x**2 * (3 - 2 * x)
    assert weighted["ab"].item() == pytest.approx((weight * ab).mean().item(), **close)
    assert enhanced["l_luminance"].item() == pytest.approx(dL.square().mean().item(), **close)
    by_channel = (1.2 * da.square() + 0.8 * db.square()).mean() / 2
    assert enhanced["ab_chrominance"].item() == pytest.approx(by_channel.item(), **close)
    chroma_found, chroma_true = (lab[:, 1:].norm(dim=1) / 110 for lab in (found, true))
    saturation = (chroma_found - chroma_true).square().mean()
    assert enhanced["saturation"].item() == pytest.approx(saturation.item(), **close)


def test_the_perceptual_term_is_lpips_of_the_pictures():
    rgb, truth = pictures() * 0.8 + 0.1, pictures(seed=1) * 0.8 + 0.1
    with torch.no_grad():
        expected = load_lpips("random")(rgb, truth).mean().item()
    for kind in LOSSES:
        assert whole(kind)(rgb, truth)[1]["perceptual"].item() == pytest.approx(expected, rel=1e-2)


@every_loss
def test_the_total_is_the_weighted_sum_of_all_named_terms(kind):
    loss = whole(kind)
    total, terms = loss(pictures(), pictures(seed=1))
    assert tuple(terms) == NAMES[kind]
    assert total.shape == ()
    expected = sum(EVERYTHING[kind][OF_TERM[name]] * value.item() for name, value in terms.items())
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert all(value.item() > 0 and value.shape == () for value in terms.values())


@every_loss
def test_the_named_terms_are_for_reading_only(kind):
    """If they are kept in a history, they must not keep the graph of every step alive."""
    rgb = pictures(size=8).requires_grad_()
    total, terms = without_lpips(kind)(rgb, pictures(size=8, seed=1))
    assert total.requires_grad
    assert not any(value.requires_grad for value in terms.values())


@every_loss
def test_the_truth_has_no_loss(kind):
    rgb = pictures()
    terms = whole(kind)(rgb, rgb)[1]
    assert all(value == 0 for name, value in terms.items() if name != "diversity")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_a_weight_of_0_leaves_its_term_out(kind, name):
    rgb, truth = pictures(), pictures(seed=1)
    full = whole(kind)
    loss = LOSSES[kind](**{**EVERYTHING[kind], OF_TERM[name]: 0}, perceptual_net="random")
    total, terms = loss(rgb, truth)
    assert set(terms) == set(NAMES[kind]) - {name}
    assert name not in loss.weights
    (total_before, before) = full(rgb, truth)
    assert total.item() == pytest.approx((total_before - full.weights[name] * before[name]).item(), rel=1e-4)


@every_loss
def test_without_a_perceptual_weight_no_network_is_built(kind, no_network):
    loss = without_lpips(kind)
    assert loss.perceptual is None
    assert not list(loss.parameters())
    assert loss(pictures(size=8), pictures(size=8, seed=1))[0].isfinite()
    with pytest.raises(AssertionError, match="was asked for"):  # and with one it is: the test above can fail
        LOSSES[kind](**EVERYTHING[kind])


def test_the_weighted_loss_needs_no_network_unless_told(no_network):
    loss = ColorizationWeightedLoss(device="cpu")  # as its document calls it
    assert loss.weights == {"ab": 1.0}


# ---- gray and saturated pixels


def test_gray_pixels_count_half_and_saturated_ones_one_and_a_half_times():
    chroma = torch.linspace(0, 120, 2401)
    weights = losses.pixel_weights(torch.stack([torch.full_like(chroma, 50), chroma, 0 * chroma])[None, :, None])
    assert weights.shape == (1, 1, 1, 2401)
    weights = weights.flatten()
    assert set(weights[chroma <= 5].tolist()) == {0.5}
    assert weights[chroma >= 35.01].tolist() == pytest.approx([1.5] * int((chroma >= 35.01).sum()), abs=1e-6)
    between = weights[(chroma > 5.5) & (chroma < 34.5)]
    assert (between > 0.5).all()
    assert (between < 1.5).all()
    assert (weights.diff() >= -1e-6).all()
    assert weights[chroma == 20].item() == pytest.approx(1)  # half-way


def test_the_weight_of_a_pixel_is_smooth_in_its_chroma():
    """It has neither a step nor a corner: the slope goes to 0 at both ends, and is at most 1.5 / 30 per unit between
    them."""
    chroma = torch.linspace(0, 60, 601)
    slope = losses.pixel_weights(torch.stack([0 * chroma, 0 * chroma, chroma])[None, :, None]).flatten().diff() / 0.1
    assert slope.max().item() == pytest.approx(1.5 / 30, rel=0.01)
    assert slope.diff().abs().max() < 0.1 * 1.1 * 6 / 30**2  # the curvature of 3 x^2 - 2 x^3 is at most 6


def test_the_weight_of_a_pixel_asks_for_the_true_chroma_whatever_its_hue_and_lightness():
    angle = torch.linspace(0, 6, 20)
    truth = torch.stack([torch.linspace(5, 95, 20), 18 * angle.cos(), 18 * angle.sin()])[None, :, None]
    weights = losses.pixel_weights(truth)
    torch.testing.assert_close(weights, weights[..., :1].expand_as(weights))
    loss = without_lpips("weighted", ab_weight=1)
    vivid, gray, off = flat(50, 60, 0), flat(50, 0, 0), torch.tensor([0.0, 11.0, 0.0])[:, None, None]
    of_vivid, of_gray = (loss.of_lab(truth + off, truth)["ab"].item() for truth in (vivid, gray))
    assert of_vivid == pytest.approx(3 * of_gray, rel=1e-5)


def test_the_weighted_loss_pulls_an_average_towards_the_saturated_colour():
    """Half of the places are gray and half are red: the squared error is lowest at their mean, the weighted one is
    not."""
    truth = torch.cat([flat(50, 0, 0), flat(50, 60, 30)])
    answer = truth.mean(dim=0, keepdim=True).expand_as(truth).clone().requires_grad_()
    slopes = {}
    for kind in ("simple", "weighted"):
        slopes[kind] = torch.autograd.grad(without_lpips(kind).of_lab(answer, truth)["ab"].sum(), answer)[0].sum(
            dim=(0, 2, 3)
        )
    assert slopes["simple"][1:].abs().max() < 1e-7
    assert (slopes["weighted"][1:] < -1e-3).all()


# ---- the enhanced loss


def test_a_and_b_have_weights_of_their_own():
    truth, off = flat(50, 10, 10), {"a": flat(50, 32, 10), "b": flat(50, 10, -12)}  # 0.2 each
    loss = without_lpips("enhanced", a_weight=3, b_weight=0.5)
    ab = {name: loss.of_lab(answer, truth)["ab_chrominance"].item() for name, answer in off.items()}
    assert ab == pytest.approx({"a": 3 * 0.02, "b": 0.5 * 0.02}, rel=1e-5)


def test_a_wrong_hue_of_the_right_chroma_costs_no_saturation_and_gray_does():
    truth = flat(50, 40, 0)
    loss = without_lpips("enhanced")
    assert loss.of_lab(flat(50, 0, -40), truth)["saturation"].item() == pytest.approx(0, abs=1e-9)
    assert loss.of_lab(flat(50, 0, 0), truth)["saturation"].item() == pytest.approx((40 / 110) ** 2, rel=1e-3)
    gray = flat(50, 0.1, 0).requires_grad_()
    loss.of_lab(gray, truth)["saturation"].sum().backward()
    assert (gray.grad[:, 1] < 0).all()  # and it leads away from gray


def test_the_presets_are_the_documents_table(monkeypatch):
    monkeypatch.setattr(losses, "load_lpips", lambda *arguments: torch.nn.Identity())
    table = {  # perceptual, l, ab, saturation
        "conservative": (0.5, 0.3, 2.0, 0.3),
        "balanced": (0.5, 0.3, 3.0, 0.5),
        "vibrant": (0.3, 0.2, 4.0, 1.0),
        "maximum": (0.2, 0.2, 5.0, 1.5),
    }
    assert set(PRESETS) == set(table)
    for name, weights in table.items():
        found = ColorizationLossEnhanced.preset(name)
        assert tuple(found.weights.values()) == weights
        assert tuple(found.weights) == NAMES["enhanced"]
        assert (found.a_weight, found.b_weight) == (1, 1)
    assert ColorizationLossEnhanced().weights == ColorizationLossEnhanced.preset("balanced").weights


def test_a_preset_may_be_changed_in_part_and_another_name_is_none(no_network):
    loss = ColorizationLossEnhanced.preset("vibrant", perceptual_weight=0, b_weight=2)
    assert loss.weights == {"l_luminance": 0.2, "ab_chrominance": 4.0, "saturation": 1.0}
    assert (loss.a_weight, loss.b_weight) == (1, 2)
    with pytest.raises(KeyError, match="lively"):
        ColorizationLossEnhanced.preset("lively")


# ---- as the documents call them, and as a configuration does


def test_the_calls_of_the_documents(monkeypatch):
    asked = []

    def load(net, file):
        asked.append((net, file))
        return load_lpips("random")

    monkeypatch.setattr(losses, "load_lpips", load)
    enhanced = ColorizationLossEnhanced(
        perceptual_weight=0.5,
        l_weight=0.3,
        ab_weight=3.0,
        saturation_weight=0.5,
        perceptual_net="alex",
        device=torch.device("cpu"),
    )
    simple = ColorizationLossSimple(device="cpu")
    assert asked == [("alex", None)] * 2
    assert simple.weights == {"perceptual": 1.0, "lab": 1.0, "ab": 2.0}
    for loss in (enhanced, simple, ColorizationWeightedLoss(device="cpu")):
        total, terms = loss(pictures(), pictures(seed=1))
        assert total.isfinite()
        assert terms.keys() == loss.weights.keys()


@every_loss
def test_the_defaults_of_a_call_are_those_of_the_configuration(kind):
    parameters = inspect.signature(LOSSES[kind]).parameters
    assert {n: p.default for n, p in parameters.items() if n.endswith("_weight")} == LOSS_WEIGHTS[kind]
    config = LossConfig(loss=kind)
    assert parameters["perceptual_net"].default == config.perceptual_net
    assert parameters["perceptual_weights"].default is config.perceptual_weights is None


@every_loss
def test_a_configuration_makes_its_loss(kind, monkeypatch):
    asked = []
    monkeypatch.setattr(losses, "load_lpips", lambda *arguments: asked.append(arguments) or torch.nn.Identity())
    loss = make_loss(LossConfig(loss=kind, **EVERYTHING[kind], perceptual_net="vgg", perceptual_weights="f"), "cpu")
    assert type(loss) is LOSSES[kind]
    assert asked == [("vgg", "f")]
    assert loss.weights == {name: EVERYTHING[kind][OF_TERM[name]] for name in NAMES[kind]}
    if kind == "enhanced":
        assert (loss.a_weight, loss.b_weight) == (1.2, 0.8)


def test_a_preset_of_a_configuration_makes_its_loss(no_network):
    loss = make_loss(LossConfig(loss="enhanced", preset="maximum", perceptual_weight=0, ab_weight=7), "cpu")
    assert loss.weights == {"l_luminance": 0.2, "ab_chrominance": 7.0, "saturation": 1.5}


def test_a_loss_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_lpips.cache_clear()  # so that its network is drawn anew
    whole("simple")(pictures(), pictures(seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_on_another_device_leaves_this_one_where_it_is():
    """The network is loaded once; moving it for one loss must not move that of another."""
    here = whole("simple")
    try:
        ColorizationLossSimple(perceptual_net="random", device="meta")
        assert here(pictures(), pictures(seed=1))[0].isfinite()
    finally:
        load_lpips.cache_clear()


# ---- what is refused


@pytest.mark.parametrize(
    ("rgb", "truth"),
    [
        ((3, 8, 8), (3, 8, 8)),
        ((3, 3, 8), (3, 3, 8)),
        ((2, 3, 3, 8, 8), (2, 3, 3, 8, 8)),
        ((2, 1, 8, 8), (2, 1, 8, 8)),
        ((2, 2, 8, 8), (2, 2, 8, 8)),
        ((2, 8, 8, 3), (2, 8, 8, 3)),
        ((2, 3, 8, 8), (1, 3, 8, 8)),
        ((2, 3, 8, 8), (2, 3, 8, 9)),
        ((2, 3, 8, 8), (2, 1, 8, 8)),
    ],
)
@every_loss
def test_pictures_of_a_wrong_shape_are_named(kind, rgb, truth):
    """Broadcasting would still compare them, and train on nonsense."""
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)") as caught:
        without_lpips(kind)(torch.rand(rgb), torch.rand(truth))
    assert str(rgb) in str(caught.value)
    assert str(truth) in str(caught.value)


@every_loss
def test_all_weights_0_are_refused(kind):
    with pytest.raises(ValueError, match="at least one above 0"):
        LOSSES[kind](**dict.fromkeys(LOSS_WEIGHTS[kind], 0))


@pytest.mark.parametrize("value", [-1.0, -1e-9, math.nan])
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in LOSS_WEIGHTS.items() for name in names])
def test_a_weight_that_is_not_0_or_more_is_refused(kind, name, value, no_network):
    """A negative weight would drive the colours away from the truth without bound; the same holds for a_weight and
    b_weight."""
    with pytest.raises(ValueError, match="0 or more"):
        without_lpips(kind, **{name: value})


# ---- gradients

CORNERS = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "gray": (0.5, 0.5, 0.5),
    "red": (1.0, 0.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "nearly black": (0.003, 0.002, 0.001),
    "below 0": (-0.2, 0.5, -0.01),
    "above 1": (1.3, 0.2, 2.0),
}


def painted(rgb: tuple[float, ...]) -> Tensor:
    return torch.tensor(rgb)[None, :, None, None].expand(1, 3, 32, 32).clone()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@every_loss
def test_gradients_are_finite_at_every_corner(kind, precision):
    """All pairs of colours in one batch, equal ones among them, and colours that no screen shows."""
    pairs = [(corner, truth) for corner in CORNERS for truth in ("black", "white", "gray", "red")]
    rgb, truths = (torch.cat([painted(CORNERS[pair[side]]) for pair in pairs]) for side in (0, 1))
    rgb.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        total, terms = whole(kind)(rgb, truths)
    total.backward()
    assert total.dtype == torch.float32
    assert all(value.isfinite() for value in terms.values())
    for (corner, truth), gradient in zip(pairs, rgb.grad * len(pairs), strict=True):
        assert gradient.isfinite().all(), (corner, truth)
        assert gradient.norm() < 100, (corner, truth)
        if corner != truth and not {corner, truth} <= {"black", "white", "gray"}:  # there is a colour to learn
            assert gradient.any(), (corner, truth)


@pytest.mark.parametrize("value", [200.0, -200.0, 1e4, -1e4])
@every_loss
def test_an_answer_that_is_no_colour_at_all_has_a_finite_gradient(kind, value):
    """A network that has diverged gives such answers: Lab far beyond all colours, also in L if it restores
    lightness."""
    lab = torch.full((1, 3, 32, 32), value, requires_grad=True)
    terms = whole(kind).of_lab(lab, flat(50, 10, 10, size=32))
    sum(values.sum() for values in terms.values()).backward()
    assert all(values.isfinite().all() for values in terms.values())
    assert lab.grad.isfinite().all()


@every_loss
def test_the_gradient_is_that_of_the_loss(kind):
    """It is compared with central differences along random directions; float32 and the network's kinks allow 2 %."""
    loss, truth = whole(kind), pictures(seed=1) * 0.8 + 0.1
    rgb = (pictures() * 0.8 + 0.1).requires_grad_()
    gradient = torch.autograd.grad(loss(rgb, truth)[0], rgb)[0]
    for seed in range(3):
        direction = torch.randn(rgb.shape, generator=torch.Generator().manual_seed(seed)) + gradient / gradient.std()
        step = 2e-3 * direction
        difference = (total_of(loss, rgb + step, truth) - total_of(loss, rgb - step, truth)) / 4e-3
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=0.02)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_the_gradient_of_every_term_is_right(kind, name):
    """Each term is tested alone, in Lab: a mistake in a small term would be lost in the total."""
    loss, truth = whole(kind), color.rgb_to_lab(pictures(1, seed=1) * 0.8 + 0.1)
    lab = color.rgb_to_lab(pictures(1) * 0.8 + 0.1).requires_grad_()
    gradient = torch.autograd.grad(loss.of_lab(lab, truth)[name].sum(), lab)[0]
    assert gradient.any()
    step = gradient / gradient.norm() * 20
    with torch.no_grad():
        ahead, behind = (loss.of_lab(lab + sign * step, truth)[name].item() for sign in (1, -1))
    assert (gradient * step).sum().item() == pytest.approx((ahead - behind) / 2, rel=0.05)


@every_loss
def test_colours_walk_from_gray_to_the_truth(kind):
    loss, truth = whole(kind), color.lab_to_rgb(flat(55, 35, 25, size=32)).clamp(0, 1)
    rgb = painted((0.5, 0.5, 0.5)).requires_grad_()
    optimizer = torch.optim.Adam([rgb], lr=0.03)
    first = total_of(loss, rgb, truth)
    for _ in range(25):
        optimizer.zero_grad()
        loss(rgb, truth)[0].backward()
        optimizer.step()
    diversity = EVERYTHING[kind].get("diversity_weight", 0)  # a flat picture keeps the whole of it
    assert total_of(loss, rgb, truth) - diversity < 0.15 * (first - diversity)


# ---- why -log(variance) is not offered


def slope_in_the_variance(term, spread: float) -> tuple[float, float]:
    """The derivative of `term` with respect to the variance of ab at this spread, and the norm of its gradient with
    respect to the picture."""
    pattern = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 110
    pattern[:, 0] = 0
    size = torch.tensor(spread, requires_grad=True)
    lab = flat(50, 10, 10, size=8) + size * pattern
    lab.retain_grad()
    variance = color.scaled(lab)[:, 1:].var(dim=(2, 3)).mean()
    by_size = torch.autograd.grad(variance, size, retain_graph=True)[0]
    lab.grad = None  # which that pass has filled as well
    term(lab).sum().backward()
    return (size.grad / by_size).item(), 110 * lab.grad[:, 1:].norm().item()


def minus_log(lab: Tensor) -> Tensor:
    return -color.scaled(lab)[:, 1:].var(dim=(2, 3)).mean(dim=1).log()


def test_the_slope_of_minus_log_variance_grows_without_bound_and_that_of_the_mild_term_does_not():
    """The slope of the old term is -1 / variance: ten times less spread means a hundred times the slope and ten times
    the gradient, just where the picture has one colour. That of the mild one is 1 / (variance + 1)^2, at most 1."""
    spreads = (0.3, 0.03, 0.003)
    old, mild = ([slope_in_the_variance(term, s) for s in spreads] for term in (minus_log, losses.diversity))
    for (coarse, coarse_norm), (fine, fine_norm) in pairwise(old):
        assert fine == pytest.approx(100 * coarse, rel=0.01)
        assert fine_norm == pytest.approx(10 * coarse_norm, rel=0.01)
    assert abs(old[-1][0]) > 50_000
    assert all(-1.0001 <= slope < -0.5 for slope, _ in mild)
    norms = [norm for _, norm in mild]
    assert norms == sorted(norms, reverse=True)  # it even fades as the picture becomes flat
    assert max(norms) < 0.1


def test_one_step_against_the_old_term_is_wild_and_against_the_mild_one_is_not():
    """This is gradient descent at rate 0.01 from a nearly flat picture, with chroma in units of 110, so that the whole
    gamut is about 1."""
    moved = {
        term.__name__: 0.01 * slope_in_the_variance(term, 1e-5)[1] / (2 * 64) ** 0.5
        for term in (minus_log, losses.diversity)
    }
    assert moved["minus_log"] > 1
    assert moved["diversity"] < 1e-6


@every_loss
def test_no_loss_has_a_term_that_explodes_on_a_picture_of_one_colour(kind):
    rgb = painted((0.4, 0.6, 0.3)).requires_grad_()
    whole(kind)(rgb, pictures(1)[:1])[0].backward()
    assert rgb.grad.norm() < 1


def test_variety_is_within_a_picture_not_among_pictures():
    """Two flat pictures of different colours have no variance."""
    lab = torch.cat([flat(50, 60, 0), flat(50, -60, 0)])
    assert losses.diversity(lab).tolist() == [1, 1]
    half = flat(50, 55, 0)
    half[..., :2] = torch.tensor([50.0, -55.0, 0.0])[:, None, None]
    assert losses.diversity(half).item() == pytest.approx(1 / (1 + 0.25 * 16 / 15 / 2), rel=1e-5)  # a: +-0.5, b: 0


# ---- batches and precision


@every_loss
def test_a_batch_is_the_mean_of_its_micro_batches(kind):
    loss, rgb, truth = whole(kind), pictures(4), pictures(4, seed=1)
    lab, true = color.rgb_to_lab(rgb), color.rgb_to_lab(truth)
    values = loss.of_lab(lab, true)
    assert all(value.shape == (4,) for value in values.values())
    parts = [loss.of_lab(lab[own], true[own]) for own in (slice(0, 1), slice(1, 4))]
    for name, value in values.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-4, atol=1e-6)
    total, terms = loss(rgb, truth)
    singles = [loss(rgb[i : i + 1], truth[i : i + 1]) for i in range(4)]
    assert total.item() == pytest.approx(sum(single.item() for single, _ in singles) / 4, rel=1e-4)
    for name in terms:
        assert terms[name].item() == pytest.approx(sum(t[name].item() for _, t in singles) / 4, rel=1e-4)


@every_loss
def test_bf16_autocast_is_near_float32(kind):
    loss, truth = whole(kind), pictures(seed=1)
    answers = {}
    for precision in ("float32", "bf16"):
        rgb = pictures().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total, terms = loss(rgb, truth)
        total.backward()
        answers[precision] = (total.item(), {n: v.item() for n, v in terms.items()}, rgb.grad.flatten())
        assert {value.dtype for value in (total, *terms.values())} == {torch.float32}
    exact, rough = answers["float32"], answers["bf16"]
    assert rough[0] == pytest.approx(exact[0], rel=0.05)
    assert rough[1] == pytest.approx(exact[1], rel=0.05)
    assert {n: v for n, v in rough[1].items() if n != "perceptual"} == pytest.approx(
        {n: v for n, v in exact[1].items() if n != "perceptual"}, rel=1e-5
    )
    assert torch.cosine_similarity(rough[2], exact[2], dim=0) > 0.9


@every_loss
def test_bf16_pictures_are_compared_in_float32(kind):
    """A network under autocast gives such answers."""
    rgb, truth = pictures(size=8).bfloat16().requires_grad_(), pictures(size=8, seed=1)
    loss = without_lpips(kind)
    total, _ = loss(rgb, truth)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(total_of(loss, rgb.float(), truth), rel=0.02)
    total.backward()
    assert rgb.grad.isfinite().all()


@every_loss
def test_pictures_of_any_size_that_the_network_takes(kind):
    for height, width in ((32, 32), (33, 47)):
        rgb = pictures(1, 48)[..., :height, :width]
        assert whole(kind)(rgb, rgb.flip(1))[0] > 0


@every_loss
def test_nothing_given_is_changed_and_the_network_learns_nothing(kind):
    rgb, truth = pictures().requires_grad_(), pictures(seed=1)
    before = rgb.detach().clone(), truth.clone()
    loss = whole(kind).train()
    loss(rgb, truth)[0].backward()
    assert torch.equal(rgb, before[0])
    assert torch.equal(truth, before[1])
    assert not loss.perceptual.training
    assert not any(p.requires_grad or p.grad is not None for p in loss.parameters())
