"""color_head.py: a distribution over the palette, and what is read from it."""

import math

import pytest
import torch

from Project7.color_head import ColorHead, MeanHead

CENTRES = torch.cartesian_prod(*[torch.tensor([-40.0, -20.0, 0.0, 20.0, 40.0])] * 2)
COUNTS = 2.0 ** -(CENTRES.norm(dim=1) / 10)  # gray is common


def head(rebalance: float = 0.0) -> ColorHead:
    torch.manual_seed(0)
    made = ColorHead(8, len(CENTRES), rebalance)
    made.centres.copy_(CENTRES)
    made.counts.copy_(COUNTS)
    return made


def certain(colour: tuple[float, float], size: int = 3) -> torch.Tensor:
    """Logits that put nearly all the probability on the class at `colour`."""
    chosen = (torch.tensor(colour) == CENTRES).all(dim=1)
    return torch.where(chosen, 20.0, 0.0)[None, :, None, None].expand(1, -1, size, size).clone()


def everywhere(colour: tuple[float, float], size: int = 3) -> torch.Tensor:
    return torch.tensor(colour)[None, :, None, None].expand(1, 2, size, size).clone()


def test_the_mean_of_a_certain_answer_is_that_colour():
    assert torch.allclose(head().mean(certain((20.0, -40.0))), everywhere((20.0, -40.0)), atol=1e-3)
    both = torch.logaddexp(certain((40.0, 0.0)), certain((-40.0, 0.0)))
    assert head().mean(both).abs().max() < 1e-3


def test_entropy_is_0_where_it_is_certain_and_1_where_it_knows_nothing():
    assert head().entropy(certain((0.0, 0.0))).max() < 1e-3
    flat = head().entropy(torch.zeros(1, 25, 2, 2))
    assert torch.allclose(flat, torch.ones(1, 1, 2, 2))
    pair = torch.full((1, 25, 1, 1), -100.0)
    pair[:, :2] = 0
    assert head().entropy(pair).item() == pytest.approx(math.log(2) / math.log(25), abs=1e-4)


def test_the_loss_is_lowest_for_the_true_distribution():
    """Cross-entropy is a proper score: no answer is better than the soft target itself."""
    truth, made = everywhere((3.0, 4.0)), head()
    classes, soft = made._encoding(truth)[0](truth)
    best = torch.full((1, 25, 3, 3), -30.0).scatter(1, classes, soft.log())
    lowest = made.loss(best, truth)
    for seed in range(5):
        other = best + torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert (made.loss(other, truth) > lowest).all()
    assert made.loss(certain((0.0, 0.0)), truth) < made.loss(certain((40.0, 40.0)), truth)


def test_rare_colours_count_more_where_that_is_wanted():
    gray, vivid, flat = everywhere((0.0, 0.0)), everywhere((40.0, 40.0)), torch.zeros(1, 25, 3, 3)
    assert torch.allclose(head().loss(flat, gray), head().loss(flat, vivid))
    assert head(0.5).loss(flat, vivid) > 3 * head(0.5).loss(flat, gray)


def test_a_likely_picture_has_the_higher_likelihood():
    made, logits = head(), certain((20.0, 20.0)) / 4
    scores = [made.log_likelihood(logits, everywhere(c)).item() for c in ((20.0, 20.0), (10.0, 20.0), (-40.0, -40.0))]
    assert scores == sorted(scores, reverse=True)
    uniform = made.log_likelihood(torch.zeros(1, 25, 3, 3), everywhere((1.0, 2.0)))
    assert uniform.item() == pytest.approx(-math.log(25), abs=1e-4)


def test_both_heads_learn_a_colour_that_depends_on_the_place():
    truth = torch.where(torch.arange(6) < 3, 20.0, -20.0).expand(1, 2, 6, 6)
    x = torch.where(torch.arange(6) < 3, 1.0, -1.0).expand(1, 8, 6, 6) * torch.linspace(0.5, 1, 8)[:, None, None]
    for made in (head(), MeanHead(8, (2.1, 8.9), (12.6, 17.7))):
        optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            made.loss(made(x), truth).mean().backward()
            optimizer.step()
        assert (made.mean(made(x)) - truth).abs()[..., 1:-1].max() < 4


def test_the_mean_head_answers_in_lab_units():
    made = MeanHead(8, (2.0, 9.0), (12.0, 18.0))
    with torch.no_grad():
        made.project.weight.zero_()
        made.project.bias.copy_(torch.tensor([1.0, -1.0]))
    assert made(torch.zeros(1, 8, 1, 1)).flatten().tolist() == [14.0, -9.0]
    assert made.loss(everywhere((14.0, -9.0), 1), everywhere((2.0, -9.0), 1)).item() == pytest.approx(0.5)
