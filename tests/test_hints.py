"""hints.py: a hinted pixel keeps its colour, its surface follows, and nothing changes across an edge."""

import numpy as np
import pytest
import torch

from Project7 import color
from Project7.array_hints import corrected, influence, likelihoods, trust
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.encoder import SHIPPED
from Project7.errors import UsageError
from Project7.hints import Spot, find_spots, hint_maps, hold, nearness
from Project7.methods import build_model
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.training_config import DataConfig


def two_halves(size: int = 40, low: float = -0.3, high: float = 0.5) -> torch.Tensor:
    """L (1, 1, h, w): a dark surface on the left and a light one on the right, both a little uneven."""
    L = torch.where(torch.arange(size) < size // 2, low, high).expand(size, size)
    wave = 0.01 * torch.sin(torch.arange(size) / 3.0)
    return (L + wave + wave[:, None])[None, None].clone()


def gray_photo(L: torch.Tensor) -> np.ndarray:
    return color.channels_last(color.without_chroma(L))[0].copy()


def ab_of(picture) -> torch.Tensor:
    return color.rgb_to_lab(color.channels_first(np.asarray(picture)))[1:]


def colorizer(kind) -> Colorizer:
    torch.manual_seed(0)
    return Colorizer(build_model(kind).eval(), RunConfig(model=kind, data=DataConfig(image_size=40)))


# -- a working picture -----------------------------------------------------------------------------------------------


def test_a_spot_has_its_colour_and_its_surface_follows():
    L, answer = two_halves(), torch.randn(2, 2, 40, 40) * 3 + 5
    held = hold(answer, L, [Spot(20, 8, (40.0, -10.0))])
    assert torch.allclose(held[:, :, 20, 8], torch.tensor([40.0, -10.0]), atol=1e-2)
    assert torch.allclose(held[:, :, 20, 13], torch.tensor([40.0, -10.0]), atol=1)  # five pixels on, the same surface
    moved = (held - answer).abs()
    assert moved[:, :, :, 22:].max() < 0.05 * moved[:, :, 20, 8].max()  # across the edge


def test_a_hint_fades_with_the_distance_and_goes_around_corners():
    L = torch.zeros(1, 1, 60, 60)
    L[..., 10:, 30] = 0.8  # a wall with a gap at its upper end
    (near,) = nearness(L, [Spot(50, 20, (0.0, 0.0))])
    assert near[50, 20] == near.max() == 1
    line = near[50, :29]
    assert (line[:20].diff() >= 0).all()
    assert line[0] < 0.95
    assert near[50, 40] < 0.05  # behind the wall, though only 20 pixels away
    assert near[2, 40] >= near[50, 40]


def test_texture_does_not_end_a_surface_but_a_thin_line_does():
    """Noise with a deviation of 12 units of L on a wall, and a line one pixel wide, as in a drawing."""
    rng = np.random.default_rng(0)
    rough = rng.normal(0, 0.24, (60, 60)).astype(np.float32)
    (near,) = nearness(torch.from_numpy(rough)[None, None], [Spot(30, 20, (0.0, 0.0))])
    assert near[30, 32] > 0.8
    drawn = np.zeros((60, 60), dtype=np.float32)
    drawn[:, 28] = -0.9
    (near,) = nearness(torch.from_numpy(drawn)[None, None], [Spot(30, 20, (0.0, 0.0))])
    assert near[30, 25] > 0.9
    assert near[30, 32] < 0.2


def test_an_edge_counts_alike_from_all_four_sides():
    halves = two_halves()
    ways = [halves, halves.flip(-1), halves.mT, halves.mT.flip(-2)]
    spots = [Spot(20, 8, (0.0, 0.0)), Spot(20, 31, (0.0, 0.0)), Spot(8, 20, (0.0, 0.0)), Spot(31, 20, (0.0, 0.0))]
    one, *others = [nearness(L, [spot])[0] for L, spot in zip(ways, spots, strict=True)]
    for back, other in zip([lambda x: x.flip(-1), lambda x: x.T, lambda x: x.flip(-2).T], others, strict=True):
        torch.testing.assert_close(back(other), one, rtol=1e-4, atol=1e-6)


def test_several_spots_each_have_their_own_colour():
    L = torch.zeros(1, 1, 40, 40)
    spots = [Spot(5, 5, (30.0, 0.0)), Spot(5, 9, (-30.0, 0.0)), Spot(30, 30, (0.0, 40.0))]
    held = hold(torch.zeros(1, 2, 40, 40), L, spots)
    for spot in spots:
        assert torch.allclose(held[0, :, spot.row, spot.column], torch.tensor(spot.ab), atol=0.1)
    assert held.abs().max() <= 40.1  # nothing overshoots


def test_a_likely_colour_may_change_everything_and_a_surprising_one_its_surface_alone():
    colours = torch.tensor([[0.0, 0.0], [40.0, -10.0]])
    logits = torch.zeros(2, 10, 10)
    logits[0], logits[0, 5, 2] = 20, 0  # gray everywhere except in the cell of the spot, where both colours are likely
    near, spot = torch.rand(40, 40).numpy() * 0.5, Spot(20, 8, (38.0, -8.0))
    likely = likelihoods([spot], logits.numpy(), colours.numpy(), (40, 40))
    assert influence([near], likely).min() == 1
    logits[0, 5, 2] = 20
    likely = likelihoods([spot], logits.numpy(), colours.numpy(), (40, 40))
    assert np.allclose(influence([near], likely), near, atol=1e-4)


def test_many_expected_colours_speak_for_the_whole_photo_and_surprising_ones_never():
    assert trust([0.9]) == trust([]) == trust([0.02] * 20) == 0
    assert 0.1 < trust([0.5] * 2) < trust([0.5] * 10) < trust([0.5] * 50) < 1
    assert 0 == trust([0.9] * 2 + [0.001] * 2) < trust([0.9] * 4 + [0.001] * 2) < trust([0.9] * 4)
    far = np.zeros((40, 40))
    assert influence([far], [0.2] * 10).min() > influence([far], [0.2]).max() == pytest.approx(0.4)


def test_what_several_hints_say_of_the_error_is_taken_from_places_like_theirs():
    """The answer is 10 too red on the dark half and right on the light one, and three spots on each half say so."""
    L, ab = two_halves()[0, 0].numpy(), np.zeros((2, 40, 40), dtype=np.float32)
    ab[0, :, :20] = 10
    spots = [Spot(row, column, (0.0, 0.0)) for row in (5, 20, 35) for column in (10, 30)]
    better = corrected(ab, L, spots, 1.0)
    assert np.abs(better[0, 10:30, 5:15]).mean() < 2
    assert np.abs(better[0, 10:30, 25:35]).mean() < 2
    assert np.allclose(better[1], 0)
    half = corrected(ab, L, spots, 0.5)
    assert np.allclose(half, (ab + better) / 2, atol=1e-4)
    assert corrected(ab, L, spots, 0.0) is ab
    assert corrected(ab, L, [], 1.0) is ab


def test_an_error_that_all_spots_share_is_taken_from_the_whole_photo_in_part():
    L, ab = np.zeros((60, 60), dtype=np.float32), np.full((2, 60, 60), 10, dtype=np.float32)
    spots = [Spot(row, 4, (0.0, 0.0)) for row in (2, 4, 6, 8)]
    found = corrected(ab, L, spots, 1.0)
    assert found[:, 5, 4].max() < 2
    assert 3 < found[:, 55, 55].min() < 9, "far away, only what is common to the whole photo is known"


def test_what_already_is_as_told_stays():
    answer = torch.randn(1, 2, 1, 1).expand(1, 2, 40, 40)
    spot = Spot(3, 4, tuple(answer[0, :, 3, 4].tolist()))
    torch.testing.assert_close(hold(answer, two_halves(), [spot]), answer, rtol=0, atol=1e-5)
    assert hold(answer, two_halves(), []) is answer


def test_a_colour_is_brought_to_what_exists_at_that_lightness():
    L = torch.full((1, 1, 10, 10), 0.95)  # nearly white
    (spot,) = find_spots([(15, 25, "#0000ff")], (50, 50), L)
    assert (spot.row, spot.column) == (5, 3)
    lab = torch.tensor([97.5, *spot.ab])[:, None, None]
    linear = color.lab_to_linear(lab)
    assert linear.min() > -0.01
    assert linear.max() < 1.01
    blue = color.rgb_to_lab(torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None])[1:, 0, 0]
    assert np.hypot(*spot.ab) < 0.3 * blue.norm()
    assert spot.ab[1] / spot.ab[0] == pytest.approx((blue[1] / blue[0]).item(), rel=0.01)  # of the same hue


@pytest.mark.parametrize(
    ("hint", "says"),
    [((50, 5, "red"), "outside the photo of 50 x 40"), ((1, -1, "red"), "outside"), ((1, 1, "x"), "#rrg")],
)
def test_a_hint_that_is_none_is_refused(hint, says):
    with pytest.raises(UsageError, match=says):
        find_spots([hint], (40, 50), torch.zeros(1, 1, 8, 10))


def test_the_last_of_two_hints_for_one_pixel_counts():
    L = torch.zeros(1, 1, 8, 10)
    assert len(find_spots([(1, 1, "red"), (2, 2, "lime")], (40, 50), L)) == 1
    assert find_spots([(1, 1, "red"), (2, 2, "lime")], (40, 50), L) == find_spots([(1, 1, "lime")], (40, 50), L)


def test_the_network_gets_them_in_its_own_range():
    mean, std = torch.tensor([2.0, 9.0]), torch.tensor([12.0, 18.0])
    ab, mask = hint_maps([Spot(1, 2, (14.0, -9.0))], (4, 5), mean, std, 3)
    assert ab.shape == (3, 2, 4, 5)
    assert mask.sum() == 3
    assert ab[1, :, 1, 2].tolist() == [1.0, -1.0]
    assert ab.count_nonzero() == 6


# -- whole photos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        DiffusionConfig(features=(8, 16), time_dim=16, hints=True),
        DiffusionConfig(features=(8, 16), time_dim=16, chroma_scale=2),  # knows nothing of hints
        RegressionConfig(model_channels=4, channel_multipliers=(1, 2)),
    ],
    ids=["trained with hints", "without", "regression"],
)
def test_a_hinted_pixel_of_a_photo_ends_within_5_units(kind):
    """This holds at full size, although the network worked on a smaller picture; and another surface stays
    unchanged."""
    photo, told = gray_photo(two_halves(120)), "#b04030"
    options = {"steps": 2} if kind.method == "diffusion" else {}
    found = ab_of(colorizer(kind).colorize(photo, hints=[(30, 60, told)], **options))
    L = color.lightness(color.channels_first(photo)[None])
    (spot,) = find_spots([(30, 60, told)], (120, 120), L)
    wanted = torch.tensor(spot.ab)
    assert (found[:, 60, 30] - wanted).norm() < 5
    if kind.method == "regression":  # an untrained diffusion model answers noise, which stays around the spot
        assert (found[:, 60, 50] - wanted).norm() < 5  # 20 pixels away, on the same surface


def test_a_photo_is_recoloured_up_to_its_edges_by_a_model_that_knows_no_hints():
    model = colorizer(RegressionConfig(model_channels=4, channel_multipliers=(1, 2)))
    photo = gray_photo(two_halves(120))
    before, after = (ab_of(model.colorize(photo, hints=hints)) for hints in ((), [(30, 60, "#b04030")]))
    change = (after - before).norm(dim=0)
    assert change[60, 30] > 20
    assert change[:, 66:].max() < 3


def test_a_hint_is_not_strengthened_with_the_rest():
    model = colorizer(RegressionConfig(model_channels=4, channel_multipliers=(1, 2)))
    photo = gray_photo(two_halves(40))
    strong = ab_of(model.colorize(photo, hints=[(10, 20, "#806050")], saturation=2.0))
    plain = ab_of(model.colorize(photo, hints=[(10, 20, "#806050")]))
    assert (strong[:, 20, 10] - plain[:, 20, 10]).norm() < 1


def test_a_surprising_colour_changes_nothing_behind_an_edge_in_a_model_that_hears_it():
    sees = {"encoder": SHIPPED, "encoder_size": 32, "neck_width": 8, "head": "classes", "bins": 9}
    model = colorizer(DiffusionConfig(features=(8, 16), time_dim=16, chroma_scale=4, hints=True, **sees))
    model.model.head.centres.copy_(torch.cartesian_prod(*[torch.tensor([-20.0, 0.0, 20.0])] * 2))
    photo = gray_photo(two_halves())
    options = {"steps": 2, "calm": 0.0, "candidates": 1}
    before, after = (ab_of(model.colorize(photo, hints=hints, **options)) for hints in ((), [(8, 20, "#7a1010")]))
    change = (after - before).norm(dim=0)
    assert change[20, 8] > 15
    assert change[:, 24:].max() < 0.1 * change[20, 8]
