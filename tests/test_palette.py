"""palette.py against brute force, and against cases computed by hand."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from Project7 import color
from Project7.errors import ProjectError, UsageError
from Project7.palette import (
    Palette,
    SoftEncoder,
    annealed_mean,
    draw_palette,
    fit_palette,
    load_palette,
    rarity_weights,
    save_palette,
    smoothed_frequencies,
)

RED, GREEN, BLUE, YELLOW = (200, 40, 40), (40, 160, 60), (50, 60, 200), (220, 200, 60)
FAR_APART = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, -100.0]])  # no smoothing from one to the other


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def palette_of(centres, counts) -> Palette:
    return Palette(torch.as_tensor(centres, dtype=torch.float32), torch.tensor(counts, dtype=torch.float64))


def ab_of(rgb: tuple[int, int, int]) -> Tensor:
    return color.rgb_to_lab(torch.tensor(rgb, dtype=torch.uint8)[:, None, None])[1:, 0, 0]


def planted(*, noise: int) -> np.ndarray:
    """Ten photos, (10, 10, 10, 3): 50 % green, 30 % red, 15 % yellow, 5 % blue, each pixel a little off."""
    rgb = np.concatenate([np.tile(c, (n, 1)) for c, n in ((GREEN, 500), (RED, 300), (YELLOW, 150), (BLUE, 50))])
    rng = np.random.default_rng(0)
    rgb = rng.permutation(rgb) + rng.integers(-noise, noise + 1, rgb.shape)
    return rgb.astype(np.uint8).reshape(10, 10, 10, 3)


def colourful(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)


# ---- K-means


@pytest.mark.parametrize("noise", [0, 3])
def test_planted_colours_are_found_the_most_frequent_first(noise):
    centres, counts = fit_palette(planted(noise=noise), 4)
    assert counts.tolist() == [500, 300, 150, 50]
    for centre, rgb in zip(centres, (GREEN, RED, YELLOW, BLUE), strict=True):
        # 0.25 * sqrt(2) is half the diagonal of a counting cell
        assert (centre - ab_of(rgb)).norm() < (0.36 if noise == 0 else 2)


def test_a_centre_lies_where_most_of_its_pixels_are():
    """With nine pixels of one colour and one of another beside it, the centre divides their distance 1 : 9."""
    near, other = (46, 160, 110), (200, 40, 40)
    images = np.array([GREEN] * 9 + [near] + [other] * 10, dtype=np.uint8).reshape(1, 4, 5, 3)
    centres, counts = fit_palette(images, 2)
    centre = next(c for c in centres if (c - ab_of(GREEN)).norm() < 20)
    assert (centre - (0.9 * ab_of(GREEN) + 0.1 * ab_of(near))).norm() < 0.36
    assert (ab_of(GREEN) - ab_of(near)).norm() > 10
    assert counts.tolist() == [10, 10]


def test_every_pixel_counts_once_and_the_most_frequent_come_first():
    centres, counts = fit_palette(colourful(), 40)
    assert centres.shape == (40, 2)
    assert centres.dtype == torch.float32
    assert counts.sum() == 6 * 16 * 16
    assert (counts.diff() <= 0).all()
    assert (counts > 0).all()


def test_counts_are_those_of_the_nearest_centre():
    images = colourful()
    centres, counts = fit_palette(images, 12)
    ab = color.rgb_to_lab(color.channels_first(images))[:, 1:].movedim(1, -1).reshape(-1, 2)
    nearest = torch.cdist(ab, centres).argmin(dim=1)
    wrong = (torch.bincount(nearest, minlength=12) - counts).abs().sum()
    assert wrong < 0.03 * len(ab)  # pixels within a cell of a border may be counted on its other side


def test_centres_are_better_than_any_pixels_of_the_photos():
    """The error after Lloyd's algorithm is below that of the best of twenty random choices."""
    images = colourful()
    ab = color.rgb_to_lab(color.channels_first(images))[:, 1:].movedim(1, -1).reshape(-1, 2)
    choices = [ab[torch.randperm(len(ab), generator=torch.Generator().manual_seed(s))[:12]] for s in range(20)]
    errors = [torch.cdist(ab, c).amin(dim=1).square().mean() for c in (*choices, fit_palette(images, 12).centres)]
    assert errors[-1] < 0.8 * min(errors[:-1])


def test_the_same_seed_finds_the_same_palette_and_another_one_another():
    first, again, other = (fit_palette(colourful(), 20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.centres, again.centres)
    assert torch.equal(first.counts, again.counts)
    assert not torch.equal(first.centres, other.centres)


def test_any_seed_of_the_settings_will_do():
    """--seed goes up to 2^63."""
    assert len(fit_palette(colourful(), 4, seed=2**63 - 1).centres) == 4


def test_of_many_photos_only_some_are_taken_and_progress_is_said():
    said = []
    palette = fit_palette(colourful(), 5, photos=4, progress=lambda *step: said.append(step))
    assert palette.counts.sum() == 4 * 16 * 16
    assert said[-1] == ("counting colours", 4, 4)


def test_as_many_bins_as_there_are_colours():
    counts = fit_palette(planted(noise=0), 4).counts
    assert counts.tolist() == [500, 300, 150, 50]


@pytest.mark.parametrize(
    ("images", "bins", "words"),
    [
        (planted(noise=0), 1, "--bins 1: a palette has at least 2 colours"),
        (planted(noise=0), 0, "--bins 0: a palette has at least 2 colours"),
        (planted(noise=0), 5, "--bins 5 is more than the 4 distinct colours of these photos"),
        (np.repeat(colourful()[..., :1], 3, axis=-1), 4, "The photos are all gray"),
        (np.zeros((1, 8, 8, 3), np.uint8), 2, "The photos are all gray"),
    ],
)
def test_what_has_no_palette_is_refused(images, bins, words):
    with pytest.raises(UsageError, match=words):
        fit_palette(images, bins)


# ---- soft encoding


def test_soft_encoding_by_hand():
    """The distances are 0, 5, 10, 15, 20 and 30; the weights are exp(-d^2 / 50) for the first five, and the sixth is
    left out."""
    centres = torch.tensor([[30.0, 0.0], [0.0, 20.0], [5.0, 0.0], [0.0, -10.0], [0.0, 0.0], [-15.0, 0.0]])
    classes, weights = SoftEncoder(centres)(torch.zeros(1, 2, 1, 1))
    assert classes.dtype == torch.long
    assert classes.flatten().tolist() == [4, 2, 3, 5, 1]
    expected = torch.tensor([math.exp(-d * d / 50) for d in (0, 5, 10, 15, 20)])
    torch.testing.assert_close(weights.flatten(), expected / expected.sum())


def palettes() -> dict[str, Tensor]:
    photo_like = torch.randn(313, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([12.0, 18.0])
    return {
        "of photos": photo_like,
        "of the whole plane": rand(313, 2, seed=2) * 220 - 110,
        "in one corner": rand(60, 2, seed=3) * 4 + 90,
        "on a grid": torch.cartesian_prod(torch.arange(-40.0, 50, 10), torch.arange(-40.0, 50, 10)),
        "on a circle": 60 * torch.stack([(a := torch.linspace(0, 6.2, 50)).cos(), a.sin()], dim=1),
        "some twice": photo_like[:40].repeat(2, 1),
        "exactly five": photo_like[:5],
    }


def colours() -> Tensor:
    """Colours (1, 2, 1, N) all over the plane, on the borders of its unit cells, and at their corners."""
    everywhere = rand(2, 20_000, seed=4) * 255.8 - 127.9
    borders = torch.cartesian_prod(torch.arange(-127.0, 128, 3), torch.arange(-127.0, 128, 3)).T
    corners = torch.tensor([[-127.9, -127.9, 127.9, 127.9], [-127.9, 127.9, -127.9, 127.9]])
    return torch.cat([everywhere, borders, borders + 1e-5, borders - 1e-5, corners], dim=1)[None, :, None]


@pytest.mark.parametrize("name", palettes())
def test_the_five_nearest_are_those_of_a_brute_force_search(name):
    centres, ab = palettes()[name], colours()
    classes, weights = (x[0, :, 0].T for x in SoftEncoder(centres)(ab))  # (N, 5)
    distances = torch.cdist(ab[0, :, 0].T.double(), centres.double())
    nearest = distances.sort(dim=1).values[:, :5]
    found = distances.gather(1, classes)
    torch.testing.assert_close(found, nearest, rtol=0, atol=1e-4)  # ties may go either way; in order, nearest first
    assert (classes.sort(dim=1).values.diff(dim=1) > 0).all(), "a class twice"
    expected = torch.softmax(-nearest.square() / 50, dim=1)
    torch.testing.assert_close(weights.double(), expected, rtol=0, atol=2e-3)  # squares of 200 in float32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)))


@pytest.mark.parametrize("bins", [2, 4])
def test_a_palette_of_fewer_than_five_gives_them_all(bins):
    centres = rand(bins, 2) * 50
    classes, weights = SoftEncoder(centres)(rand(2, 2, 3, 3, seed=1) * 100)
    assert classes.shape == weights.shape == (2, bins, 3, 3)
    assert (classes.sort(dim=1).values == torch.arange(bins)[None, :, None, None]).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 3, 3))


def test_each_place_of_a_picture_is_encoded_at_its_place():
    centres = palettes()["of photos"]
    ab = rand(2, 2, 3, 5, seed=5) * 100 - 50
    classes, _ = SoftEncoder(centres)(ab)
    one, _ = SoftEncoder(centres)(ab[1:, :, 2:, 4:])
    assert torch.equal(classes[1, :, 2, 4], one[0, :, 0, 0])
    assert classes[0, 0, 1, 3] == (centres - ab[0, :, 1, 3]).norm(dim=1).argmin()


# ---- rarity


def test_rarity_weights_by_hand():
    """P = 0.6, 0.3, 0.1 and A = 0.5, so w = 1 / (P / 2 + 1 / 6), divided by sum P w so that this becomes 1."""
    weights = rarity_weights(palette_of(FAR_APART, [6.0, 3.0, 1.0]), 0.5)
    raw = torch.tensor([1 / (p / 2 + 1 / 6) for p in (0.6, 0.3, 0.1)])
    torch.testing.assert_close(weights, raw / (0.6 * raw[0] + 0.3 * raw[1] + 0.1 * raw[2]))
    assert weights[0] < 1 < weights[1] < weights[2]


def test_smoothing_by_hand():
    """At this distance the Gaussian of one centre has half its height at the other: 2/3 of its pixels stay, and 1/3
    moves."""
    near = palette_of([[0.0, 0.0], [0.0, math.sqrt(50 * math.log(2))]], [3.0, 1.0])
    expected = [0.75 * 2 / 3 + 0.25 / 3, 0.75 / 3 + 0.25 * 2 / 3]
    torch.testing.assert_close(smoothed_frequencies(near), torch.tensor(expected).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mixing", [0.0, 0.25, 0.5, 1.0])
def test_the_mean_weight_of_a_pixel_is_one(mixing):
    centres = palettes()["of photos"]
    palette = Palette(centres, 10 ** (6 * rand(313, seed=6).double()))
    frequency = smoothed_frequencies(palette)
    assert frequency.sum().item() == pytest.approx(1)
    weights = rarity_weights(palette, mixing)
    assert weights.dtype == torch.float32
    assert (frequency * weights).sum().item() == pytest.approx(1, abs=1e-5)


def test_all_mixing_is_no_rebalancing_and_none_is_all_of_it():
    palette = palette_of(FAR_APART, [6.0, 3.0, 1.0])
    torch.testing.assert_close(rarity_weights(palette, 1.0), torch.ones(3))
    torch.testing.assert_close(rarity_weights(palette, 0.0), 1 / (3 * torch.tensor([0.6, 0.3, 0.1])))


def test_a_colour_without_pixels_has_a_finite_weight():
    """A palette of other photos, or one made by hand, may have such a colour."""
    assert rarity_weights(palette_of([[0, 0], [120, 120], [-120, -120]], [5.0, 0.0, 1.0]), 0.0).isfinite().all()


# ---- decoding


def decode(logits: list[float], centres: Tensor, temperature: float) -> list[float]:
    return annealed_mean(torch.tensor(logits)[None, :, None, None], centres, temperature)[0, :, 0, 0].tolist()


def test_annealed_mean_by_hand():
    """Two classes whose logits differ by 0.38 ln 3 have the probabilities 3 : 1 at T = 0.38."""
    centres = torch.tensor([[40.0, 0.0], [0.0, -20.0]])
    assert decode([0.38 * math.log(3), 0.0], centres, 0.38) == pytest.approx([30, -5], rel=1e-5)
    assert decode([math.log(3), 0.0], centres, 1.0) == pytest.approx([30, -5], rel=1e-5)


def test_temperature_one_is_the_mean_and_none_the_mode():
    logits, centres = rand(2, 30, 4, 5) * 6, rand(30, 2, seed=1) * 100 - 50
    mean = torch.einsum("bqhw,qc->bchw", logits.exp() / logits.exp().sum(dim=1, keepdim=True), centres)
    torch.testing.assert_close(annealed_mean(logits, centres, 1), mean, rtol=1e-4, atol=1e-4)
    mode = centres[logits.argmax(dim=1)].movedim(-1, 1)
    assert torch.equal(annealed_mean(logits, centres, 0), mode)
    torch.testing.assert_close(annealed_mean(logits, centres, 1e-6), mode, rtol=0, atol=1e-2)
    torch.testing.assert_close(
        annealed_mean(logits, centres, 1e6),
        centres.mean(dim=0)[None, :, None, None].expand(2, 2, 4, 5),
        atol=1e-2,
        rtol=0,
    )


def test_between_them_colours_go_from_the_mean_to_the_mode():
    logits, centres = rand(1, 30, 8, 8) * 6, rand(30, 2, seed=1) * 100 - 50
    mode = annealed_mean(logits, centres, 0)
    away = [(annealed_mean(logits, centres, t) - mode).norm() for t in (0.05, 0.14, 0.38, 0.77, 1)]
    assert away == sorted(away)


@pytest.mark.parametrize("temperature", [1e-20, 1e-40, 1e-60])
def test_a_temperature_near_zero_is_the_mode_too(temperature):
    assert decode([3.0, -2.0, 1.0], FAR_APART, temperature) == [0, 0]


def test_huge_logits_are_no_trouble():
    assert decode([1e4, 1e4, 0.0], FAR_APART, 0.38) == pytest.approx([50, 0])


def test_colours_do_not_suffer_from_autocast():
    logits, centres = rand(1, 30, 4, 4) * 6, rand(30, 2, seed=1) * 200 - 100
    exact = annealed_mean(logits, centres)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(annealed_mean(logits, centres), exact)


def test_a_negative_temperature_is_an_error():
    with pytest.raises(ValueError, match="temperature is -1"):
        decode([0.0, 1.0, 2.0], FAR_APART, -1)


def test_the_estimate_has_a_gradient_for_every_class():
    logits = rand(1, 30, 2, 2).requires_grad_()
    annealed_mean(logits, rand(30, 2, seed=1) * 100).square().sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.ne(0).all()


# ---- files


def test_a_palette_is_read_back_as_it_was_written(tmp_path):
    palette = fit_palette(colourful(), 20)
    save_palette(tmp_path / "p.npz", palette)
    again = load_palette(tmp_path / "p.npz", bins=20)
    assert torch.equal(again.centres, palette.centres)
    assert torch.equal(again.counts, palette.counts)
    assert (again.centres.dtype, again.counts.dtype) == (torch.float32, torch.float64)
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_a_palette_with_other_bins_is_refused_with_the_cure(tmp_path):
    save_palette(tmp_path / "p.npz", palette_of(FAR_APART, [1.0, 1, 1]))
    with pytest.raises(ProjectError, match="has 3 colours, and --bins is 313; use --bins 3"):
        load_palette(tmp_path / "p.npz", bins=313)


def test_a_file_that_is_not_there_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ProjectError, match=r"does not exist; make it with: project7 palette .*p\.npz"):
        load_palette(tmp_path / "p.npz")


GOOD = {"centres": np.array([[0.0, 1.0], [20.0, 5.0]]), "counts": np.array([3.0, 1.0])}
WRONG_ARRAYS = {
    "three channels": {"centres": np.ones((2, 3))},
    "no rows": {"centres": np.ones((0, 2)), "counts": np.ones(0)},
    "one colour": {"centres": np.ones((1, 2)), "counts": np.ones(1)},
    "a flat list": {"centres": np.ones(4)},
    "a number": {"centres": np.array(3.0), "counts": np.array(1.0)},
    "more counts": {"counts": np.ones(3)},
    "counts in a table": {"counts": np.ones((2, 1))},
    "NaN": {"centres": np.array([[0.0, np.nan], [20.0, 5.0]])},
    "infinity": {"centres": np.array([[0.0, -np.inf], [20.0, 5.0]])},
    "out of the plane": {"centres": np.array([[0.0, 129.0], [20.0, 5.0]])},
    "negative counts": {"counts": np.array([3.0, -1.0])},
    "counts of nothing": {"counts": np.zeros(2)},
    "NaN counts": {"counts": np.array([3.0, np.nan])},
    "infinite counts": {"counts": np.array([3.0, np.inf])},
    "text": {"centres": np.array([["a", "b"], ["c", "d"]])},
    "counts in words": {"counts": np.array(["three", "one"])},
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_arrays_that_are_no_palette_are_refused_with_one_sentence(tmp_path, name):
    np.savez(tmp_path / "p.npz", **{**GOOD, **WRONG_ARRAYS[name]})
    with pytest.raises(ProjectError, match=r"p\.npz"):
        load_palette(tmp_path / "p.npz")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("code from a file was run",)


def palette_bytes(tmp_path) -> bytes:
    np.savez(tmp_path / "good.npz", **GOOD)
    return (tmp_path / "good.npz").read_bytes()


@pytest.mark.parametrize(
    "name", ["empty", "text", "pickle", "objects", "cut", "flipped", "array", "large", "keys", "folder"]
)
def test_files_that_are_no_palette_are_refused_and_run_no_code(tmp_path, name):
    path, good = tmp_path / "p.npz", palette_bytes(tmp_path)
    assert len(load_palette(tmp_path / "good.npz").centres) == 2
    if name == "objects":
        bombs = np.empty((2, 2), dtype=object)
        bombs[:] = Bomb()
        np.savez(path, centres=bombs, counts=GOOD["counts"])
    elif name == "array":
        np.save(tmp_path / "p.npy", GOOD["centres"])
        (tmp_path / "p.npy").rename(path)
    elif name == "large":
        np.savez_compressed(path, centres=np.zeros((1 << 20, 2)), counts=GOOD["counts"])
    elif name == "keys":
        np.savez(path, colours=GOOD["centres"])
    elif name == "folder":
        path.mkdir()
    else:
        middle = good.index(GOOD["centres"].tobytes())
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        contents = {"empty": b"", "text": b"313", "pickle": pickle.dumps(Bomb()), "cut": good[:300], "flipped": flipped}
        path.write_bytes(contents[name])
    with pytest.raises(ProjectError, match=r"p\.npz is not a palette of this toolkit"):
        load_palette(path)


# ---- the picture


def test_the_picture_has_each_colour_at_its_place_the_frequent_ones_large():
    palette = palette_of([[40.0, 30.0], [-30.0, 0.0], [0.0, -45.0]], [90.0, 9.0, 1.0])
    picture = draw_palette(palette, side=400)
    assert picture.shape == (400, 400, 3)
    assert picture.dtype == np.uint8
    reach = 45 * 1.1
    areas = []
    for a, b in palette.centres.tolist():
        shown = color.show(torch.tensor([65.0, a, b])[:, None, None])[:, 0, 0].numpy()
        column, row = round(200 + a / reach * 200), round(200 - b / reach * 200)
        assert (picture[row, column] == shown).all()
        areas.append((picture == shown).all(axis=-1).sum())
    assert areas[0] > 4 * areas[1] > 4 * areas[2] > 0
    assert (picture[0, 0] == 255).all()
