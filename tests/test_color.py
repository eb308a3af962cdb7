"""color.py against scikit-image, at the corners of the RGB cube and outside it."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from Project7.color import (
    channels_first,
    channels_last,
    gray,
    into_gamut,
    join,
    lab_to_linear,
    lab_to_rgb,
    lightness,
    linear_to_srgb,
    rgb_to_lab,
    scaled,
    show,
    split,
    srgb_to_linear,
    to_uint8,
    without_chroma,
)

MEAN, STD = torch.tensor([2.1, 8.9]), torch.tensor([12.6, 17.7])
LEVELS = [0, 1, 2, 9, 10, 11, 12, 100, 128, 254, 255]  # 10 and 11 lie on both sides of the kink of sRGB's curve


def bytes_at_random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def extreme_colours() -> np.ndarray:
    """Every triple of LEVELS as a picture (121, 11, 3) uint8: black, white, the primaries, and nearly black colours."""
    return np.stack(np.meshgrid(LEVELS, LEVELS, LEVELS), -1).reshape(121, 11, 3).astype(np.uint8)


def pictures() -> list[np.ndarray]:
    return [bytes_at_random(64, 80, 3), extreme_colours()]


def unshowable(count: int = 20_000) -> torch.Tensor:
    """Random Lab colours (3, 1, N) of all lightnesses that sRGB cannot show, some of them far out of gamut."""
    draw = torch.rand(3, 1, 4 * count, generator=torch.Generator().manual_seed(3))
    lab = torch.cat([draw[:1] * 100, draw[1:] * 256 - 128])
    linear = lab_to_linear(lab)
    return lab[:, :, ((linear < -1e-3) | (linear > 1 + 1e-3)).any(0)[0]][:, :, :count]


@pytest.mark.parametrize("picture", pictures(), ids=["random", "extreme"])
def test_lab_is_that_of_scikit_image(picture):
    ours = channels_last(rgb_to_lab(channels_first(picture)))
    np.testing.assert_allclose(ours, rgb2lab(picture), atol=2e-3)


@pytest.mark.parametrize("picture", pictures(), ids=["random", "extreme"])
def test_rgb_is_that_of_scikit_image(picture):
    lab = rgb2lab(picture)  # float64, so that only the conversion back is measured
    ours = channels_last(lab_to_rgb(channels_first(lab)).clamp(0, 1))
    np.testing.assert_allclose(ours, lab2rgb(lab), atol=2e-5)
    np.testing.assert_allclose(ours, picture / 255, atol=2e-5)


def test_out_of_gamut_agrees_with_scikit_image_once_both_are_clipped():
    lab = unshowable(5000)
    fz = (lab[0] + 16) / 116 - lab[2] / 200
    lab = lab[..., fz[0] > 0]  # below 0 scikit-image clips Z, which the formula does not do
    theirs = lab2rgb(lab.movedim(0, -1).double().numpy())
    np.testing.assert_allclose(channels_last(lab_to_rgb(lab).clamp(0, 1)), theirs, atol=1e-4)


def test_uint8_and_float_of_the_same_picture_agree():
    rgb = channels_first(bytes_at_random(32, 32, 3))
    assert torch.equal(rgb_to_lab(rgb), rgb_to_lab(rgb.float() / 255))


def test_transfer_curve_is_its_own_inverse():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(linear_to_srgb(srgb_to_linear(bytes_))), bytes_)
    torch.testing.assert_close(srgb_to_linear(bytes_), srgb_to_linear(bytes_.float() / 255))


@pytest.mark.parametrize("picture", pictures(), ids=["random", "extreme"])
@pytest.mark.parametrize("way_back", [show, lambda lab: to_uint8(lab_to_rgb(lab))], ids=["show", "plain"])
def test_uint8_round_trip_is_exact(picture, way_back):
    rgb = channels_first(picture)
    assert torch.equal(way_back(rgb_to_lab(rgb)), rgb)


def test_every_gray_level_survives():
    grays = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert torch.equal(show(rgb_to_lab(grays)), grays)
    assert torch.equal(gray(grays), grays)


def test_leading_dimensions_do_not_matter():
    rgb = channels_first(bytes_at_random(2, 5, 6, 7, 3))
    lab = rgb_to_lab(rgb)
    assert lab.shape == (2, 5, 3, 6, 7)
    torch.testing.assert_close(lab[1, 4], rgb_to_lab(rgb[1, 4]))
    wild = lab * torch.tensor([1.0, 4.0, 4.0])[:, None, None]
    assert torch.equal(into_gamut(wild)[1, 4], into_gamut(wild[1, 4]))
    assert torch.equal(show(wild)[1, 4], show(wild[1, 4]))


SPOTS = {
    "black": (0.0, 0.0, 0.0),
    "white": (1.0, 1.0, 1.0),
    "red": (1.0, 0.0, 0.0),
    "nearly black": (0.003, 0.002, 0.001),
    "mid gray": (0.5, 0.5, 0.5),
    "below 0": (-0.2, 0.5, -0.01),
    "above 1": (1.3, 0.2, 2.0),
}


@pytest.mark.parametrize("spot", SPOTS.values(), ids=SPOTS)
def test_gradient_of_lab_is_finite_and_right(spot):
    check_gradient(rgb_to_lab, torch.tensor(spot)[:, None, None], step=2e-4)


LAB_SPOTS = {
    "black": (0.0, 0.0, 0.0),
    "white": (100.0, 0.0, 0.0),
    "black with chroma": (0.0, 60.0, -90.0),
    "white with chroma": (100.0, -80.0, 70.0),
    "far out": (50.0, 128.0, -128.0),
    "mid gray": (53.0, 1.0, -2.0),
    "below black": (-5.0, 3.0, 3.0),
}


@pytest.mark.parametrize("spot", LAB_SPOTS.values(), ids=LAB_SPOTS)
def test_gradient_of_rgb_is_finite_and_right(spot):
    check_gradient(lab_to_rgb, torch.tensor(spot)[:, None, None], step=2e-2)


def check_gradient(function, spot, step):
    """Compares the Jacobian with central differences; float32 and the kinks of the curves allow 3 % of its largest
    entry."""
    jacobian = torch.autograd.functional.jacobian(function, spot)[:, 0, 0, :, 0, 0]
    assert jacobian.isfinite().all()
    columns = []
    for channel in range(3):
        shift = torch.zeros(3, 1, 1)
        shift[channel] = step
        columns.append((function(spot + shift) - function(spot - shift))[:, 0, 0] / (2 * step))
    differences = torch.stack(columns, dim=1)
    torch.testing.assert_close(jacobian, differences, rtol=0, atol=0.03 * differences.abs().max().item())


@pytest.mark.parametrize("curve", [linear_to_srgb, srgb_to_linear])
def test_the_slope_of_the_transfer_curve_is_finite_at_exactly_zero_and_below(curve):
    x = torch.tensor([0.0, -0.0, -0.5, 1e-12, 0.0031308, 0.04045, 1.0], requires_grad=True)
    curve(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.max() < 13


def test_a_loss_on_rgb_has_no_nan_gradient_anywhere():
    lab = torch.cat([unshowable(5000), rgb_to_lab(channels_first(extreme_colours())).flatten(1)[:, None]], -1)
    lab.requires_grad_()
    lab_to_rgb(lab).square().sum().backward()
    assert lab.grad.isfinite().all()
    assert lab.grad.abs().max() < 100  # no slope explodes either


def test_into_gamut_keeps_lightness_and_hue_and_lowers_chroma():
    lab = unshowable()
    inside = into_gamut(lab)
    assert torch.equal(inside[0], lab[0])
    before, after = lab[1:].norm(dim=0), inside[1:].norm(dim=0)
    assert (after < before).all()
    torch.testing.assert_close(inside[1:] * before, lab[1:] * after, rtol=1e-4, atol=1e-2)  # one direction in ab


def test_into_gamut_gives_colours_that_can_be_shown():
    linear = lab_to_linear(into_gamut(unshowable()))
    assert linear.min() >= -1.01e-4
    assert linear.max() <= 1 + 1.01e-4


def test_into_gamut_takes_no_more_chroma_than_it_must():
    lab = unshowable()
    inside = into_gamut(lab)
    further = torch.cat([inside[:1], inside[1:] + lab[1:] * 2 / 1024])
    linear = lab_to_linear(further)
    assert ((linear < -2e-5) | (linear > 1 + 2e-5)).any(0).all()
    chroma = inside[1:].norm(dim=0)
    assert chroma[(lab[0] > 20) & (lab[0] < 80)].median() > 25  # colours stay colours


def test_into_gamut_leaves_showable_pixels_bit_equal():
    rgb = channels_first(bytes_at_random(20, 20, 3))
    lab = rgb_to_lab(rgb)
    lab[1:, 5, 7] = torch.tensor([200.0, -200.0])
    inside = into_gamut(lab)
    touched = (inside != lab).any(0)
    assert touched[5, 7]
    assert touched.sum() == 1
    clean = rgb_to_lab(channels_first(extreme_colours()))
    assert torch.equal(into_gamut(clean), clean)


@pytest.mark.parametrize("L", [0.0, 100.0])
def test_black_and_white_have_no_chroma_to_keep(L):
    lab = torch.tensor([L, 40.0, -30.0])[:, None, None]
    assert into_gamut(lab)[1:].norm() < 1  # the tolerance on linear RGB is a little chroma at black
    assert (show(lab).int() - round(L * 2.55)).abs().max() <= 1


def test_show_keeps_the_lightness_of_colours_out_of_gamut():
    lab = unshowable()
    shown = rgb_to_lab(show(lab))
    off = (shown[0] - lab[0]).abs()
    assert (off < 1).float().mean() >= 0.999
    clipped = rgb_to_lab(to_uint8(lab_to_rgb(lab)))  # what a plain clip would do: the test can tell the two apart
    assert ((clipped[0] - lab[0]).abs() < 1).float().mean() < 0.5


def test_split_and_join_are_inverse():
    rgb = channels_first(bytes_at_random(2, 16, 16, 3))
    L, ab = split(rgb, MEAN, STD)
    assert L.shape == (2, 1, 16, 16)
    assert ab.shape == (2, 2, 16, 16)
    assert L.min() >= -1
    assert L.max() <= 1
    lab = join(L, ab, MEAN, STD)
    torch.testing.assert_close(lab, rgb_to_lab(rgb), rtol=0, atol=1e-4)
    assert torch.equal(show(lab), rgb)


def test_split_shifts_and_scales_each_channel_by_its_own_constant():
    rgb = channels_first(bytes_at_random(1, 8, 8, 3))
    lab = rgb_to_lab(rgb)
    L, ab = split(rgb, MEAN, STD)
    torch.testing.assert_close(ab[:, 0], (lab[:, 1] - 2.1) / 12.6)
    torch.testing.assert_close(ab[:, 1], (lab[:, 2] - 8.9) / 17.7)
    torch.testing.assert_close(L[:, 0], lab[:, 0] / 50 - 1)


def test_join_takes_a_change_of_lightness_before_ab():
    """A model that restores faded photos answers so: L changes, but never beyond black and white."""
    L, ab = split(channels_first(bytes_at_random(2, 8, 8, 3)), MEAN, STD)
    plain = join(L, ab, MEAN, STD)
    change = torch.linspace(-1.5, 1.5, 64).reshape(1, 1, 8, 8).expand(2, 1, 8, 8)
    lab = join(L, torch.cat([change, ab], dim=1), MEAN, STD)
    assert lab.shape == (2, 3, 8, 8)
    assert torch.equal(lab[:, 1:], plain[:, 1:])
    torch.testing.assert_close(lab[:, :1], (plain[:, :1] + 50 * change).clamp(0, 100))
    assert lab[:, 0].min() == 0
    assert lab[:, 0].max() == 100
    unchanged = join(L, torch.cat([torch.zeros_like(L), ab], dim=1), MEAN, STD)
    torch.testing.assert_close(unchanged, plain)


def test_join_computes_in_float32_whatever_a_network_answers_in():
    L, ab = split(channels_first(bytes_at_random(1, 8, 8, 3)), MEAN, STD)
    for answer in (ab, torch.cat([torch.zeros_like(L), ab], dim=1)):
        lab = join(L, answer.bfloat16(), MEAN, STD)
        assert lab.dtype == torch.float32
        torch.testing.assert_close(lab[:, 0], (L[:, 0] + 1) * 50)  # L keeps all its digits
        torch.testing.assert_close(lab, join(L, ab, MEAN, STD), rtol=0.01, atol=0.1)
    rough = L.bfloat16()
    torch.testing.assert_close(join(rough, ab, MEAN, STD)[:, :1], (rough.float() + 1) * 50)


def test_scaled_brings_the_channels_of_lab_to_one_order():
    assert scaled(torch.tensor([100.0, 110.0, -110.0])[:, None, None]).flatten().tolist() == [1, 1, -1]
    lab = rgb_to_lab(channels_first(bytes_at_random(2, 5, 4, 6, 3)))  # any leading dimensions
    torch.testing.assert_close(scaled(lab), lab / torch.tensor([100.0, 110.0, 110.0])[:, None, None])
    extreme = scaled(rgb_to_lab(channels_first(extreme_colours())))
    assert extreme.abs().max() < 1.001
    assert scaled(lab.bfloat16()).dtype == torch.float32


def test_scaled_is_differentiable():
    lab = torch.zeros(1, 3, 1, 1, requires_grad=True)
    scaled(lab).sum().backward()
    torch.testing.assert_close(lab.grad.flatten(), torch.tensor([1 / 100, 1 / 110, 1 / 110]))


def test_without_chroma_is_the_gray_picture_of_a_lightness():
    rgb = channels_first(np.concatenate([bytes_at_random(121, 11, 3), extreme_colours()], 1))[None]
    found = without_chroma(lightness(rgb))
    assert found.dtype == torch.uint8
    assert found.shape == rgb.shape
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 1], found[:, 2])
    assert (found.int() - gray(rgb).int()).abs().max() <= 1  # rounded once more on the way
    ends = without_chroma(torch.tensor([-1.0, 1.0])[None, None, None])
    assert ends[0, 0, 0].tolist() == [0, 255]
    beyond = without_chroma(torch.tensor([-1.5, 1.5])[None, None, None])
    assert torch.equal(beyond, ends)  # a restored L may overshoot


def test_lightness_is_the_L_of_split():
    rgb = channels_first(np.concatenate([bytes_at_random(121, 11, 3), extreme_colours()], 1))[None]
    torch.testing.assert_close(lightness(rgb), split(rgb, MEAN, STD)[0], rtol=0, atol=2e-6)


def test_gray_has_no_chroma_and_the_lightness_of_the_photo():
    rgb = channels_first(np.concatenate([bytes_at_random(121, 11, 3), extreme_colours()], 1))
    without = gray(rgb)
    assert without.dtype == torch.uint8
    assert torch.equal(without[0], without[1])
    assert torch.equal(without[1], without[2])
    off = (rgb_to_lab(without)[0] - rgb_to_lab(rgb)[0]).abs()
    assert off.max() < 0.3  # half a level of gray


def test_bfloat16_pictures_are_mixed_in_float32():
    assert rgb_to_lab(torch.rand(3, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_to_uint8_rounds_and_clips():
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 7.0])).tolist() == [0, 0, 0, 1, 255, 255]


def test_channels_first_and_last_are_inverse():
    picture = bytes_at_random(4, 6, 3)[:, ::-1]  # a view with negative strides, as numpy gives for mirrored pictures
    assert channels_first(picture).shape == (3, 4, 6)
    assert (channels_last(channels_first(picture)) == picture).all()
