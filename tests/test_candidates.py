"""candidates.py and what leads to it: several answers, noise that is the same at every size, strength of colours."""

import math

import pytest
import torch
import torch.nn.functional as F

from Project7 import array_picture, candidates, color
from Project7.array_sampler import STRENGTH, STRONGEST, even_share, place_side
from Project7.candidates import appearance, calmed, choose, chroma, evened, spread, strengthened
from Project7.diffusion_model import DiffusionColorizer
from Project7.encoder import SHIPPED
from Project7.guided_filter import expand
from Project7.model_config import DiffusionConfig
from Project7.samplers import scalable_noise


def flat(*colours: tuple[float, float], size: int = 4) -> torch.Tensor:
    """Answers of one colour each: (1, K, 2, h, w)."""
    return torch.tensor(colours, dtype=torch.float32)[None, :, :, None, None].expand(1, -1, 2, size, size).clone()


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def seeing(**changes) -> DiffusionColorizer:
    torch.manual_seed(0)
    small = {"features": (8, 16), "time_dim": 16, "encoder": SHIPPED, "encoder_size": 32, "neck_width": 8}
    model = DiffusionColorizer(DiffusionConfig(**small | {"chroma_scale": 4, "head": "classes", "bins": 9} | changes))
    if model.head:
        model.head.centres.copy_(torch.cartesian_prod(*[torch.tensor([-30.0, 0.0, 30.0])] * 2))
        model.head.counts.fill_(1)
    return model.eval()


# -- choosing --------------------------------------------------------------------------------------------------------


def test_the_answer_that_most_agree_on_is_shown():
    samples = torch.cat([flat((30, 0), (0, 30), (3, 30), (-3, 30)), flat((5, 5), (40, 40), (4, 6), (6, 4))])
    assert choose(samples).tolist() == [1, 0]


def test_with_a_head_the_likeliest_answer_is_shown():
    samples, likelihood = flat((10, 0), (0, 10), (1, 9)), torch.tensor([[-1.0, -9.0, -3.0]])
    assert choose(samples).item() in (1, 2)
    assert choose(samples, likelihood).item() == 0


def test_calm_leads_from_the_chosen_answer_to_the_mean_and_keeps_its_strength():
    samples = flat((30, 0), (0, 30))
    chosen, mean = samples[:, 0], samples.mean(dim=1)
    assert calmed(chosen, mean, samples, 0.0) is chosen
    found = calmed(chosen, mean, samples, 1.0)
    assert torch.allclose(found[0, 0], found[0, 1])  # the direction of the mean
    assert chroma(found).item() == pytest.approx(30, rel=1e-4)  # and the strength of the answers
    half = calmed(chosen, mean, samples, 0.5)
    assert half[0, 0, 0, 0] > half[0, 1, 0, 0] > 0


def test_answers_that_cancel_are_not_blown_up():
    samples = flat((30, 0), (-30, 0))
    mean = torch.full_like(samples[:, 0], 0.1)
    assert chroma(calmed(samples[:, 0], mean, samples, 1.0)) < 0.3
    gray = torch.zeros(1, 3, 2, 4, 4)
    assert torch.equal(calmed(gray[:, 0], gray[:, 0], gray, 1.0), gray[:, 0])


def test_what_looks_alike_gets_one_colour_up_to_its_edges():
    """Two things, each with blotches: within each the blotches go, between them nothing is exchanged."""
    generator = torch.Generator().manual_seed(0)
    left = (torch.arange(16) < 8).expand(16, 16)
    ab = torch.where(left, 20.0, -20.0) + 6 * torch.randn(1, 2, 16, 16, generator=generator)
    features = torch.where(left, 1.0, -1.0) + 0.05 * torch.randn(1, 8, 16, 16, generator=generator)
    L = torch.zeros(1, 1, 16, 16)
    found = evened(ab, *appearance(features, L, 1))
    for side, colour in ((left, 20), (~left, -20)):
        assert found[..., side].std() < 1.5
        assert (found[..., side].mean() - colour).abs() < 1
        assert ab[..., side].std() > 5
    half = evened(ab.bfloat16(), *appearance(features.bfloat16(), L.bfloat16(), 1))
    torch.testing.assert_close(half, found, rtol=0.05, atol=0.5)


def test_what_differs_in_lightness_alone_shares_no_colour():
    """The network sees one thing, whose halves are ten units of L apart."""
    generator = torch.Generator().manual_seed(0)
    left = (torch.arange(16) < 8).expand(16, 16)
    ab = torch.where(left, 20.0, -20.0) + 6 * torch.randn(1, 2, 16, 16, generator=generator)
    features = torch.zeros(1, 8, 16, 16)
    found = evened(ab, *appearance(features, torch.where(left, 0.1, -0.1)[None, None], 1))
    for side, colour in ((left, 20), (~left, -20)):
        assert found[..., side].std() < 1.5
        assert (found[..., side].mean() - colour).abs() < 1
    alike = evened(ab, *appearance(features, torch.zeros(1, 1, 16, 16), 1))
    assert alike.abs().max() < 12  # nothing tells them apart


@pytest.mark.parametrize("mixed", [None, (-60.0, 60.0)])
@pytest.mark.parametrize("edge", [68, 70])
def test_a_cell_at_an_edge_makes_no_halo(edge, mixed):
    """A dark thing before a bright sky; the edge runs through cells, whose colour is neither that of the one nor of the
    other, or a wild one. Beside the edge each side has its own colour, up to a part of a cell."""
    sky = (torch.arange(128) >= edge).expand(128, 128)[None, None]  # within the ninth column of cells
    L = torch.where(sky, 0.6, -0.4)
    colours = torch.tensor([25.0, 20.0])[:, None, None], torch.tensor([-5.0, -30.0])[:, None, None]
    truth = torch.where(sky, colours[1], colours[0])
    ab = F.avg_pool2d(truth, 8)
    ab[..., 9] = torch.tensor([30.0, 25.0])[:, None]  # the network's colour of the thing runs over
    if mixed:
        ab[..., 8] = torch.tensor(mixed)[:, None]
    features = F.avg_pool2d(sky.float(), 8).expand(-1, 8, -1, -1) * 4
    features = features + 0.05 * torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    off = {share: (spread(ab, features, L, 8, share) - truth).norm(dim=1)[0].mean(dim=0) for share in (0.0, 0.5, 1.0)}
    beside = slice(edge, edge + 12)
    assert off[0.0][beside].mean() > 40, "a halo"
    assert off[1.0][beside].mean() < 10
    assert off[1.0][beside].mean() < 0.6 * off[0.5][beside].mean() < 0.6 * off[0.0][beside].mean()
    assert off[1.0][48:88].mean() < 0.6 * off[0.0][48:88].mean(), "on both sides"


def test_a_mixed_cell_gives_its_colour_to_nothing_of_its_mean_lightness():
    """A gray wall beside a black and white edge, whose cells are as light in the mean, and nothing else differs. The
    cells of a chequered cloth are mixed too, but so are all around them, and it keeps its colour."""
    columns = torch.arange(128)
    L = torch.where((columns % 8 < 4), 0.5, -0.5) * (columns // 8 == 5)
    ab = torch.where(torch.arange(16) == 5, 40.0, -10.0).expand(1, 2, 16, 16)
    found = evened(ab, *appearance(torch.zeros(1, 8, 16, 16), L.expand(1, 1, 128, 128), 8))
    wall = torch.ones(64, dtype=torch.bool)
    wall[20:24] = False
    assert found[..., wall].max() < -9
    cloth = torch.where((columns % 8 < 4), 0.5, -0.5) * (columns < 64)
    ab = torch.where(torch.arange(16) < 8, 40.0, -10.0).expand(1, 2, 16, 16)
    found = evened(ab, *appearance(torch.zeros(1, 8, 16, 16), cloth.expand(1, 1, 128, 128), 8))
    assert found[..., :28].min() > 35
    assert found[..., 32:].max() < -7


def test_what_the_network_sees_of_a_place_ends_at_its_edges():
    """An edge in the middle of a cell: a part of a cell away from it a place looks like its own side."""
    right = (torch.arange(128) >= 68).expand(1, 1, 128, 128)
    features = F.avg_pool2d(torch.where(right, 1.0, -1.0), 8).expand(-1, 8, -1, -1)
    cells, places = appearance(features, torch.where(right, 0.5, -0.5), 8)
    for there, side in ((0, slice(31, 33)), (-1, slice(35, 37))):
        own = cells[0, :8, 0, there]
        assert (places[0, :8, 0, side] - own[:, None]).abs().max() < 0.25 * own.abs().min()
    blurred = F.interpolate(cells[:, :8], places.shape[-2:], mode="bilinear")
    assert (blurred[0, :8, 0, 31:33] - cells[0, :8, 0, :1]).abs().max() > 0.5


def test_places_are_parts_of_a_cell_of_a_pixel_or_more():
    assert [place_side((16, 20), scale) for scale in (8, 4, 2, 1)] == [2, 1, 1, 1]
    assert [place_side((20, 15), scale) for scale in (8, 4, 2, 1)] == [4, 2, 1, 1]


def test_spreading_keeps_the_strength_and_the_size():
    generator = torch.Generator().manual_seed(0)
    ab, features = (torch.randn(2, c, 9, 13, generator=generator) for c in (2, 8))
    ab, L = 20 + 8 * ab, 0.2 * torch.rand(2, 1, 67, 100, generator=generator)
    plain, even = (spread(ab, features, L, 8, share) for share in (0.0, 1.0))
    assert plain.shape == even.shape == (2, 2, 67, 100)
    torch.testing.assert_close(plain, expand(ab, L, 8))
    before, after = (x.norm(dim=1).mean(dim=(1, 2)) for x in (plain, even))
    torch.testing.assert_close(after, before, rtol=0.02, atol=0.02)
    assert even.std(dim=(2, 3)).mean() < 0.7 * plain.std(dim=(2, 3)).mean()
    assert spread(ab, torch.zeros_like(features), 0 * L, 8, 1.0).isfinite().all()


@pytest.mark.parametrize(("scale", "size"), [(8, (100, 75)), (4, (61, 90)), (2, (31, 22)), (1, (20, 30))])
def test_it_is_the_same_without_torch_and_in_parts(scale, size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    cells = [math.ceil(side / scale) for side in size]
    ab, features = 20 * torch.randn(1, 2, *cells, generator=generator), torch.randn(1, 8, *cells, generator=generator)
    L = 0.3 * torch.rand(1, 1, *size, generator=generator)
    whole = spread(ab, features, L, scale, 0.7)
    for module in (candidates, array_picture):
        monkeypatch.setattr(module, "CHUNK", 50)
    torch.testing.assert_close(spread(ab, features, L, scale, 0.7), whole, rtol=1e-4, atol=1e-4)
    alone = array_picture.spread(ab[0].numpy(), features[0].numpy(), L[0, 0].numpy(), scale, 0.7)
    torch.testing.assert_close(torch.from_numpy(alone), whole[0], rtol=1e-4, atol=1e-4)


def test_the_calmer_the_more_is_evened():
    generator = torch.Generator().manual_seed(0)
    ab = torch.tensor([30.0, 0.0])[:, None, None] + torch.randn(1, 2, 8, 8, generator=generator)
    shown = [spread(ab, torch.zeros(1, 8, 8, 8), torch.zeros(1, 1, 64, 64), 8, even_share(c)) for c in (0, 0.25, 0.5)]
    spreads = [one.std(dim=(2, 3)).sum() for one in shown]
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * spreads[2]
    assert [even_share(calm) for calm in (0.5, 0.75, 1.0)] == [1.0] * 3


# -- strength of the answer ------------------------------------------------------------------------------------------


def test_an_answer_has_the_strength_that_is_expected_of_it():
    ab = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 20
    expected, far = torch.full((2, 8, 8), 15.0), torch.full((2, 8, 8), 1000.0)
    expected[1] = 30
    found = strengthened(ab, expected, far)
    wanted = STRENGTH * torch.tensor([15.0, 30.0])
    torch.testing.assert_close(found.norm(dim=1).mean(dim=(1, 2)), wanted, rtol=1e-4, atol=1e-4)
    assert torch.allclose(F.cosine_similarity(found, ab, dim=1), torch.ones(2, 8, 8), atol=1e-5)  # the same hues
    torch.testing.assert_close(strengthened(ab / 100, expected, far), STRONGEST * ab / 100)  # pale stays pale
    assert torch.equal(strengthened(torch.zeros_like(ab), expected, far), torch.zeros_like(ab))


def test_no_place_is_stronger_than_is_likely_there():
    """A face far too red is calmed, one a little redder than another stays so, and the rest is as it was."""
    ab = torch.zeros(1, 2, 1, 5)
    ab[0, 0, 0] = torch.tensor([10.0, 20.0, 26.0, 60.0, 90.0])
    expected, largest = torch.full((1, 1, 5), ab[0, 0].mean() / STRENGTH), torch.full((1, 1, 5), 30.0)
    found = strengthened(ab, expected, largest)[0, 0, 0]
    assert found[:2].tolist() == pytest.approx([10, 20])
    assert 24 < found[2] < 26
    assert found[2] < found[3] < found[4] <= 30
    nothing = strengthened(ab, expected, torch.zeros(1, 1, 5))
    assert nothing.abs().max() < 0.01  # certain gray
    assert nothing.isfinite().all()


def test_the_head_says_how_strong_colours_are():
    head = seeing().head  # nine colours; chroma 0, 30 and 30 * sqrt(2)
    logits = torch.full((1, 9, 1, 3), -30.0)
    logits[0, 4] = 0.0  # gray ...
    logits[0, 5, 0, 1] = logits[0, 5, 0, 2] = 0.0  # ... or (0, 30), equally likely
    logits[0, 0, 0, 2] = -2.0  # ... or, with 6 %, (-30, -30)
    expected, largest = head.likely_chroma(logits)
    assert expected[0, 0].tolist() == pytest.approx([0, 15, (30 + 0.1353 * 42.43) / 2.1353], abs=0.01)
    assert largest[0, 0].tolist() == [0, 30, 30]


def test_calm_changes_an_answer_little_by_little():
    samples = flat((60, 0), (0, 10))
    chosen, likely = samples[:, 0], (torch.full((1, 4, 4), 20.0), torch.full((1, 4, 4), 30.0))
    found = [calmed(chosen, samples.mean(dim=1), samples, calm, likely) for calm in (0, 0.01, 0.25, 0.5, 1)]
    assert (found[1] - chosen).norm(dim=1).max() < 1.5
    strengths = [one.norm(dim=1).mean().item() for one in found]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[3] == pytest.approx(STRENGTH * 20, abs=0.5)


# -- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (12, 43), (1, 5), (300, 20)])
def test_noise_is_white_at_every_size(size):
    count = 1200 // (size[0] * size[1]) + 8
    noise = scalable_noise((count, 2, *size), generators(count))
    assert noise.shape == (count, 2, *size)
    assert noise.mean().abs() < 0.06
    assert noise.std() == pytest.approx(1, abs=0.05)
    if min(size) > 1:
        for shifted in (noise[..., 1:, :] * noise[..., :-1, :], noise[..., 1:] * noise[..., :-1]):
            assert shifted.mean().abs() < 0.06  # neighbours are independent


def test_the_coarse_part_of_the_noise_is_the_same_at_every_size():
    fine, coarse, other = (scalable_noise((8, 2, n, n), generators(8)) for n in (32, 16, 24))
    torch.testing.assert_close(F.avg_pool2d(fine, 2) * 2, coarse)
    quarter = F.avg_pool2d(coarse, 2) * 2
    torch.testing.assert_close(F.avg_pool2d(other, 3) * 3, quarter, rtol=0, atol=0.35)  # parts of 10 and 11 of 256
    apart = scalable_noise((8, 2, 16, 16), generators(16)[8:])
    assert ((apart - coarse).square().mean()) > 1.5


# -- a model with candidates -----------------------------------------------------------------------------------------


def test_one_candidate_is_the_first_of_several():
    model, L = seeing(), torch.rand(2, 1, 16, 16) * 2 - 1
    one, _ = model.draw(L, generators(2), None, model.look(L), steps=2)
    four, _ = model.draw(L, generators(2), None, model.look(L), steps=2, candidates=4)
    assert four.shape == (2, 4, 2, 4, 4)
    torch.testing.assert_close(four[:, :1], one, rtol=1e-4, atol=1e-4)
    assert (four[:, 1] - four[:, 0]).abs().mean() > 0.02


def test_a_chosen_answer_is_one_of_the_candidates():
    model, L = seeing(), torch.rand(1, 1, 16, 16) * 2 - 1
    samples, context = model.draw(L, generators(1), None, model.look(L), steps=2, candidates=5)
    answer = model.settle(samples, context)
    assert (answer[:, None] - samples).abs().amax(dim=(0, 2, 3, 4)).min() < 1e-5
    calm = model.settle(samples, context, 1.0)
    assert not torch.allclose(calm, answer)
    found = model.colorize(L, generator=generators(1), steps=2, guidance=1.0, candidates=5, calm=1.0)
    torch.testing.assert_close(found, model.spread(calm, context, L, 1.0), rtol=1e-4, atol=1e-4)
    plain, half = model.expand(calm, L), model.spread(calm, context, L, 0.25)
    changes = [(one - plain).abs().mean() for one in (half, found)]
    assert 0.05 < 1.4 * changes[0] < changes[1] < 2.9 * changes[0]
    bold = model.colorize(L, generator=generators(1), steps=2, guidance=1.0, candidates=5, calm=0.0)
    torch.testing.assert_close(bold, model.expand(answer, L), rtol=1e-4, atol=1e-4)


def test_one_sample_is_calmed_by_the_head_alone():
    model, L = seeing(), torch.rand(1, 1, 16, 16) * 2 - 1
    samples, context = model.draw(L, generators(1), None, model.look(L), steps=2)
    assert torch.equal(model.settle(samples, context), samples[:, 0])
    calm = model.to_lab(model.settle(samples, context, 1.0))
    head = strengthened(model.head.mean(context.answer), *model.head.likely_chroma(context.answer))
    torch.testing.assert_close(calm, head, rtol=1e-3, atol=1e-3)
    without = seeing(head="none")
    samples, context = without.draw(L, generators(1), None, without.look(L), steps=2)
    assert torch.equal(without.settle(samples, context, 1.0), samples[:, 0])


def test_what_the_encoder_has_seen_before_need_not_be_seen_again(monkeypatch):
    model, L = seeing(hints=True), torch.rand(1, 1, 16, 16) * 2 - 1
    maps = model.look(L)
    wanted = model.colorize(L, generator=generators(1), steps=2)
    monkeypatch.setattr(model, "look", lambda _: pytest.fail("looked again"))
    assert torch.equal(model.colorize(L, generator=generators(1), steps=2, maps=maps), wanted)


# -- strength --------------------------------------------------------------------------------------------------------


def test_saturation_is_the_distance_from_gray():
    mean, std = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])
    ab = torch.randn(2, 2, 3, 3)
    units = {
        s: color.join(torch.zeros(2, 1, 3, 3), color.saturate(ab, mean, std, s), mean, std)[:, 1:] for s in (0, 1, 2)
    }
    assert units[0].abs().max() < 1e-5
    torch.testing.assert_close(units[2], 2 * units[1], rtol=1e-4, atol=1e-4)


# -- what the head knows ---------------------------------------------------------------------------------------------


def test_a_model_says_what_it_knows_without_sampling():
    model, L = seeing(hints=True), torch.rand(2, 1, 17, 22) * 2 - 1
    answer = model.knowledge(L)
    assert model.mean(L, answer).shape == (2, 2, 17, 22)
    entropy = model.entropy(L, answer)
    assert entropy.shape == (2, 1, 17, 22)
    assert ((entropy > 0) & (entropy <= 1)).all()
    scores = model.log_likelihood(answer, model.mean(L, answer))
    assert scores.shape == (2,)
    assert (scores < 0).all()
    with pytest.raises(ValueError, match="without a head"):
        seeing(head="none").knowledge(L)


def test_suggestions_are_unlike_and_the_likeliest_comes_first():
    model = seeing()
    logits = torch.full((9,), -5.0)
    logits[0], logits[4] = 2.0, 1.0  # (-30, -30) and gray
    answer = logits[None, :, None, None].repeat(1, 1, 4, 4)
    answer[:, :, 3, 0] = answer[:, :, 3, 0].flip(1)
    first, second, *rest = model.suggest(answer, 0.99, 0.0)
    assert first[0] == (-30.0, -30.0)
    assert second[0] == (0.0, 0.0)
    assert first[1] > second[1] > sum(p for _, p in rest)
    assert sum(p for _, p in (first, second, *rest)) == pytest.approx(1, abs=0.01)
    assert model.suggest(answer, 0.1, 0.99)[0][0] == (30.0, 30.0)
    assert len(model.suggest(answer, 0.5, 0.5, 3)) == 3
