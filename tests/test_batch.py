"""batch.py: every random number is a function of (seed, step, name, place) alone."""

import pytest
import torch

from Project7.batch import BatchRandom, Estimate, Step


def whole(seed: int = 5, step: int = 7, total: int = 12) -> BatchRandom:
    return BatchRandom(seed=seed, step=step, start=0, count=total, total=total)


DRAWS = {
    "normal": lambda random, name="a": random.normal(name, (2, 3)),
    "uniform": lambda random, name="a": random.uniform(name, (2, 3)),
    "uniform without shape": lambda random, name="a": random.uniform(name),
    "spread": lambda random, name="a": random.spread(name),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


@every_draw
def test_the_same_key_gives_the_same_numbers(draw):
    first = draw(whole())
    torch.rand(1000)  # whatever happens to the global generator in between
    draw(whole(), "b")
    assert torch.equal(draw(whole()), first)


@every_draw
def test_the_global_generator_is_left_alone(draw):
    before = torch.get_rng_state()
    draw(whole())
    assert torch.equal(torch.get_rng_state(), before)


@every_draw
def test_another_key_gives_other_numbers(draw):
    random = whole()
    others = [draw(random, "b"), draw(whole(seed=6)), draw(whole(step=8)), draw(whole(seed=7, step=5))]
    drawn = [draw(random), *others]
    for i, x in enumerate(drawn):
        for y in drawn[:i]:
            assert not (x == y).any()


@every_draw
def test_two_processes_draw_what_one_would_have_drawn(draw):
    full = draw(whole())
    parts = [draw(BatchRandom(5, 7, start, count, 12)) for start, count in ((0, 5), (5, 1), (6, 6))]
    assert [len(part) for part in parts] == [5, 1, 6]
    assert torch.equal(torch.cat(parts), full)


def test_shapes():
    random = BatchRandom(0, 0, 3, 4, 9)
    assert random.normal("x", (2, 5)).shape == (4, 2, 5)
    assert random.uniform("x").shape == (4,)
    assert random.uniform("x", (1,)).shape == (4, 1)
    assert random.spread("x").shape == (4,)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
@pytest.mark.parametrize("step", [0, 10**12])
def test_any_seed_and_step_will_do(seed, step):
    assert BatchRandom(seed, step, 0, 2, 2).normal("x", (3,)).isfinite().all()


def test_normal_is_normal():
    x = torch.stack([whole(step=step, total=32).normal("x", (16,)) for step in range(100)]).flatten()
    assert x.mean().abs() < 0.02
    assert (x.std() - 1).abs() < 0.02
    assert ((x.abs() < 1).float().mean() - 0.6827).abs() < 0.01


def test_samples_of_a_batch_and_steps_are_independent():
    x = torch.stack([whole(step=step, total=2).normal("x", ()) for step in range(2000)])  # (2000, 2)
    assert torch.corrcoef(x.T)[0, 1].abs() < 0.08
    assert torch.corrcoef(torch.stack([x[1:, 0], x[:-1, 0]]))[0, 1].abs() < 0.08


@pytest.mark.parametrize("start", [0, 3, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 16, 100])
def test_spread_is_even_over_any_run_of_neighbours(start, count):
    """This holds for a batch, a micro-step, or the share of a process. The test measures the gaps between the values,
    once around the circle. By the three-distance theorem no gap of the golden ratio's multiples is below 1 / sqrt(5) of
    the mean gap or above 1 + 2 / sqrt(5); independent random numbers have gaps of 0 and of several times the mean."""
    for step in range(20):
        values = BatchRandom(5, step, start, count, start + count).spread("t").sort().values
        assert values[0] >= 0
        assert values[-1] < 1
        gaps = torch.cat([values.diff(), values[:1] + 1 - values[-1:]]) * count
        assert gaps.min() > 5**-0.5 - 1e-6
        assert gaps.max() < 1 + 2 * 5**-0.5 + 1e-6


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_every_batch_has_its_share_of_low_values(share):
    """The image-space terms act on low noise, so every step then costs about the same."""
    for step in range(100):
        low = (whole(step=step, total=16).spread("t") < share).sum().item()
        assert abs(low - 16 * share) <= 2


def test_spread_does_not_depend_on_the_size_of_the_batch():
    alone = BatchRandom(5, 7, 2, 3, 5).spread("t")
    assert torch.equal(BatchRandom(5, 7, 2, 3, 64).spread("t"), alone)
    assert torch.equal(BatchRandom(5, 7, 0, 64, 64).spread("t")[2:5], alone)


def test_spread_is_on_the_cpu_and_precise_whatever_the_device():
    """It determines which samples get a term, and thus the shapes of the work, so that nothing waits for the GPU."""
    values = whole()._replace(device="meta").spread("t")
    assert values.device.type == "cpu"
    assert values.dtype == torch.float64  # in float32 the largest value may round up to 1, one timestep too many
    assert torch.equal(values, whole().spread("t"))


def test_spread_is_uniform_over_many_steps():
    """The test takes one place of each batch, because within a batch the values are far more even than independent
    ones."""
    assert_uniform(torch.stack([whole(step=step, total=8).spread("t")[step % 8] for step in range(2000)]))


def test_spread_is_uniform_at_every_place_of_the_batch():
    """Otherwise a sample that always comes first would be trained only at low timesteps."""
    values = torch.stack([whole(step=step, total=8).spread("t") for step in range(2000)])  # (2000, 8)
    for place in range(8):
        assert_uniform(values[:, place])


def test_what_a_method_need_not_answer_is_none():
    """Most methods keep the lightness, and without image-space terms nobody needs an estimate."""
    estimate = Estimate(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4), torch.ones(1))
    assert estimate.L_hat is None
    assert Step(torch.zeros(1), {}).estimate is None


def assert_uniform(values: torch.Tensor) -> None:
    """The Kolmogorov-Smirnov distance from the uniform distribution, with a limit far above its 99.9 % quantile of
    1.95."""
    n = len(values)
    distance = (values.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert distance * n**0.5 < 2.5
