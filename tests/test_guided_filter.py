"""guided_filter.py: chroma enlarged so that it ends where L ends, whole or a few rows at a time."""

import pytest
import torch
import torch.nn.functional as F

from Project7.guided_filter import bicubic_matrix, enlarge, enlarge_rows, line_coefficients


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def lightness(height: int, width: int, grain: float = 0.0) -> torch.Tensor:
    """L (1, 1, H, W) with slopes, a sharp edge and, if asked for, grain."""
    y, x = torch.meshgrid(torch.linspace(0, 6, height), torch.linspace(0, 5, width), indexing="ij")
    edge = torch.where(x > 2.5, 0.6, -0.6)
    return (0.4 * torch.sin(x) * torch.cos(y) + edge + grain * rand(height, width))[None, None]


def chroma_of(L: torch.Tensor) -> torch.Tensor:
    """ab (B, 2, H, W) that is linear in L, with other coefficients for each channel."""
    return torch.cat([1.5 * L + 0.2, -0.8 * L - 0.5], dim=1)


def smaller(x: torch.Tensor, scale: int) -> torch.Tensor:
    return F.avg_pool2d(x, scale)


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("scale", [2, 4])
def test_chroma_that_is_linear_in_L_is_found_again(scale):
    L = lightness(96, 128)
    ours, bicubic = errors(L, scale)
    assert ours < 0.035 * chroma_of(L).std()
    assert ours < 0.42 * bicubic


@pytest.mark.parametrize("scale", [2, 4])
def test_grain_below_eps_does_no_harm(scale):
    ours, bicubic = errors(lightness(96, 128, grain=0.1), scale)
    assert ours < bicubic


def test_strong_contrast_leaves_a_third_of_the_error():
    L = (lightness(96, 128, grain=0.4) > 0).float() * 2 - 1  # windows whose variance is far above eps
    ours, bicubic = errors(L.repeat_interleave(4, -1).repeat_interleave(4, -2), 2)
    assert ours < 0.35 * bicubic


def errors(L: torch.Tensor, scale: int) -> tuple[float, float]:
    """The RMS errors of `enlarge` and of bicubic enlargement, for chroma that is linear in L."""
    L_small, truth = smaller(L, scale), chroma_of(L)
    ours = enlarge(chroma_of(L_small), L_small, L)
    bicubic = F.interpolate(chroma_of(L_small), L.shape[-2:], mode="bicubic")
    return rms(ours - truth), rms(bicubic - truth)


def test_chroma_stays_on_its_side_of_an_edge():
    L = torch.full((1, 1, 64, 64), -0.6)
    L[..., 32:] = 0.6
    truth = torch.zeros(1, 2, 64, 64)
    truth[:, 0, :, 32:], truth[:, 1, :, 32:] = 2.0, -1.0
    for scale in (2, 4):
        L_small, ab_small = smaller(L, scale), smaller(truth, scale)
        ours = enlarge(ab_small, L_small, L)
        bicubic = F.interpolate(ab_small, (64, 64), mode="bicubic")
        for side in (slice(None, 32), slice(32, None)):
            bled, bled_bicubic = (rms((x - truth)[..., side]) for x in (ours, bicubic))
            assert bled < 0.4 * bled_bicubic, (scale, side)


def test_flat_lightness_is_plain_bicubic():
    ab, L = rand(2, 2, 9, 11), torch.full((2, 1, 27, 22), 0.3)
    bicubic = F.interpolate(ab, (27, 22), mode="bicubic")
    torch.testing.assert_close(enlarge(ab, L[..., :9, :11], L), bicubic, rtol=0, atol=1e-4)


def test_constant_chroma_stays_constant_under_any_lightness():
    ab = torch.tensor([0.7, -1.2])[None, :, None, None].expand(1, 2, 12, 16)
    L = lightness(48, 64, grain=0.1)
    torch.testing.assert_close(enlarge(ab, smaller(L, 4), L), ab[..., :1, :1].expand(1, 2, 48, 64), rtol=0, atol=1e-4)


def test_equal_size_is_the_identity():
    ab = rand(2, 2, 7, 9)
    assert torch.equal(enlarge(ab, rand(2, 1, 7, 9, seed=1), rand(2, 1, 7, 9, seed=2)), ab)


def test_coefficients_give_the_small_picture_back():
    ab, L = rand(2, 2, 13, 17), rand(2, 1, 13, 17, seed=1)
    k, c = line_coefficients(ab, L)
    assert k.shape == c.shape == ab.shape
    torch.testing.assert_close(k * L + c, ab, rtol=0, atol=1e-5)


def test_each_picture_of_a_batch_is_enlarged_alone():
    ab, L_small, L = rand(3, 2, 8, 8), rand(3, 1, 8, 8, seed=1), rand(3, 1, 24, 24, seed=2)
    together = enlarge(ab, L_small, L)
    torch.testing.assert_close(together[1:2], enlarge(ab[1:2], L_small[1:2], L[1:2]), rtol=0, atol=1e-6)


SIZES = [
    ((5, 7), (13, 9)),
    ((1, 1), (1, 1)),
    ((1, 1), (5, 3)),
    ((1, 6), (1, 31)),
    ((6, 1), (50, 1)),
    ((4, 4), (4, 9)),
    ((9, 9), (5, 6)),  # smaller than the chroma, which is unusual and still works
]


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_any_size(small, large):
    ab = enlarge(rand(2, 2, *small), rand(2, 1, *small, seed=1), rand(2, 1, *large, seed=2))
    assert ab.shape == (2, 2, *large)
    assert ab.isfinite().all()


@pytest.mark.parametrize(("small", "large"), [((12, 16), (47, 61)), *SIZES])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_rows_equal_the_whole(small, large, rows):
    ab, L_small, L = rand(1, 2, *small), rand(1, 1, *small, seed=1), rand(1, 1, *large, seed=2)
    k, c = line_coefficients(ab, L_small)
    down, right = bicubic_matrix(large[0], small[0]), bicubic_matrix(large[1], small[1])
    strips = [
        enlarge_rows(k, c, L[..., top : top + rows, :], down[top : top + rows], right)
        for top in range(0, large[0], rows)
    ]
    torch.testing.assert_close(torch.cat(strips, dim=-2), enlarge(ab, L_small, L), rtol=0, atol=1e-4)


def test_bicubic_matrix_is_that_of_torch():
    line = rand(1, 1, 1, 13)
    expected = F.interpolate(line, (1, 40), mode="bicubic")[0, 0, 0]
    matrix = bicubic_matrix(40, 13)
    torch.testing.assert_close(matrix @ line[0, 0, 0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(matrix.sum(1), torch.ones(40), rtol=0, atol=1e-5)


def test_half_precision_chroma_is_worked_out_in_float32():
    ab, L_small, L = rand(1, 2, 8, 8), rand(1, 1, 8, 8, seed=1), rand(1, 1, 32, 32, seed=2)
    half = ab.bfloat16()
    assert torch.equal(enlarge(half, L_small, L), enlarge(half.float(), L_small, L))


def test_gradients_reach_the_chroma():
    ab = rand(1, 2, 6, 6).requires_grad_()
    enlarge(ab, rand(1, 1, 6, 6, seed=1), rand(1, 1, 12, 12, seed=2)).square().sum().backward()
    assert ab.grad.isfinite().all()
    assert (ab.grad != 0).all()
