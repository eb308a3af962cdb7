"""Any image in, the same image in colour out: size, lightness, alpha, hints, files and folders."""

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from Project7 import painting
from Project7.answer_config import FAST_STEPS, ColorizeConfig
from Project7.answer_options import method_options
from Project7.checkpoints import save_checkpoint
from Project7.color import channels_first, rgb_to_lab
from Project7.colorize import Colorizer
from Project7.config import RunConfig
from Project7.errors import ProjectError, UsageError
from Project7.methods import build_model
from Project7.model_config import ENCODER, DiffusionConfig, RegressionConfig
from Project7.painting import photo_noise
from Project7.photo import from_array
from Project7.training_config import DataConfig

CONFIG = RunConfig(
    model=DiffusionConfig(features=(8, 16), time_dim=16, hints=True, timesteps=50), data=DataConfig(image_size=16)
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An untrained model with large answers, so that every pixel gets some colour."""
    path = tmp_path_factory.mktemp("model") / "best_model.pth"
    torch.manual_seed(0)
    model = build_model(CONFIG.model)
    save_checkpoint(path, {"model_state_dict": model.state_dict(), "config": CONFIG.model_dump(mode="json")})
    return path


@pytest.fixture(scope="module")
def colorizer(weights):
    return Colorizer.load(weights, device="cpu")


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC))


def lightness(rgb):
    return rgb_to_lab(channels_first(np.asarray(rgb)[..., :3])[None])[0, 0].numpy()


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (7, 16), (33, 47), (1, 500), (500, 1), (120, 81), (15, 15)])
def test_same_size_out_and_lightness_kept(colorizer, size):
    rgb = picture(*size)
    answer = colorizer.colorize(rgb, steps=3)
    assert answer.size == (size[1], size[0])
    assert (np.abs(lightness(answer) - lightness(rgb)) <= 1).mean() >= 0.999


def test_a_colorizer_goes_to_another_process(colorizer):
    """Engines such as Ray or multiprocessing send it so."""
    there = pickle.loads(pickle.dumps(colorizer))
    rgb = picture(20, 24)
    assert np.array_equal(np.asarray(there.colorize(rgb, steps=2)), np.asarray(colorizer.colorize(rgb, steps=2)))


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay(colorizer, value):
    answer = np.asarray(colorizer.colorize(np.full((20, 20, 3), value, np.uint8), steps=2))
    assert np.abs(answer.astype(int) - value).max() <= 2


def test_colour_is_added_and_seeded(colorizer):
    gray = np.asarray(Image.fromarray(picture(40, 30)).convert("L"))
    first, again, other = (np.asarray(colorizer.colorize(gray, seed=s, steps=3)) for s in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.ptp(first.astype(int), axis=-1).mean() > 5


def test_fast_takes_few_steps_and_contradicts_none(colorizer):
    assert method_options(colorizer, ColorizeConfig(fast=True), {"fast"})["steps"] == FAST_STEPS
    assert method_options(colorizer, ColorizeConfig(), set())["steps"] > FAST_STEPS
    with pytest.raises(UsageError, match=r"--fast means --steps \d+, and --steps 9 was given"):
        method_options(colorizer, ColorizeConfig(fast=True, steps=9), {"fast", "steps"})
    model = RegressionConfig(model_channels=4, channel_multipliers=(1, 2))
    one_pass = Colorizer(build_model(model), RunConfig(model=model))
    assert method_options(one_pass, ColorizeConfig(fast=True), {"fast"}) == {}  # it is fast already


def test_bfloat16_is_taken_where_it_is_asked_for_and_changes_little(weights, colorizer):
    rgb = picture(40, 30)
    seen = []
    half = Colorizer.load(weights, device="cpu", precision="bf16")
    half.model.unet.conv_in.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    exact, answer = (np.asarray(c.colorize(rgb, steps=2)).astype(int) for c in (colorizer, half))
    assert set(seen) == {torch.bfloat16}
    assert 0 < np.abs(exact - answer).mean() < 4


def test_photos_of_one_shape_do_not_share_their_noise():
    """The other photos of the batch do not matter either, and a seed gives a folder no common tint."""
    one, two = (from_array(picture(20, 30, seed=s)) for s in (1, 2))
    noise = {s: [torch.randn(99, generator=g) for g in photo_noise(one, s)] for s in ((0,), (0, 1))}
    assert torch.equal(noise[0,][0], noise[0, 1][0])
    assert not torch.equal(*noise[0, 1])
    (other,) = (torch.randn(99, generator=g) for g in photo_noise(two, [0]))
    assert not torch.equal(noise[0,][0], other)


def test_a_small_photo_is_not_enlarged_beyond_half_of_the_trained_size(colorizer):
    """CONFIG is trained at 16 pixels."""
    shapes = {(40, 60): (16, 24), (16, 16): (16, 16), (12, 18): (12, 18), (8, 8): (8, 8), (4, 6): (8, 12)}
    assert {size: colorizer.working_shape(size, None) for size in shapes} == shapes
    assert colorizer.working_shape((12, 18), 16) == (16, 24), "asked for"


def test_variant_k_is_what_the_next_seed_gives(colorizer):
    rgb = picture(40, 30)
    variants = colorizer.colorize(rgb, seed=5, variants=3, steps=2)
    assert [v.size for v in variants] == [(30, 40)] * 3
    for k, variant in enumerate(variants):
        alone = np.asarray(colorizer.colorize(rgb, seed=5 + k, steps=2)).astype(int)
        assert np.abs(np.asarray(variant).astype(int) - alone).max() <= 1  # a batch rounds differently


def test_bands_are_the_whole(colorizer, monkeypatch):
    rgb = picture(90, 60)
    whole = np.asarray(colorizer.colorize(rgb, steps=2)).astype(int)
    monkeypatch.setattr(painting, "_ROWS", 60 * 7)
    banded = np.asarray(colorizer.colorize(rgb, steps=2)).astype(int)
    assert np.abs(whole - banded).max() <= 1


@pytest.mark.parametrize("size", [(32, 48), (64, 96), (20, 30)], ids=["as seen", "larger", "smaller"])
def test_an_answer_of_three_channels_changes_lightness_where_it_says_so(size):
    """The first channel is the change of L, in the network's range: 20 units of L lighter on the left, and none on the
    right."""
    change = torch.zeros(1, 3, 32, 48)
    change[:, 0, :, :24] = 0.4
    mean, std = torch.zeros(2), torch.ones(2)
    L, small = torch.full((1, 1, *size), -0.2), torch.full((1, 1, 32, 48), -0.2)
    found = lightness(painting.paint(L, small, change, mean, std)) - 40
    edge = size[1] // 8
    assert np.abs(found[:, : size[1] // 2 - edge] - 20).max() < 1
    assert np.abs(found[:, size[1] // 2 + edge :]).max() < 1
    gray = painting.paint(L, small, change[:, 1:], mean, std)
    assert np.abs(lightness(gray) - 40).max() < 1, "with two channels nothing changes"


def test_the_network_never_sees_more_than_the_working_size(colorizer, monkeypatch):
    shapes = []
    original = colorizer.model.colorize

    def watch(L, **options):
        shapes.append(tuple(L.shape[-2:]))
        return original(L, **options)

    monkeypatch.setattr(colorizer.model, "colorize", watch)
    colorizer.colorize(picture(200, 100), steps=1)
    colorizer.colorize(picture(200, 100), steps=1, working_size=24)
    colorizer.colorize(picture(2000, 4), steps=1)
    assert shapes == [(32, 16), (48, 24), (64, 1)]


def test_alpha_is_kept(colorizer):
    rgba = np.dstack([picture(20, 30), np.arange(600, dtype=np.uint8).reshape(20, 30)])
    answer = colorizer.colorize(Image.fromarray(rgba, "RGBA"), steps=2)
    assert answer.mode == "RGBA"
    assert np.array_equal(np.asarray(answer)[..., 3], rgba[..., 3])


def test_hints_change_the_answer_and_bad_ones_are_refused(colorizer, weights):
    rgb = picture(32, 48)
    plain = np.asarray(colorizer.colorize(rgb, steps=2))
    hinted = np.asarray(colorizer.colorize(rgb, steps=2, hints=[(10, 20, "#ff0000"), (40, 5, "teal")]))
    assert not np.array_equal(plain, hinted)
    with pytest.raises(UsageError, match="outside"):
        colorizer.colorize(rgb, hints=[(48, 5, "#ff0000")])
    with pytest.raises(UsageError, match="#rrggbb"):
        colorizer.colorize(rgb, hints=[(1, 1, "reddish")])


def test_a_wrong_option_is_an_error_and_not_silence(colorizer):
    with pytest.raises(TypeError):
        colorizer.colorize(picture(16, 16), temperature=0.3)
    with pytest.raises(UsageError, match="sampler"):
        colorizer.colorize(picture(16, 16), sampler="magic")
    with pytest.raises(UsageError, match="steps"):
        colorizer.colorize(picture(16, 16), steps=51)


def test_a_panorama_is_seen_in_a_picture_of_two_squares_at_most():
    """This holds for models with an encoder; a working size that a person asks for, and older models, are not
    affected."""
    seeing = DiffusionConfig(features=(8, 16), time_dim=16, encoder=ENCODER, encoder_size=32, chroma_scale=4)
    config = RunConfig(model=seeing, data=DataConfig(image_size=128))
    colorizer = Colorizer(torch.nn.Identity(), config)
    height, width = colorizer.working_shape((500, 3000), None)
    assert height * width == pytest.approx(2 * 128 * 128, rel=0.02)
    assert width / height == pytest.approx(6, rel=0.02)
    assert colorizer.working_shape((600, 900), None) == (128, 192)
    assert colorizer.working_shape((500, 3000), 128)[0] == 85  # sides differ by 4 x 128 at most
    before = Colorizer(torch.nn.Identity(), RunConfig(data=DataConfig(image_size=128)))
    assert before.working_shape((500, 3000), None) == (85, 512)


def test_a_small_photo_is_enlarged_for_a_model_with_an_encoder():
    """To three quarters of the size in training, or to all of it: what lies between would be padded."""
    config = RunConfig(model=DiffusionConfig(encoder=ENCODER, encoder_size=32), data=DataConfig(image_size=128))
    colorizer = Colorizer(torch.nn.Identity(), config)
    shapes = {(64, 96): (96, 144), (8, 8): (96, 96), (96, 96): (96, 96), (97, 97): (128, 128), (128, 64): (192, 96)}
    assert {size: colorizer.working_shape(size, None) for size in shapes} == shapes
    assert colorizer.working_shape((64, 64), 64) == (64, 64), "asked for"


def test_every_kind_of_picture_is_taken(colorizer, tmp_path, monkeypatch):
    rgb = picture(16, 20)
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(rgb).save(tmp_path / "a.png")
    tensor = torch.from_numpy(rgb.copy()).movedim(-1, 0)
    sources = [
        rgb,
        "~/a.png",
        Image.fromarray(rgb),
        (tmp_path / "a.png").read_bytes(),
        io.BytesIO((tmp_path / "a.png").read_bytes()),
    ]
    sources += [tensor, tensor[None], tensor.float() / 255]
    first, *others = (np.asarray(colorizer.colorize(source, steps=1)) for source in sources)
    assert all(np.array_equal(first, other) for other in others)
    with pytest.raises(TypeError, match=r"a photo is a path.* not builtins\.int"):
        colorizer.colorize(7)


def test_a_list_of_photos_gives_a_list(colorizer):
    photos = [picture(16, 20, 1), picture(30, 20, 2), picture(16, 20, 3), picture(16, 20, 4)]
    many = colorizer.colorize(photos, steps=1)
    alone = [colorizer.colorize(photo, steps=1) for photo in photos]
    assert [image.size for image in many] == [image.size for image in alone]
    for one, other in zip(many, alone, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    assert [len(images) for images in colorizer.colorize(photos[:2], steps=1, variants=2)] == [2, 2]
    assert colorizer.colorize([], steps=1) == []
    with pytest.raises(UsageError, match="hints are for one photo, and there are 4"):
        colorizer.colorize(photos, hints=[(1, 1, "red")])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variants": 0}, "variants 0: input should be greater than or equal to 1"),
        ({"seed": -1}, "seed -1"),
        ({"saturation": 3}, "saturation 3"),
        ({"levels": "some"}, "levels some: input should be 'off', 'network' or 'auto'"),
        ({"calm": 2}, "calm 2"),
        ({"hints": [(1, 2)]}, r"\(1, 2\) is not a hint; write \(x, y, colour\)"),
        ({"hints": [(1, 2, (255, 0, 0))]}, "is not a hint"),
        ({"hints": ["red"]}, "'red' is not a hint"),
    ],
)
def test_options_out_of_bounds_are_named(colorizer, options, said):
    with pytest.raises(UsageError, match=said):
        colorizer.colorize(picture(16, 16), **options)
    colorizer.colorize(picture(16, 16), steps=np.int64(1), seed=np.int32(3))


def test_the_options_are_in_the_signature_and_a_wrong_one_names_the_right(colorizer, weights):
    for method in (colorizer.colorize, colorizer.open):
        names = inspect.signature(method).parameters
        assert {"steps", "sampler", "calm", "temperature", "levels"} <= set(names)
        assert all(parameter.annotation is not parameter.empty for parameter in names.values())
        with pytest.raises(TypeError, match="no option 'step'; did you mean 'steps'\\? It takes image, "):
            method(picture(16, 16), step=3)
    with pytest.raises(
        TypeError, match="temperature is not for this diffusion model, whose options are sampler, steps"
    ):
        colorizer.colorize(picture(16, 16), temperature=0.3)
    with pytest.raises(UsageError, match="precision fp16: input should be 'fp32' or 'bf16'"):
        Colorizer.load(weights, precision="fp16")
    assert repr(colorizer).startswith("Colorizer('model0', diffusion, features 8,16, on cpu")


def test_weights_that_lead_to_no_number_are_said(colorizer):
    """They are finite, but so large that the answer overflows; a damaged file without a checksum may hold such
    weights."""
    broken = copy.deepcopy(colorizer)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(3e38)
    with pytest.raises(ProjectError, match="answers with NaN or infinity"):
        broken.colorize(np.full((16, 16, 3), 99, np.uint8), steps=2)
