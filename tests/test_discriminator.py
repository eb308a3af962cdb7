"""discriminator.py: the receptive field of an answer, the features, and the losses computed by hand."""

import pytest
import torch
from torch import Tensor, nn

from Project7 import perceptual_loss
from Project7.discriminator import (
    MATCHED,
    PATCHES,
    MultiScalePatchGAN,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    make_patch_gan,
    patch_side,
    possible_scales,
)

SIZES = [16, 32, 64, 128, 256]


def seeded_gan(image_size: int, *, scales: int = 1, width: int = 8) -> MultiScalePatchGAN:
    torch.manual_seed(0)
    return MultiScalePatchGAN(image_size, scales=scales, width=width)


def photo(size: int, count: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random L and ab."""
    picture = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return picture[:, :1], picture[:, 1:]


# ---- patches and scales


@pytest.mark.parametrize("side", PATCHES)
def test_an_answer_sees_a_patch_of_the_side_that_its_name_says(side):
    """The test finds the pixels for which one answer in the middle of the map has a gradient."""
    torch.manual_seed(0)
    scale = make_patch_gan(side, width=8)
    picture = torch.randn(1, 3, 256, 256, requires_grad=True)
    answers = scale(picture)
    h, w = answers.shape[-2:]
    answers[0, 0, h // 2, w // 2].backward()
    rows, columns = picture.grad[0].abs().sum(dim=0).nonzero().T
    assert rows.max() - rows.min() + 1 == side
    assert columns.max() - columns.min() + 1 == side
    assert rows.min() > 0  # nothing was cut off by the border
    assert rows.max() < 255


@pytest.mark.parametrize(
    ("size", "side"),
    [(8, 11), (16, 11), (29, 11), (30, 20), (32, 20), (50, 20), (51, 34), (64, 34), (105, 70), (256, 70)],
)
def test_the_patch_is_the_largest_that_is_well_within_the_picture(size, side):
    assert patch_side(size) == side


@pytest.mark.parametrize("size", SIZES)
def test_no_answer_sees_the_whole_picture_and_there_are_many(size):
    L, ab = photo(size, count=1)
    ab.requires_grad_()
    answers = seeded_gan(size)(L, ab)[0][-1]
    h, w = answers.shape[-2:]
    assert min(h, w) >= 8
    answers[0, 0, h // 2, w // 2].backward()
    seen = ab.grad.abs().sum(dim=1)[0] > 0
    assert seen.any()
    assert seen.float().mean() < 0.5


@pytest.mark.parametrize(
    ("size", "wanted", "made"),
    [
        (8, 3, 1),
        (16, 1, 1),
        (16, 3, 1),
        (31, 3, 1),
        (32, 3, 2),
        (63, 3, 2),
        (64, 3, 3),
        (64, 2, 2),
        (64, 1, 1),
        (256, 3, 3),
    ],
)
def test_there_are_as_many_scales_as_wanted_and_as_the_size_allows(size, wanted, made):
    assert possible_scales(size, wanted) == made
    gan = seeded_gan(size, scales=wanted)
    assert len(gan.scales) == made
    assert len(gan(*photo(size))) == made


@pytest.mark.parametrize("size", [8, 13, 37, *SIZES])
def test_any_size_gets_finite_answers_and_gives_a_gradient(size):
    L, ab = photo(size)
    ab.requires_grad_()
    answers = seeded_gan(size, scales=3)(L, ab)
    for *kept, map_of_answers in answers:
        assert map_of_answers.shape[:2] == (2, 1)
        assert map_of_answers.isfinite().all()
        assert [features.shape[1] for features in kept] == [16, 32, 32]
    adversarial_loss(answers).sum().backward()
    assert ab.grad.isfinite().all()
    assert (ab.grad.flatten(2).abs().sum(dim=-1) > 0).all()


def test_each_scale_judges_half_the_size_of_the_one_before():
    gan = seeded_gan(64, scales=3).eval()
    L, ab = photo(64)
    picture = torch.cat([L, ab], dim=1)
    for scale, found, side in zip(gan.scales, gan(L, ab), (64, 32, 16), strict=True):
        small = nn.functional.interpolate(picture, (side, side), mode="area")
        torch.testing.assert_close(found[-1], scale(small))


def test_it_looks_at_lightness_and_chroma_alike():
    gan = seeded_gan(32).eval()
    L, ab = photo(32)
    answers = gan(L, ab)[0][-1]
    for other in ((-L, ab), (L, ab * torch.tensor([-1.0, 1.0])[:, None, None]), (L, ab.flip(1))):
        assert not torch.allclose(gan(*other)[0][-1], answers)


def test_samples_do_not_depend_on_their_company():
    """Without batch norm, the answers to a picture are the same in any batch, so processes and micro-steps agree."""
    gan = seeded_gan(32, scales=2).eval()
    L, ab = photo(32, count=3)
    for together, alone in zip(gan(L, ab), gan(L[1:2], ab[1:2]), strict=True):
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[1:2], one, rtol=1e-4, atol=1e-5)


def test_no_samples_have_no_answers():
    answers = seeded_gan(32, scales=2)(torch.empty(0, 1, 32, 32), torch.empty(0, 2, 32, 32))
    assert adversarial_loss(answers).shape == (0,)
    assert discriminator_loss(answers, answers).shape == (0,)
    assert feature_matching_loss(answers, answers).shape == (0,)


# ---- layers


@pytest.mark.parametrize("side", PATCHES)
def test_spectral_norm_holds_in_every_layer(side):
    """The largest singular value of each convolution, as a matrix by output channels, is 1 (Miyato et al. 2018)."""
    torch.manual_seed(0)
    scale = make_patch_gan(side, width=16)
    with torch.no_grad():
        for layer in scale[::2]:
            layer.parametrizations.weight.original.mul_(7)  # whatever training makes of the weights
    for _ in range(60):  # a power iteration a forward pass
        scale(torch.zeros(1, 3, 32, 32))
    for layer in scale[::2]:
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()
        assert largest == pytest.approx(1, abs=0.03)


def test_layers_3_5_and_7_are_the_activations_after_the_second_third_and_fourth_convolution():
    gan = seeded_gan(64).eval()
    L, ab = photo(64)
    (scale,), (found,) = gan.scales, gan(L, ab)
    assert MATCHED == (3, 5, 7)
    for position, convolutions, features in zip(MATCHED, (2, 3, 4), found, strict=False):
        assert isinstance(scale[position], nn.LeakyReLU)
        upto = scale[: position + 1]
        assert sum(isinstance(layer, nn.Conv2d) for layer in upto) == convolutions
        torch.testing.assert_close(features, upto(torch.cat([L, ab], dim=1)))
    assert len(found) == 4
    assert isinstance(scale[-1], nn.Conv2d)  # the answers are not squashed: the hinge needs both signs


def test_the_width_is_that_of_the_first_convolution():
    widths = [layer.out_channels for layer in seeded_gan(64, width=12).scales[0][::2]]
    assert widths == [12, 24, 48, 48, 1]


def test_it_can_be_had_from_perceptual_loss_too():
    assert perceptual_loss.MultiScalePatchGAN is MultiScalePatchGAN


# ---- losses, by hand


def answers_of(*samples: list[float]) -> list[Tensor]:
    """The result of one scale: here no features, and a map of answers (B, 1, 1, N)."""
    return [torch.tensor(samples)[:, None, None]]


def test_hinge_loss_of_the_discriminator_by_hand():
    """Sample 0: relu(1 - (3, 0.5)) = (0, 0.5) and relu(1 + (-2, 0)) = (0, 1): 0.25 + 0.5. Sample 1: 3 + 3.5."""
    real, fake = answers_of([3.0, 0.5], [-2.0, -2.0]), answers_of([-2.0, 0.0], [2.0, 3.0])
    assert discriminator_loss([real], [fake]).tolist() == [0.75, 6.5]


def test_a_sure_and_right_discriminator_has_no_loss_and_no_gradient():
    real, fake = torch.full((2, 1, 3, 3), 1.5, requires_grad=True), torch.full((2, 1, 3, 3), -1.5, requires_grad=True)
    loss = discriminator_loss([[real]], [[fake]])
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert not real.grad.any()
    assert not fake.grad.any()


def test_adversarial_loss_by_hand():
    fake = answers_of([3.0, 1.0], [-2.0, 0.5])
    assert adversarial_loss([fake]).tolist() == [-2.0, 0.75]


def test_scales_are_averaged_however_many_answers_they_have():
    large, small = answers_of([4.0, 4.0, 4.0, 4.0]), answers_of([0.0])
    assert adversarial_loss([large, small]).tolist() == [-2.0]
    assert discriminator_loss([large, small], [large, small]).tolist() == [3.5]  # (0 + 5 + 1 + 1) / 2


def test_feature_matching_by_hand():
    """In sample 0, features differ by 1 on average in the first layer and by 3 in the second; sample 1 matches. The
    answers themselves, which come last, are left out."""
    real = [torch.tensor([[[[1.0, 3.0]]], [[[5.0, 5.0]]]]), torch.zeros(2, 3, 1, 1), torch.zeros(2, 1, 1, 1)]
    fake = [
        torch.tensor([[[[2.0, 2.0]]], [[[5.0, 5.0]]]]),
        torch.tensor([-3.0, 0.0])[:, None, None, None].expand(2, 3, 1, 1),
        torch.ones(2, 1, 1, 1) * 100,
    ]
    assert feature_matching_loss([real], [fake]).tolist() == [2.0, 0.0]
    assert feature_matching_loss([real, real], [fake, real]).tolist() == [1.0, 0.0]


def test_feature_matching_moves_the_estimate_and_not_the_truth():
    real, fake = torch.ones(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, 2, requires_grad=True)
    feature_matching_loss([[real, real]], [[fake, fake]]).sum().backward()
    assert real.grad is None
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("size", [16, 64])
def test_bf16_autocast_gives_float32_losses_near_those_without(size):
    gan = seeded_gan(size, scales=3).eval()
    L, ab = photo(size)
    exact = adversarial_loss(gan(L, ab))
    with torch.autocast("cpu", torch.bfloat16):
        answers = gan(L, ab)
        losses = (
            adversarial_loss(answers),
            discriminator_loss(answers, answers),
            feature_matching_loss(answers, answers),
        )
    assert all(loss.dtype == torch.float32 for loss in losses)
    torch.testing.assert_close(losses[0], exact, rtol=0.05, atol=0.02)
