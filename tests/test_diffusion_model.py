"""diffusion_model.py: tiny U-Nets, pictures of 16 pixels and of odd sizes; one test in which a model learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from Project7.batch import Batch, BatchRandom
from Project7.diffusion_model import AS_DRAWN, DiffusionColorizer, make_unet, pad_to_multiple
from Project7.encoder import SHIPPED
from Project7.errors import UsageError
from Project7.model_config import DiffusionConfig

EPSILON = {"prediction_type": "epsilon"}
V = {"prediction_type": "v_prediction"}
ENCODER = {"encoder": SHIPPED, "encoder_size": 32, "neck_width": 8, "attention_levels": 2}
CLASSES = {"head": "classes", "bins": 9}
VARIANTS = {
    "v": V,
    "epsilon": EPSILON,
    "half resolution": {"chroma_scale": 2},
    "hints": {"hints": True},
    "hints at half resolution": {"hints": True, "chroma_scale": 2},
    "epsilon, min-SNR": {**EPSILON, "min_snr_gamma": 5.0},
    "shifted noise": {"noise_shift": 3.0},
    "three levels, two layers": {"features": (8, 12, 16), "layers": 2},
    "an eighth": {"chroma_scale": 8, "features": (8,)},
    "encoder": {**ENCODER, "chroma_scale": 4},
    "encoder, mean, hints": {**ENCODER, "chroma_scale": 4, "head": "mean", "hints": True, "hint_share": 0.9},
    "encoder, classes, entropy": {**ENCODER, "chroma_scale": 8, "features": (8,), **CLASSES, "head_entropy": True},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
every_size = pytest.mark.parametrize("size", [(16, 16), (13, 9)], ids=["16x16", "13x9"])


def tiny(**changes) -> DiffusionColorizer:
    torch.manual_seed(0)
    model = DiffusionColorizer(DiffusionConfig(**{"features": (8, 16), "time_dim": 16, **changes}))
    if model.config.head == "classes":
        model.head.centres.copy_(torch.cartesian_prod(*[torch.tensor([-20.0, 0.0, 20.0])] * 2))
        model.head.counts.fill_(1)
    return model


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(count: int = 4, size: tuple[int, int] = (16, 16), step: int = 0, image_share: float = 0.0) -> Batch:
    L = rand(count, 1, *size, seed=1).clamp(-1, 1)
    return Batch(L, rand(count, 2, *size, seed=2), BatchRandom(3, step, 0, count, count), image_share)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def colours(model: DiffusionColorizer, L: Tensor, seed: int = 0, **options) -> Tensor:
    return model.colorize(L, generator=seeded(seed), **{"steps": 3, **options})


def hints_at(size: tuple[int, int], *places: tuple[int, int], count: int = 1) -> tuple[Tensor, Tensor]:
    """Hints of ab = 2 with their mask, at some places of each of `count` pictures."""
    mask = torch.zeros(count, 1, *size)
    for y, x in places:
        mask[:, :, y, x] = 1
    return torch.full((count, 2, *size), 2.0), mask


# ---- one training step


@every_variant
@every_size
def test_loss_is_finite_and_reaches_every_parameter(changes, size):
    model = tiny(**changes)
    step = model(make_batch(6, size))
    assert step.loss.shape == (6,)
    assert step.loss.isfinite().all()
    assert (step.loss > 0).all()
    assert step.metrics["mse"].shape == (6,)
    assert not step.metrics["mse"].requires_grad
    assert step.estimate is None
    step.loss.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not name.endswith("to_k.bias"):  # softmax is invariant to it, so its true gradient is 0
            assert parameter.grad.any(), name


@every_variant
@every_size
def test_the_estimate_has_the_size_of_the_picture_and_a_gradient(changes, size):
    model = tiny(**changes)
    batch = make_batch(5, size, image_share=0.6)
    ab_hat, truth, L, weight, _ = model(batch).estimate
    count = len(L)
    assert 2 <= count <= 4
    assert ab_hat.shape == truth.shape == (count, 2, *size)
    assert weight.shape == (count,)
    assert (weight > 0).all()
    assert not weight.requires_grad
    assert not truth.requires_grad
    ab_hat.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@every_variant
@every_size
def test_the_estimate_may_be_of_no_sample(changes, size):
    """A small batch may have no timestep with little noise; the term and its gradient are then 0."""
    model = tiny(**changes)
    for step in range(20):
        estimate = model(make_batch(1, size, step=step, image_share=0.1)).estimate
        if not len(estimate.L):
            break
    assert estimate.ab_hat.shape == estimate.truth.shape == (0, 2, *size)
    assert estimate.weight.shape == (0,)
    assert estimate.L.shape == (0, 1, *size)
    (estimate.ab_hat.sum() + estimate.weight.sum()).backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_the_estimate_is_of_the_samples_with_the_least_noise(share, monkeypatch):
    model, seen, counts = tiny(), [], []
    monkeypatch.setattr(model, "denoise", lambda x_t, t, L, hints=None, known=None: seen.append(t) or x_t)
    for step in range(20):
        batch = make_batch(16, step=step, image_share=share)
        estimate = model(batch).estimate
        assert torch.equal(estimate.L, batch.L[seen[-1] < 1000 * share])
        counts.append(len(estimate.L))
    assert sum(counts) / 20 == pytest.approx(16 * share, rel=0.1, abs=0.1)
    assert max(counts) - min(counts) <= 3  # each step costs about the same


@every_variant
def test_the_truth_is_the_true_chroma_as_finely_as_the_model_can_give_it(changes):
    model, batch = tiny(**changes), make_batch(6, (13, 9), image_share=1.0)
    truth = model(batch).estimate.truth
    if model.config.chroma_scale == 1:
        assert torch.equal(truth, batch.ab)
    else:
        torch.testing.assert_close(truth, model.expand(model.shrink(batch.ab), batch.L))


@every_variant
def test_the_estimate_is_none_of_the_losss_business(changes):
    model = tiny(**changes)
    assert torch.equal(model(make_batch(image_share=0.5)).loss, model(make_batch()).loss)


SCHEDULES = {"v": V, "epsilon": EPSILON, "shifted": {"noise_shift": 3.0}, "very shifted": {"noise_shift": 32.0}}


@pytest.mark.parametrize("timesteps", [2, 50, 1000])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("changes", SCHEDULES.values(), ids=SCHEDULES)
def test_image_weights_have_a_mean_of_1_over_the_whole_schedule(changes, share, timesteps):
    """So the weight of a term means the same whatever the share and the schedule are."""
    model = tiny(**changes, features=(8,), timesteps=timesteps)
    t = torch.arange(model.image_timesteps(share))
    weight = model.image_weight(t, share)
    assert len(t) == max(1, round(share * timesteps))
    assert weight.sum().item() / timesteps == pytest.approx(1, rel=1e-4)
    expected = model.noise_scheduler.alphas_cumprod[: len(t)]
    torch.testing.assert_close(weight / weight[0], expected / expected[0])  # noisier samples have less weight


@pytest.mark.parametrize("changes", [V, EPSILON, {"noise_shift": 3.0}])
def test_image_weights_of_many_batches_add_up_to_their_samples(changes, monkeypatch):
    model = tiny(**changes, features=(8,))
    monkeypatch.setattr(model, "denoise", lambda x_t, t, L, hints=None, known=None: x_t)
    batches = (make_batch(16, (4, 4), step=step, image_share=0.25) for step in range(1000))
    sums = [model(batch).estimate.weight.sum() for batch in batches]
    assert torch.stack(sums).mean().item() == pytest.approx(16, rel=0.03)


@every_variant
def test_the_batch_is_not_changed(changes):
    batch, untouched = make_batch(image_share=1.0), make_batch(image_share=1.0)
    step = tiny(**changes)(batch)
    (step.loss.sum() + step.estimate.ab_hat.sum()).backward()
    assert torch.equal(batch.L, untouched.L)
    assert torch.equal(batch.ab, untouched.ab)


@every_variant
def test_a_step_is_a_function_of_seed_and_step(changes):
    model = tiny(**changes)
    first = model(make_batch()).loss
    torch.rand(10)
    assert torch.equal(model(make_batch()).loss, first)
    assert not torch.isclose(model(make_batch(step=1)).loss, first).any()


@every_variant
def test_a_batch_in_two_parts_has_the_loss_of_the_whole(changes):
    model = tiny(**changes)
    batch = make_batch(5, image_share=0.6)
    whole, estimates = model(batch), []
    for start, count in ((0, 2), (2, 3)):
        own = slice(start, start + count)
        part = model(Batch(batch.L[own], batch.ab[own], BatchRandom(3, 0, start, count, 5), 0.6))
        torch.testing.assert_close(part.loss, whole.loss[own], rtol=1e-4, atol=1e-5)
        estimates.append(part.estimate)
    together = [torch.cat(parts) for parts in list(zip(*estimates, strict=True))[:4]]
    for ours, expected in zip(together, whole.estimate[:4], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [V, EPSILON, {**EPSILON, "beta_schedule": "squaredcos_cap_v2"}])
def test_the_true_answer_has_no_loss_and_gives_the_true_chroma(changes, monkeypatch):
    """If the network predicts its target exactly (eps of Ho et al., or v of Salimans and Ho), the estimate is x_0."""
    model, batch = tiny(**changes), make_batch(16, image_share=1.0)
    noise, seen = batch.random.normal("noise", (2, 16, 16)), []

    def know_it_all(x_t, t, L, hints=None, known=None):
        abar = model.noise_scheduler.alphas_cumprod[t][:, None, None, None]
        torch.testing.assert_close(x_t, abar.sqrt() * batch.ab + (1 - abar).sqrt() * noise)
        assert torch.equal(L, batch.L)
        seen.append(t)
        return noise if changes["prediction_type"] == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * batch.ab

    monkeypatch.setattr(model, "denoise", know_it_all)
    step = model(batch)
    assert step.loss.max() < 1e-10
    assert torch.equal(step.estimate.L, batch.L)
    torch.testing.assert_close(step.estimate.ab_hat, batch.ab, rtol=0, atol=2e-3)  # eps_hat / as little as 0.006
    abar = model.noise_scheduler.alphas_cumprod
    torch.testing.assert_close(step.estimate.weight, abar[seen[0]] / abar.mean())


@pytest.mark.parametrize("timesteps", [2, 16, 1000])
def test_a_batch_covers_all_timesteps_evenly(timesteps, monkeypatch):
    model, seen = tiny(timesteps=timesteps), []
    monkeypatch.setattr(model, "denoise", lambda x_t, t, L, hints=None, known=None: seen.append(t) or x_t)
    for step in range(20):
        model(make_batch(16, step=step))
        t = seen[-1].sort().values
        assert t.dtype == torch.long
        assert t[0] >= 0
        assert t[-1] < timesteps
        # Low-discrepancy timesteps: gaps are between 1 / sqrt(5) and 1 + 2 / sqrt(5) of the mean, before rounding down.
        assert t.diff().min() > 5**-0.5 * timesteps / 16 - 1
        assert t.diff().max() < (1 + 2 * 5**-0.5) * timesteps / 16 + 1
    every_step = torch.cat(seen).float()
    assert every_step.mean().item() == pytest.approx((timesteps - 1) / 2, rel=0.05)


@every_variant
def test_autocast_to_bf16_keeps_the_loss_in_float32(changes):
    model = tiny(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        step = model(make_batch(image_share=1.0))
    assert step.loss.dtype == step.estimate.ab_hat.dtype == step.estimate.truth.dtype == torch.float32
    torch.testing.assert_close(step.loss, model(make_batch()).loss, rtol=0.1, atol=0.05)


# ---- equations


@pytest.mark.parametrize("changes", [V, EPSILON])
def test_x_0_hat_inverts_the_forward_process_at_every_timestep(changes):
    model = tiny(**changes, features=(8,), timesteps=50)
    t = torch.arange(50)
    x_0, noise = rand(50, 2, 4, 4), rand(50, 2, 4, 4, seed=1)
    abar = model.noise_scheduler.alphas_cumprod[:, None, None, None]
    signal, sigma = abar.sqrt(), (1 - abar).sqrt()
    prediction = noise if changes is EPSILON else signal * noise - sigma * x_0
    x_0_hat = model.x_0_hat(prediction, signal * x_0 + sigma * noise, t)
    torch.testing.assert_close(x_0_hat, x_0, rtol=0, atol=1e-4 if changes is EPSILON else 3e-6)


def test_x_0_hat_from_eps_stays_within_what_ab_can_be():
    model = tiny(**EPSILON)
    t = torch.tensor([0, 999])
    x_0_hat = model.x_0_hat(torch.full((2, 2, 1, 1), -3.0), torch.ones(2, 2, 1, 1), t)
    assert x_0_hat[0, 0, 0, 0].item() == pytest.approx(1.03, abs=0.01)  # at low noise nothing is clamped
    in_lab = x_0_hat[1, :, 0, 0] * model.ab_std + model.ab_mean
    assert ((in_lab > 128) & (in_lab < 256)).all()  # unclamped it would be 630 standard deviations


@pytest.mark.parametrize("changes", [V, EPSILON, {**V, "zero_terminal_snr": False}])
def test_min_snr_weights_by_hand(changes):
    model = tiny(**changes, features=(8,), min_snr_gamma=5.0)
    for t in (0, 1, 50, 100, 200, 300, 500, 800, 998):
        abar = model.noise_scheduler.alphas_cumprod[t].item()
        snr = abar / (1 - abar)
        paper = min(snr, 5) / snr if changes is EPSILON else min(snr, 5) / (snr + 1)
        ours = model.loss_weight(torch.tensor([t])).item()
        assert ours == pytest.approx(max(paper, 0.05), rel=1e-4)
    assert model.loss_weight(torch.arange(1000)).min() == pytest.approx(0.05)


def test_min_snr_weights_at_known_snr(monkeypatch):
    """SNR 1, 4 and 9: min(SNR, 5) / SNR = 1, 1, 5/9 for eps; min(SNR, 5) / (SNR + 1) = 1/2, 4/5, 1/2 for v."""
    abar = torch.tensor([0.5, 0.8, 0.9])
    for changes, expected in ((EPSILON, [1, 1, 5 / 9]), (V, [1 / 2, 4 / 5, 1 / 2])):
        model = tiny(**changes, features=(8,), min_snr_gamma=5.0)
        monkeypatch.setattr(model, "alphas_cumprod", abar)
        torch.testing.assert_close(model.loss_weight(torch.arange(3)), torch.tensor(expected))


def test_the_step_of_pure_noise_is_trained_all_the_same():
    model = tiny(min_snr_gamma=5.0)
    assert model.alphas_cumprod[-1] == 0
    assert model.loss_weight(torch.tensor([999])).item() == pytest.approx(0.05)


def test_without_gamma_every_weight_is_one():
    assert torch.equal(tiny(features=(8,)).loss_weight(torch.arange(1000)), torch.ones(1000))


def test_the_loss_is_the_weighted_error():
    plain, weighted = tiny()(make_batch()), tiny(min_snr_gamma=5.0)(make_batch())
    assert torch.equal(plain.loss.detach(), plain.metrics["mse"])
    assert torch.equal(weighted.metrics["mse"], plain.metrics["mse"])
    assert not torch.isclose(weighted.loss, plain.loss).all()


# ---- the network's shape


@pytest.mark.parametrize(
    ("features", "groups"),
    [((8, 16), 4), ((48, 96), 24), ((7, 9, 16), 1), ((64, 128), 32), ((6, 9), 1), ((2,), 1), ((24, 36), 6)],
)
def test_groups_divide_every_width(features, groups):
    unet = make_unet(DiffusionConfig(features=features, time_dim=8))
    assert unet.config.norm_num_groups == groups
    assert all(width % groups == 0 for width in features)


@pytest.mark.parametrize("features", [(1,), (5,), (8,), (7, 9, 16), (4, 4, 6, 8), (2, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("chroma_scale", [1, 2])
def test_any_widths_and_any_number_of_levels(features, chroma_scale):
    model = tiny(features=features, chroma_scale=chroma_scale, layers=1)
    batch = make_batch(2, (13, 9), image_share=1.0)
    step = model(batch)
    assert step.loss.isfinite().all()
    assert step.estimate.ab_hat.shape == (2, 2, 13, 9)
    assert colours(model, batch.L, steps=1).shape == (2, 2, 13, 9)


def test_time_dim_is_the_width_of_the_time_embedding():
    assert tiny(time_dim=24).unet.time_embedding.linear_2.out_features == 24


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize(("chroma_scale", "of_L"), [(1, 1), (2, 4)])
def test_input_channels_are_chroma_lightness_and_hints(chroma_scale, of_L, hints):
    model = tiny(chroma_scale=chroma_scale, hints=hints)
    assert model.unet.conv_in.in_channels == 2 + of_L + (3 if hints else 0)
    assert model.unet.conv_out.out_channels == 2


def test_padding_repeats_the_last_row_and_column():
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    padded = pad_to_multiple(x, 4)
    assert padded[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_multiple(x, 1) is x


@pytest.mark.parametrize("size", [(16, 16), (13, 9), (1, 1), (2, 7)])
def test_half_resolution_and_back(size):
    model = tiny(chroma_scale=2)
    L, ab = make_batch(2, size)[:2]
    x_0 = model.shrink(ab)
    h, w = -(-size[0] // 2), -(-size[1] // 2)
    assert x_0.shape == (2, 2, h, w)
    torch.testing.assert_close(x_0[..., 0, 0], ab[..., :2, :2].mean((-1, -2)))
    assert model.expand(x_0, L).shape == ab.shape
    constant = torch.full_like(x_0, 0.7)
    torch.testing.assert_close(model.expand(constant, L), torch.full_like(ab, 0.7), rtol=0, atol=1e-5)


def test_half_resolution_keeps_every_pixel_of_lightness(monkeypatch):
    """By space-to-depth, a cell has four channels, which are its four pixels and not their mean."""
    model, seen = tiny(chroma_scale=2), []
    unet = model.unet.forward
    monkeypatch.setattr(model.unet, "forward", lambda x, t: seen.append(x) or unet(x, t))
    L = make_batch(1)[0]
    model.denoise(rand(1, 2, 8, 8), torch.tensor([5]), L)
    cell = seen[0][0, 2:6, 3, 2]
    assert sorted(cell.tolist()) == sorted(L[0, 0, 6:8, 4:6].flatten().tolist())


def test_the_padding_is_cut_off_again_where_it_was_put_on(monkeypatch):
    class Output:
        def __init__(self, sample):
            self.sample = sample

    model, x_t = tiny(features=(8, 8, 8)), rand(2, 2, 13, 9)
    monkeypatch.setattr(model.unet, "forward", lambda x, t: Output(x[:, :2]))
    assert torch.equal(model.denoise(x_t, torch.tensor([1, 2]), rand(2, 1, 13, 9)), x_t)


def test_full_resolution_is_left_as_it_is():
    model, ab = tiny(), rand(2, 2, 13, 9)
    assert model.shrink(ab) is ab
    assert model.expand(ab, rand(2, 1, 13, 9)) is ab


# ---- colours


@every_variant
def test_the_same_generator_gives_the_same_colours(changes):
    model, L = tiny(**changes), make_batch(2, (13, 9)).L
    first = colours(model, L)
    assert first.shape == (2, 2, 13, 9)
    assert first.isfinite().all()
    assert not first.requires_grad
    torch.manual_seed(99)
    assert torch.equal(colours(model, L), first)
    assert not torch.isclose(colours(model, L, seed=1), first).all()


@every_variant
def test_a_reloaded_model_gives_bit_equal_colours(changes, tmp_path):
    model, L = tiny(**changes), make_batch(2, (13, 9)).L
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(1)
    again = DiffusionColorizer(model.config)  # other random weights
    assert not torch.equal(colours(again, L), colours(model, L))
    again.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True), strict=True)
    assert torch.equal(colours(again, L), colours(model, L))


def test_one_generator_a_picture_makes_it_independent_of_its_company():
    model, L = tiny(), make_batch(3).L
    together = model.colorize(L, generator=[seeded(i) for i in range(3)], steps=3)
    alone = model.colorize(L[1:2], generator=[seeded(1)], steps=3)
    torch.testing.assert_close(alone, together[1:2], rtol=1e-3, atol=1e-4)  # convolutions may add in another order


@every_variant
def test_colours_depend_on_the_lightness(changes):
    model, L = tiny(**changes), make_batch(2).L
    assert not torch.isclose(colours(model, -L), colours(model, L)).all()


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++", "euler-a"])
def test_sampler_and_steps_are_options(sampler):
    model, L = tiny(timesteps=50), make_batch(1).L
    assert colours(model, L, sampler=sampler, steps=2).isfinite().all()
    with pytest.raises(UsageError, match="--steps 51 "):
        colours(model, L, sampler=sampler, steps=51)


def test_a_wrong_option_is_an_error():
    with pytest.raises(TypeError, match="temperature"):
        tiny().colorize(make_batch().L, generator=seeded(), temperature=1)


def test_constants_are_no_weights_and_real_even_on_the_meta_device():
    names = set(tiny().state_dict())
    assert not names & {"alphas_cumprod", "ab_mean", "ab_std"}
    with torch.device("meta"):
        model = DiffusionColorizer(DiffusionConfig(features=(8,), time_dim=16, ab_mean=(1, 2), ab_std=(3, 4)))
    assert model.ab_mean.tolist() == [1, 2]
    assert model.ab_std.tolist() == [3, 4]
    assert model.alphas_cumprod[0] > 0.99


# ---- hints


@pytest.mark.parametrize("size", [(16, 16), (8, 8)])
def test_half_of_the_samples_train_without_hints(size):
    model, x_0 = tiny(hints=True), rand(64, 2, *size) + 5  # no true colour is 0
    counts = []
    for step in range(60):
        ab, mask = model.draw_hints(x_0, BatchRandom(0, step, 0, 64, 64))
        assert mask.shape == (64, 1, *size)
        assert ((mask == 0) | (mask == 1)).all()
        assert torch.equal(ab, torch.where(mask > 0, x_0, 0.0))
        counts.append(mask.sum((1, 2, 3)))
    counts = torch.cat(counts)
    # 1/2 of the samples ask for 2^u points, u in [0, 6]; Poisson leaves 5 % of those without any: 0.474 have one
    assert (counts > 0).float().mean().item() == pytest.approx(0.474, abs=0.03)
    assert counts[counts > 0].mean().item() == pytest.approx(15.1 / 0.947, rel=0.1)
    assert counts.max() <= min(100, x_0[0, 0].numel())


def test_hints_change_the_answer():
    model, L = tiny(hints=True), make_batch(2, (13, 9)).L
    without = colours(model, L)
    with_one = colours(model, L, hints=hints_at((13, 9), (4, 3), count=2))
    assert not torch.isclose(with_one, without).all()


@pytest.mark.parametrize("chroma_scale", [1, 2])
def test_no_hint_at_all_is_an_empty_mask(chroma_scale):
    model, L = tiny(hints=True, chroma_scale=chroma_scale), make_batch(2, (13, 9)).L
    assert torch.equal(colours(model, L, hints=hints_at((13, 9), count=2)), colours(model, L))


def test_ab_outside_of_the_mask_does_not_matter():
    model, L = tiny(hints=True), make_batch(1).L
    ab, mask = hints_at((16, 16), (4, 3))
    assert torch.equal(colours(model, L, hints=(ab, mask)), colours(model, L, hints=(ab * mask - (1 - mask), mask)))


def test_a_model_without_hints_refuses_them():
    with pytest.raises(ValueError, match="without colour hints"):
        colours(tiny(), make_batch(1).L, hints=hints_at((16, 16), (1, 1)))


def test_hints_in_a_cell_are_averaged():
    model = tiny(hints=True, chroma_scale=2)
    mask = torch.zeros(1, 1, 3, 4)
    ab = torch.full((1, 2, 3, 4), 9.0)  # outside of the mask, so it must not count
    for y, x, a, b in ((0, 0, 1.0, -1.0), (1, 1, 3.0, 0.0), (0, 3, 0.5, 0.25), (2, 2, -2.0, 4.0)):
        mask[0, 0, y, x] = 1
        ab[0, :, y, x] = torch.tensor([a, b])
    small, small_mask = model.shrink_hints(ab, mask)
    assert small_mask[0, 0].tolist() == [[1, 1], [0, 1]]
    torch.testing.assert_close(small[0, 0], torch.tensor([[2.0, 0.5], [0.0, -2.0]]))
    torch.testing.assert_close(small[0, 1], torch.tensor([[-0.5, 0.25], [0.0, 4.0]]))


def test_hints_at_full_resolution_pass_as_they_are():
    model, (ab, mask) = tiny(hints=True), hints_at((5, 6), (1, 2), (4, 5))
    small, small_mask = model.shrink_hints(ab, mask)
    assert torch.equal(small_mask, mask)
    torch.testing.assert_close(small, ab * mask)


# ---- learning


def two_halves(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures that are light on one side and dark on the other, with one colour per lightness: L and ab."""
    light_left = torch.randint(0, 2, (count, 1, 1, 1), generator=seeded(seed)) * 2.0 - 1
    side = F.pad(torch.ones(1, 1, 16, 8), (0, 8), value=-1.0) * light_left  # (count, 1, 16, 16), 1 or -1
    return 0.6 * side, torch.cat([side, 0.3 - 0.7 * side], dim=1)


@pytest.mark.slow
def test_a_tiny_model_learns_the_colours_that_go_with_a_lightness():
    model, steps = tiny(), 150
    optimizer = torch.optim.AdamW(model.parameters())
    L, ab = two_halves(16, seed=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 20) * (1 - step / steps)
        loss = model(Batch(L, ab, BatchRandom(0, step, 0, 16, 16))).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # from 0.9

    L, ab = two_halves(8, seed=1)
    error = colours(model, L, steps=10) - ab
    assert error.square().mean().sqrt() < 0.35  # other colours, and gray, are off by 0.9 and more
    halves = torch.stack([error[..., :8].mean((-1, -2)), error[..., 8:].mean((-1, -2))])
    assert halves.abs().max() < 0.3


# -- guidance --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_guidance_leads_away_from_what_is_seen_without_the_encoder():
    """blind + w (seeing - blind), scaled towards the strength of `seeing`; seeing alone in much noise and in little."""
    model, L = tiny(**ENCODER), rand(2, 1, 16, 16)
    maps, hints = model.look(L), model.no_hints(L) if model.config.hints else None
    known, blind = model.context(L, maps, hints).known, model.blind(L, maps, hints).known
    x_t, t = rand(2, 2, 16, 16), torch.tensor(300)
    seeing, unseeing = (model.denoise(x_t, t.expand(2), L, hints, part) for part in (known, blind))
    found = model.guided(L, hints, known, blind, 3.0)(x_t, t)
    direction = unseeing + 3 * (seeing - unseeing)
    for n in range(2):
        scale = 0.7 * seeing[n].std() / direction[n].std() + 0.3
        torch.testing.assert_close(found[n], direction[n] * scale, rtol=1e-4, atol=1e-5)
    assert (found - seeing).abs().max() > 1e-3
    for t in torch.tensor([50, 950]):
        own = model.denoise(x_t, t.expand(2), L, hints, known)
        torch.testing.assert_close(model.guided(L, hints, known, blind, 3.0)(x_t, t), own)
        assert model.guided(L, hints, known, None, 1.0)(x_t, t).equal(own)


def test_models_with_an_encoder_choose_among_answers_and_others_answer_as_they_always_did():
    L = rand(2, 1, 16, 16)
    for model, usual in (tiny(), AS_DRAWN), (tiny(**ENCODER), {"guidance": 5.0, "candidates": 4, "calm": 0.5}):
        assert model.usual == usual
        assert colours(model, L).equal(colours(model, L, **usual))
    assert not colours(model, L).equal(colours(model, L, **AS_DRAWN))


@pytest.mark.parametrize("changes", [{}, ENCODER | {"feature_dropout": 0.0}])
def test_guidance_is_refused_where_training_never_left_the_encoder_out(changes):
    model, L = tiny(**changes), rand(1, 1, 16, 16)
    assert model.usual["guidance"] == 1
    with pytest.raises(UsageError, match="--guidance"):
        colours(model, L, steps=1, guidance=2.0)
