"""samplers.py against data whose best denoiser is known in closed form.

For scalars x_0 ~ N(MEAN, STD^2) it is E[x_0 | x_t] = MEAN + g (x_t - sqrt(abar_t) MEAN) with
g = sqrt(abar_t) STD^2 / (abar_t STD^2 + 1 - abar_t). It is linear in x_t, so what DDIM and DDPM
make of it, in any number of steps, can be worked out by hand too.
"""

import numpy as np
import pytest
import torch

from Project7 import samplers
from Project7.answer_config import SAMPLERS
from Project7.array_sampler import even_places
from Project7.errors import UsageError
from Project7.model_config import DiffusionConfig
from Project7.samplers import make_noise_scheduler, make_sampler, respaced_betas, sample, shifted_betas
from Project7.settings import parse_settings

MEAN, STD, COUNT = 0.2, 0.3, 4000

ALLOWED = [
    ("epsilon", "linear", False),
    ("epsilon", "squaredcos_cap_v2", False),
    ("v_prediction", "linear", False),
    ("v_prediction", "squaredcos_cap_v2", False),
    ("v_prediction", "linear", True),
    ("v_prediction", "scaled_linear", True),
    ("v_prediction", "squaredcos_cap_v2", True),
]
REFUSED = [
    ("epsilon", "linear", True),
    ("epsilon", "scaled_linear", True),
    ("epsilon", "squaredcos_cap_v2", True),
    ("epsilon", "scaled_linear", False),
    ("v_prediction", "scaled_linear", False),
]
DEFAULT = ("v_prediction", "scaled_linear", True)
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_schedule = pytest.mark.parametrize("schedule", ALLOWED, ids=lambda s: "-".join(map(str, s)))


def settings(schedule=DEFAULT, timesteps: int = 1000, noise_shift: float = 1.0) -> DiffusionConfig:
    prediction_type, beta_schedule, zero = schedule
    return DiffusionConfig(
        prediction_type=prediction_type,
        beta_schedule=beta_schedule,
        zero_terminal_snr=zero,
        timesteps=timesteps,
        noise_shift=noise_shift,
    )


def best_denoiser(abar: torch.Tensor, prediction_type: str):
    """The predictions of a perfectly trained network, in float64 for abar near 0 and 1."""

    def denoise(x_t, t):
        a = abar[t.long()].double()
        signal, sigma = a.sqrt(), (1 - a).sqrt()
        x_t = x_t.double()
        x_0 = MEAN + signal * STD**2 / (a * STD**2 + 1 - a) * (x_t - signal * MEAN)
        eps = (x_t - signal * x_0) / sigma
        return (eps if prediction_type == "epsilon" else signal * eps - sigma * x_0).float()

    return denoise


def draw(name: str, conf: DiffusionConfig, steps: int) -> torch.Tensor:
    noise_scheduler = make_noise_scheduler(conf)
    denoise = best_denoiser(noise_scheduler.alphas_cumprod, conf.prediction_type)
    sampler = make_sampler(name, noise_scheduler, steps=steps)
    return sample(denoise, sampler, (COUNT, 2, 1, 1), generator=torch.Generator().manual_seed(0))


def by_hand(conf: DiffusionConfig, steps: int, ancestral: bool) -> tuple[float, float]:
    """The mean and the standard deviation of the samples: DDIM (Song et al. 2021, eq. 12, eta = 0) or DDPM (Ho et al.,
    eq. 7). x_t = shift + N(0, spread^2) keeps this form at each step, from timestep to next timestep of the trailing
    spacing."""
    abar = make_noise_scheduler(conf).alphas_cumprod.double().numpy()
    timesteps = np.round(np.arange(conf.timesteps, 0, -conf.timesteps / steps)).astype(int)[:steps] - 1
    shift, variance = 0.0, 1.0
    for a, a_next in zip(abar[timesteps], [*abar[timesteps[1:]], 1.0], strict=True):
        gain = a**0.5 * STD**2 / (a * STD**2 + 1 - a)  # x_0 = constant + gain x_t
        constant = MEAN - gain * a**0.5 * MEAN
        if ancestral:
            beta = 1 - a / a_next
            of_x_0 = a_next**0.5 * beta / (1 - a)
            of_x_t, fresh = (a / a_next) ** 0.5 * (1 - a_next) / (1 - a), (1 - a_next) / (1 - a) * beta
        else:
            of_x_t, fresh = ((1 - a_next) / (1 - a)) ** 0.5, 0.0
            of_x_0 = a_next**0.5 - of_x_t * a**0.5
        slope = of_x_0 * gain + of_x_t
        shift, variance = slope * shift + of_x_0 * constant, slope**2 * variance + fresh
    return shift, variance**0.5


@every_sampler
@every_schedule
def test_samples_have_the_mean_and_spread_of_the_data(name, schedule):
    x = draw(name, settings(schedule), steps=100)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.012)
    # With few steps the spread is too small: the missing share falls with their number.
    assert 1 - 1.4 / 100**0.5 < x.std().item() / STD < 1.06


@every_sampler
@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 20), (1000, 30), (1000, 300), (50, 20), (50, 30), (20, 15)])
def test_any_number_of_steps_is_clean(name, timesteps, steps):
    """This includes numbers that do not divide the timesteps: too much spread, or a shifted mean, is noise left in the
    picture."""
    x = draw(name, settings(timesteps=timesteps), steps)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert 1 - 1.4 / steps**0.5 < x.std().item() / STD < 1.04


@pytest.mark.parametrize("name", ["ddim", "euler", "ddpm", "euler-a"])
@pytest.mark.parametrize("steps", [1, 2, 7, 10, 60, 250, 334])
def test_first_order_samplers_do_what_their_equation_says(name, steps):
    conf = settings()
    mean, std = by_hand(conf, steps, ancestral=name in ("ddpm", "euler-a"))
    x = draw(name, conf, steps)
    assert x.mean().item() == pytest.approx(mean, abs=0.012)
    assert x.std().item() == pytest.approx(std, rel=0.03, abs=1e-3)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "dpm++-sde"])
@pytest.mark.parametrize("steps", [20, 50])
def test_second_order_samplers_lose_less_spread(name, steps):
    first_order = by_hand(settings(), steps, ancestral=False)[1]
    spread = draw(name, settings(), steps).std().item()
    assert first_order * 1.015 < spread < STD * 1.03


@every_sampler
def test_one_step_from_pure_noise_is_the_mean(name):
    x = draw(name, settings(), steps=1)
    assert (x - MEAN).abs().max() < 2e-3  # nothing but the mean is known at zero SNR: no tint, no noise


@every_sampler
@pytest.mark.parametrize("timesteps", [2, 3, 20, pytest.param(1001, marks=pytest.mark.slow)])
def test_as_many_steps_as_timesteps(name, timesteps):
    x = draw(name, settings(timesteps=timesteps), steps=timesteps)
    assert x.isfinite().all()
    assert x.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert x.std() < STD * 1.03


@every_sampler
@pytest.mark.parametrize("steps", [1, 3, 20, 999, 1000])
def test_sampling_starts_at_the_last_trained_step(name, steps):
    timesteps = make_sampler(name, make_noise_scheduler(settings()), steps=steps).timesteps
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert (timesteps.diff() < 0).all()
    assert timesteps[-1] >= 0


def mixing(x_t, t):
    """A denoiser that is not linear, one pixel at a time."""
    return torch.tanh(x_t) * (0.5 + t / 2000)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw_with(name: str, generator, pictures: int) -> torch.Tensor:
    sampler = make_sampler(name, make_noise_scheduler(settings()), steps=7)
    return sample(mixing, sampler, (pictures, 2, 4, 5), generator=generator)


@every_sampler
def test_the_same_generator_gives_the_same_picture(name):
    first = draw_with(name, seeded(1), 3)
    assert first.shape == (3, 2, 4, 5)
    assert first.std() > 0.1
    torch.manual_seed(123)  # the global generator has no influence
    assert torch.equal(draw_with(name, seeded(1), 3), first)
    assert not torch.isclose(draw_with(name, seeded(2), 3), first).any(dim=0).all()


@every_sampler
def test_a_picture_does_not_depend_on_its_company(name):
    together = draw_with(name, [seeded(4), seeded(5), seeded(6)], 3)
    for place, seed in enumerate((4, 5, 6)):
        assert torch.equal(draw_with(name, [seeded(seed)], 1)[0], together[place])
    assert not torch.equal(together[0], together[1])


@every_sampler
def test_only_ancestral_samplers_draw_fresh_noise(name):
    """The others are a function of the first noise alone: they draw 3 x 2 x 4 x 5 numbers, and leave the generator
    there."""
    used, first_noise = seeded(1), seeded(1)
    draw_with(name, used, 3)
    torch.randn(3, 2, 4, 5, generator=first_noise)
    ancestral = name in ("ddpm", "dpm++-sde", "euler-a")
    assert torch.equal(used.get_state(), first_noise.get_state()) != ancestral


@every_sampler
def test_a_sampler_does_not_change_the_schedule_of_the_model(name):
    noise_scheduler = make_noise_scheduler(settings())
    abar, timesteps = noise_scheduler.alphas_cumprod.clone(), noise_scheduler.timesteps.clone()
    make_sampler(name, noise_scheduler, steps=5)
    assert torch.equal(noise_scheduler.alphas_cumprod, abar)
    assert torch.equal(noise_scheduler.timesteps, timesteps)


def test_sampling_records_no_gradient():
    weight = torch.ones((), requires_grad=True)
    sampler = make_sampler("ddim", make_noise_scheduler(settings()), steps=2)
    x = sample(lambda x_t, t: x_t * weight, sampler, (1, 2, 2, 2), generator=seeded(0))
    assert not x.requires_grad


PUBLISHED = {  # beta_1, beta_1000 and sqrt(abar_1000) of the schedules as published
    "linear": (1e-4, 0.02, 0.00635),
    "scaled_linear": (0.00085, 0.012, 0.0683),
    "squaredcos_cap_v2": (4.1e-5, 0.999, 4.9e-5),
}


def published_betas(name: str) -> torch.Tensor:
    from diffusers import DDPMScheduler

    first, last = (0.00085, 0.012) if name == "scaled_linear" else (1e-4, 0.02)
    return DDPMScheduler(beta_start=first, beta_end=last, beta_schedule=name).betas


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_schedules_are_what_we_think(name):
    betas, (first, last, left) = published_betas(name), PUBLISHED[name]
    assert betas[0].item() == pytest.approx(first, rel=0.02)
    assert betas[-1].item() == pytest.approx(last, rel=1e-3)
    assert (1 - betas.double()).prod().sqrt().item() == pytest.approx(left, rel=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_thousand_timesteps_are_the_published_betas(name):
    betas = published_betas(name)
    torch.testing.assert_close(respaced_betas(betas, 1000), betas, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_noise_scheduler_of_a_thousand_has_the_published_betas(schedule):
    ours = make_noise_scheduler(settings(("v_prediction", schedule, False))).betas
    assert torch.equal(ours, published_betas(schedule))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("timesteps", [2, 20, 50, 100, 300, 2000, 4000])
def test_respaced_betas_follow_the_published_curve(name, timesteps):
    betas = published_betas(name)
    abar = np.cumprod(1 - betas.double().numpy())
    respaced = respaced_betas(betas, timesteps)
    assert respaced.shape == (timesteps,)
    assert respaced.min() > 0
    assert respaced.max() <= 0.9999
    ours = np.cumprod(1 - respaced.double().numpy())
    share = (np.arange(timesteps) + 1) * 1000 / timesteps  # of the published 1,000 steps
    expected = np.exp(np.interp(share, np.arange(1001), np.append(0, np.log(abar))))
    np.testing.assert_allclose(ours[:-1], expected[:-1], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(ours[-1], expected[-1], rtol=2e-3, atol=1e-4)


@every_schedule
@pytest.mark.parametrize("timesteps", [2, 3, 20, 50, 100, 999, 1000, 1001, 4000])
def test_the_last_step_is_noise(schedule, timesteps):
    noise_scheduler = make_noise_scheduler(settings(schedule, timesteps))
    abar = noise_scheduler.alphas_cumprod
    assert len(abar) == timesteps
    assert (abar.diff() < 0).all()
    left = abar[-1].sqrt().item()
    assert left < 1e-6 if schedule[2] else left <= 0.02
    assert noise_scheduler.config.prediction_type == schedule[0]


@pytest.mark.parametrize("timesteps", [100, 1000])
def test_zero_terminal_snr_leaves_the_first_step_as_it_is(timesteps):
    """By Lin et al. 2023, algorithm 1, sqrt(abar) is shifted to 0 at the end and rescaled at the start."""
    with_signal = make_noise_scheduler(settings(("v_prediction", "linear", False), timesteps)).alphas_cumprod.sqrt()
    without = make_noise_scheduler(settings(("v_prediction", "linear", True), timesteps)).alphas_cumprod.sqrt()
    expected = (with_signal - with_signal[-1]) * with_signal[0] / (with_signal[0] - with_signal[-1])
    torch.testing.assert_close(without, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("schedule", REFUSED, ids=lambda s: "-".join(map(str, s)))
def test_refused_schedules_name_the_flags_that_cure(schedule):
    names = ("prediction_type", "beta_schedule", "zero_terminal_snr")
    with pytest.raises(UsageError) as error:
        parse_settings(DiffusionConfig, dict(zip(names, schedule, strict=True)))
    message = str(error.value)
    assert "--beta-schedule linear" in message
    if schedule[2]:
        assert "--prediction-type v_prediction" in message
        assert "--no-zero-terminal-snr" in message
    else:
        assert "--zero-terminal-snr" in message
    assert "\n" not in message


def test_allowed_and_refused_are_all_combinations():
    assert len({*ALLOWED, *REFUSED}) == 2 * 3 * 2


@pytest.mark.parametrize("timesteps", [20, 1000, 4000])
def test_a_schedule_that_leaves_a_picture_is_refused_here_too(timesteps):
    """This guards against a configuration that gets past config.py."""
    conf = settings().model_copy(update={"zero_terminal_snr": False, "timesteps": timesteps})
    with pytest.raises(UsageError, match=r"--beta-schedule scaled_linear .* leaves 7% .* --zero-terminal-snr"):
        make_noise_scheduler(conf)


def test_classic_choices_alone_mean_the_classic_pair():
    conf = parse_settings(DiffusionConfig, {"prediction_type": "epsilon"})
    assert (conf.beta_schedule, conf.zero_terminal_snr) == ("linear", False)
    make_noise_scheduler(conf)


def test_the_samplers_are_those_of_the_configuration():
    assert tuple(samplers._SCHEDULERS) == SAMPLERS


@pytest.mark.parametrize("name", ["heun", "", "DDIM", "ddim "])
def test_an_unknown_sampler_is_refused_with_the_list(name):
    with pytest.raises(UsageError) as error:
        make_sampler(name, make_noise_scheduler(settings()), steps=5)
    assert f"--sampler {name} is unknown" in str(error.value)
    assert all(known in str(error.value) for known in SAMPLERS)


@pytest.mark.parametrize(("timesteps", "steps"), [(1000, 0), (1000, -1), (1000, 1001), (20, 21), (20, 10**9)])
@every_sampler
def test_steps_out_of_range_are_refused_with_the_range(name, timesteps, steps):
    with pytest.raises(UsageError, match=rf"--steps {steps} .*1 to {timesteps}"):
        make_sampler(name, make_noise_scheduler(settings(timesteps=timesteps)), steps=steps)


# ---- shifted noise

SHIFTED = [schedule for schedule in ALLOWED if schedule[2]]
every_shifted = pytest.mark.parametrize("schedule", SHIFTED, ids=lambda s: "-".join(map(str, s)))


def snr(abar: torch.Tensor) -> torch.Tensor:
    return abar.double() / (1 - abar.double())


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0, 32.0])
@pytest.mark.parametrize("timesteps", [2, 50, 1000, 4000])
@every_shifted
def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(schedule, timesteps, shift):
    plain = make_noise_scheduler(settings(schedule, timesteps)).alphas_cumprod
    shifted = make_noise_scheduler(settings(schedule, timesteps, shift)).alphas_cumprod
    assert len(shifted) == timesteps
    assert (shifted.diff() < 0).all()
    torch.testing.assert_close(snr(shifted)[:-1], snr(plain)[:-1] / shift**2, rtol=5e-3, atol=1e-6)
    assert shifted[-1] == 0  # the last step stays pure noise


@every_shifted
def test_a_shift_of_1_leaves_the_schedule_bit_for_bit(schedule):
    """Older models keep their schedule."""
    without = parse_settings(DiffusionConfig, dict(zip(("prediction_type", "beta_schedule"), schedule, strict=False)))
    assert torch.equal(
        make_noise_scheduler(settings(schedule)).alphas_cumprod, make_noise_scheduler(without).alphas_cumprod
    )


def test_shifted_betas_by_hand():
    """abar = 0.8, 0.2, 0 has the SNR 4, 1/4, 0. Shifted by 2, that is 1, 1/16, 0, and abar = 1/2, 1/17, 0."""
    shifted = shifted_betas(torch.tensor([0.2, 0.75, 1.0]), 2.0)
    torch.testing.assert_close(shifted, torch.tensor([1 / 2, 1 - 2 / 17, 1.0]))


def test_shifts_add_up():
    betas = make_noise_scheduler(settings()).betas
    twice = shifted_betas(shifted_betas(betas, 2.0), 3.0)
    torch.testing.assert_close(twice, shifted_betas(betas, 6.0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(shifted_betas(betas, 1.0), betas, rtol=1e-4, atol=1e-7)


@every_sampler
def test_a_sampler_has_the_shifted_schedule_too(name):
    """It is made from the configuration of the model's scheduler, which must contain the shift."""
    noise_scheduler = make_noise_scheduler(settings(noise_shift=3.0))
    abar = make_sampler(name, noise_scheduler, steps=10).alphas_cumprod
    torch.testing.assert_close(abar, noise_scheduler.alphas_cumprod, rtol=1e-4, atol=1e-6)


@every_sampler
@pytest.mark.parametrize(
    ("timesteps", "steps", "shift"),
    [
        (1000, 10, 3.0),
        (1000, 100, 3.0),
        pytest.param(1000, 1000, 3.0, marks=pytest.mark.slow),
        (1000, 300, 8.0),
        (1000, 100, 32.0),
        (50, 20, 2.0),
        (20, 20, 32.0),
    ],
)
def test_any_number_of_steps_is_clean_on_a_shifted_schedule(name, timesteps, steps, shift):
    """There is no NaN and no noise left, and no solver does worse than the first-order ones do by their equations. Most
    timesteps are nearly noise there, so few of the evenly spaced steps fall where the picture takes shape; the spread
    that this leaves depends on the equation, not on the data alone."""
    conf = settings(timesteps=timesteps, noise_shift=shift)
    x = draw(name, conf, steps)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert by_hand(conf, steps, ancestral=True)[1] * 0.96 < x.std().item() < STD * 1.04


@pytest.mark.parametrize("name", ["ddim", "euler", "ddpm", "euler-a"])
@pytest.mark.parametrize(("shift", "steps"), [(3.0, 1), (3.0, 2), (3.0, 10), (3.0, 60), (32.0, 10)])
def test_first_order_samplers_do_what_their_equation_says_on_a_shifted_schedule(name, steps, shift):
    conf = settings(noise_shift=shift)
    mean, std = by_hand(conf, steps, ancestral=name in ("ddpm", "euler-a"))
    x = draw(name, conf, steps)
    assert x.mean().item() == pytest.approx(mean, abs=0.012)
    assert x.std().item() == pytest.approx(std, rel=0.03, abs=1e-3)


@pytest.mark.parametrize("steps", [10, 20, 30, 50, 100])
@pytest.mark.parametrize("schedule", [("v_prediction", "linear", True), DEFAULT])
@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
def test_the_default_sampler_keeps_the_spread_with_a_shift_and_with_more_steps(schedule, shift, steps):
    """Its steps are even in log-SNR, so a shift hardly affects it. More steps must not make colours paler."""
    spread = draw("dpm++", settings(schedule, noise_shift=shift), steps).std().item() / STD
    assert 0.85 < spread < 1.04


@pytest.mark.parametrize("steps", [3, 5, 10, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_no_step_is_spent_between_pure_noise_and_a_trace_of_signal(shift, steps):
    """After the step from pure noise the signal is 1 % of the noise, and from there its logarithm rises evenly."""
    abar = make_noise_scheduler(settings(noise_shift=shift)).alphas_cumprod
    first, *rest = even_places(abar, steps)
    assert first == len(abar) - 1
    ratio = snr(abar)[rest].sqrt()
    assert ratio[0].item() == pytest.approx(0.011, rel=0.1)
    apart = ratio[: steps // 2].log().diff()  # near the clean end whole timesteps are too coarse
    assert apart.tolist() == pytest.approx([apart.mean().item()] * len(apart), rel=0.1)


def test_a_schedule_that_does_not_end_in_noise_is_spaced_from_its_end():
    abar = make_noise_scheduler(settings(("epsilon", "squaredcos_cap_v2", False))).alphas_cumprod
    assert even_places(abar, 1) == [len(abar) - 1]
    assert even_places(abar, 7)[0] == len(abar) - 1
