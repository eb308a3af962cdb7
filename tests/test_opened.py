"""opened.py: an open photo answers as `colorize` does, keeps its hints, and knows where it is unsure."""

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import color
from Project7.brush import coverage
from Project7.color_head import ColorHead
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import UsageError
from Project7.methods import build_model
from Project7.model_config import ENCODER, ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.opened import as_hex
from Project7.painting import paint
from Project7.palette import Palette
from Project7.photo import from_array
from Project7.provenance import read_provenance
from Project7.training_config import DataConfig

SMALL = {"features": (8, 16), "time_dim": 16, "hints": True, "timesteps": 50}


def colorizer(kind) -> Colorizer:
    torch.manual_seed(0)
    model = build_model(kind).eval().requires_grad_(False)
    if isinstance(getattr(model, "head", None), ColorHead):
        model.head.set_palette(Palette(torch.randn(kind.bins, 2) * 40, torch.ones(kind.bins)))
        model.head.project.weight.mul_(8)  # large logits, so that places differ in their distribution
    if hasattr(model, "centres"):
        model.centres.copy_(torch.randn_like(model.centres) * 40)
    return Colorizer(model, RunConfig(model=kind, data=DataConfig(image_size=32)))


@pytest.fixture(scope="module")
def plain():
    return colorizer(DiffusionConfig(**SMALL))


@pytest.fixture(scope="module")
def knowing():
    more = {"encoder": ENCODER, "encoder_size": 32, "head": "classes", "bins": 12, "neck_width": 16, "chroma_scale": 4}
    return colorizer(DiffusionConfig(**SMALL, **more))


@pytest.fixture(scope="module")
def classes():
    return colorizer(ClassificationConfig(width=16, blocks=(1, 1, 1, 1), bins=16))


@pytest.fixture(scope="module")
def regression():
    return colorizer(RegressionConfig(model_channels=8, channel_multipliers=(1, 2), outputs="lab"))


ALL = ["plain", "knowing", "classes", "regression"]


def gray(height=60, width=90) -> np.ndarray:
    """Three surfaces of different lightness."""
    L = np.full((height, width), 70, np.uint8)
    L[:, width // 3 :], L[height // 2 :, width // 3 :] = 150, 210
    return np.repeat(L[..., None], 3, axis=2)


def ab_at(picture, x: int, y: int) -> np.ndarray:
    return color.rgb_to_lab(color.channels_first(np.array(picture)[..., :3]))[1:, y, x].numpy()


@pytest.mark.parametrize("name", ALL)
def test_it_answers_as_colorize_does(name, request):
    one, photo = request.getfixturevalue(name), from_array(gray())
    opened = one.open(photo)
    opened.saturation, opened.warmth = 1.4, 8.0
    opened.hint(70, 50, "#c03020")
    hints = [(70, 50, "#c03020")]
    there = one.colorize(photo, seed=3, hints=hints, saturation=1.4, warmth=8.0)
    assert np.array_equal(opened.picture(3), np.asarray(there))


def test_each_seed_has_its_answer_and_is_asked_once(plain, monkeypatch):
    opened, asked = plain.open(gray(), steps=2), []
    monkeypatch.setattr(plain, "answer", lambda *a, _own=plain.answer, **k: asked.append(len(a[0])) or _own(*a, **k))
    first = opened.answers(range(3))
    again = opened.answers([2, 0])
    assert [answer.seed for answer in again] == [2, 0]
    assert again[0] is first[2]
    assert asked == [3]
    opened.hint(5, 5, "red")
    assert opened.answers([0])[0] is not first[0]  # this model takes hints
    assert not torch.equal(first[0].ab, first[1].ab)


def test_a_hint_is_kept_on_its_spot_for_every_model(plain, knowing, classes, regression):
    for one in (plain, knowing, classes, regression):
        opened = one.open(gray(), working_size=60).hint(70, 50, "#c03020")
        (spot,) = opened.spots
        assert np.linalg.norm(ab_at(opened.image(), 70, 50) - np.array(spot.ab)) < 2


@pytest.mark.parametrize(("x", "y", "colour"), [(-1, 0, "red"), (90, 0, "red"), (0, 60, "red"), (0, 0, "no colour")])
def test_a_wrong_hint_is_refused_and_changes_nothing(plain, x, y, colour):
    opened = plain.open(gray()).hint(1, 1, "blue")
    with pytest.raises(UsageError):
        opened.hint(x, y, colour)
    assert opened.hints == ((1, 1, "blue"),)


@pytest.mark.parametrize("size", [(60, 90), (9, 14)])  # and one smaller than the working picture
@pytest.mark.parametrize("name", ALL)
def test_the_fields_make_the_picture(name, size, request):
    """The page lays them onto L, and shows what the server writes, at every strength and warmth."""
    opened = request.getfixturevalue(name).open(gray(*size), working_size=24).hint(4, 5, "#2040c0")
    opened.saturation, opened.warmth = 1.7, -9.0
    change, *parts, share = opened.fields(opened.answers([1])[0])[1:].split([1, 2, 2, 1])
    ab = opened.saturation * parts[0] + opened.warmth * torch.cat([share * 0, 1 - share]) + parts[1]
    whole = torch.cat([change / 50, ab])[None] if name == "regression" else ab[None]
    small = opened.small if whole.shape[-2:] == opened.small.shape[-2:] else opened.L
    mine = paint(opened.L, small, whole, torch.zeros(2), torch.ones(2))
    assert np.abs(mine.astype(int) - opened.picture(1)).max() <= 1


@pytest.mark.parametrize("name", ["plain", "knowing", "classes"])
def test_suggestions_are_unlike_colours_of_that_lightness(name, request):
    opened = request.getfixturevalue(name).open(gray(), **({"steps": 2} if name == "plain" else {}))
    found = opened.suggest(70, 50)
    assert 1 <= len(found) <= 6
    shares = [share for _, share in found]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1.001
    level = float(color.level(opened.L[0, 0, 50, 70]))
    for colour, _ in found:
        rgb = np.uint8([[[int(colour[n : n + 2], 16) for n in (1, 3, 5)]]])
        assert abs(float(color.rgb_to_lab(color.channels_first(rgb))[0, 0, 0]) - level) < 1


@pytest.mark.parametrize("name", ["plain", "knowing", "classes"])
def test_doubt_goes_where_a_hint_is(name, request):
    opened = request.getfixturevalue(name).open(gray(), **({"steps": 2} if name == "plain" else {}))
    assert opened.ambiguity().shape == (60, 90)
    x, y = opened.best_click()
    before = opened.ambiguity()[y, x]
    assert before > 0
    opened.hint(x, y, "#707070")
    assert opened.ambiguity()[y, x] < 0.2 * before
    assert opened.best_click() != (x, y)


def test_the_best_click_is_on_the_doubtful_surface(plain, monkeypatch):
    opened = plain.open(gray())
    doubt = torch.zeros(opened.small.shape[-2:])
    doubt[: len(doubt) // 2 - 2, doubt.shape[1] // 3 + 3 :] = 20  # the whole upper surface, a little
    doubt[-3:, :2] = 40  # a speck of another one, much
    monkeypatch.setattr(opened, "doubt", lambda: doubt)
    x, y = opened.best_click()
    assert x > 30
    assert y < 30


def test_a_head_gives_a_first_picture_in_one_pass(knowing, plain):
    opened = knowing.open(gray())
    assert opened.first().ab.shape == opened.answers([0])[0].ab.shape
    assert plain.open(gray()).first() is None


def test_sampling_is_watched_and_ended_within_a_step(plain):
    seen = []

    def watch(estimate):
        seen.append(estimate)
        if len(seen) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        plain.open(gray(), steps=7).answers([0, 1], watch=watch)
    assert len(seen) == 2
    assert seen[0].shape[:2] == (2, 2)
    assert seen[0].isfinite().all()


def test_a_saved_picture_says_how_it_was_made(plain, tmp_path):
    opened = plain.open(gray(), steps=3, working_size=24).hint(5.5, 6, "#2040c0")
    opened.saturation = 1.3
    opened.save(tmp_path / "a.png", seed=4)
    made = read_provenance(tmp_path / "a.png")
    assert (made.seed, made.options, made.saturation, made.working_size) == (4, {"steps": 3}, 1.3, 24)
    assert [hint.as_hint() for hint in made.hints] == [(5.5, 6.0, "#2040c0")]
    assert (made.width, made.height, made.noise) == (90, 60, opened.digest)
    assert str(tmp_path) not in made.model_dump_json()
    again = plain.open(tmp_path / "a.png", digest=made.noise, working_size=24, **made.options)
    again.tell(opened.hints).saturation = 1.3
    assert np.abs(again.picture(4).astype(int) - np.asarray(Image.open(tmp_path / "a.png"))).max() <= 3


def test_one_answer_is_painted_into_another(plain, tmp_path):
    """The answer is whole under the brush, absent away from it, and has a soft edge between; it is remembered, and made
    again."""
    opened = plain.open(gray(), steps=2, working_size=60)
    base, other = (opened.picture(seed).astype(int) for seed in (1, 2))
    opened.mix(2, [(20, -5), (20, 65)], radius=12)
    mixed = opened.picture(1).astype(int)
    assert np.abs(base - other).mean() > 5
    assert np.array_equal(mixed[:, 35:], base[:, 35:])
    assert np.abs(mixed[:, 18:22] - other[:, 18:22]).max() <= 1
    between = np.abs(mixed - base).sum(axis=(0, 2)) / np.abs(other - base).sum(axis=(0, 2)).clip(1)
    assert 0.2 < between[29] < 0.8
    opened.save(tmp_path / "a.png", seed=1)
    made = read_provenance(tmp_path / "a.png")
    again = plain.open(gray(), working_size=60, **made.options)
    again.strokes = made.strokes
    assert np.array_equal(again.picture(made.seed), opened.picture(1))
    assert np.array_equal(opened.mix(1, [(20, 30)], radius=200).picture(1), base.astype(np.uint8))  # painted back


@pytest.mark.parametrize("size", [(60, 90), (9, 14)])  # and one smaller than the working picture
def test_mixed_fields_make_the_mixed_picture(plain, size):
    """They are mixed as on the page, whatever the hints, the strength and the warmth are."""
    x, y = size[1] // 3, size[0] // 2
    opened = plain.open(gray(*size), steps=2, working_size=24).hint(x, y, "#2040c0")
    opened.mix(2, [(x, 1), (2 * x, y)], radius=size[0] / 3)
    opened.saturation, opened.warmth = 1.7, -9.0
    one, two = (opened.fields(answer) for answer in opened.answers([1, 2]))
    share = torch.from_numpy(coverage(opened.strokes[0], opened.size, one.shape[-2:]))
    parts = torch.lerp(one, two, share)[2:].split([2, 2, 1])
    ab = opened.saturation * parts[0] + opened.warmth * torch.cat([parts[2] * 0, 1 - parts[2]]) + parts[1]
    small = opened.small if ab.shape[-2:] == opened.small.shape[-2:] else opened.L
    mine = paint(opened.L, small, ab[None], torch.zeros(2), torch.ones(2))
    assert np.abs(mine.astype(int) - opened.picture(1)).max() <= 1


@pytest.mark.parametrize(("points", "radius"), [([], 5), ([(0, 0)], 0), ([(0, float("nan"))], 5), ([(0, 0, 0)], 5)])
def test_a_stroke_that_is_none_is_refused_and_changes_nothing(plain, points, radius):
    opened = plain.open(gray())
    with pytest.raises(UsageError, match="The stroke is wrong"):
        opened.mix(1, points, radius)
    assert opened.strokes == ()


def test_a_notebook_shows_it(plain):
    png = plain.open(gray(), steps=2)._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert "90 x 60" in repr(plain.open(gray()))


def test_a_colour_as_a_page_writes_it():
    assert as_hex(0.0, (0.0, 0.0)) == "#000000"
    assert as_hex(100.0, (0.0, 0.0)) == "#ffffff"
    assert as_hex(53.2, (80.1, 67.2)) == "#ff0000"
