"""layers.py against direct formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7.layers import AttentionGate, FiLM, ResBlock, SelfAttention2d, group_norm

every_width = pytest.mark.parametrize("width", [1, 4, 7, 8, 12, 33, 64])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(kind: type, *sizes: int, **options) -> nn.Module:
    """A module with random weights everywhere, because weights that start at 0 or 1 hide mistakes."""
    torch.manual_seed(0)
    module = kind(*sizes, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def direct_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1 x 1 convolution, computed directly."""
    out = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return out if conv.bias is None else out + conv.bias[:, None, None]


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """The groups of channels of each picture with mean 0 and variance 1, then scaled and shifted."""
    grouped = x.unflatten(1, (norm.num_groups, -1))
    mean = grouped.mean(dim=(2, 3, 4), keepdim=True)
    variance = (grouped - mean).square().mean(dim=(2, 3, 4), keepdim=True)
    plain = ((grouped - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
    return plain * norm.weight[:, None, None] + norm.bias[:, None, None]


# ---- norms


def test_groups_divide_every_width_and_are_at_most_32():
    norms = [group_norm(width) for width in range(1, 600)]
    assert all(norm.num_channels % norm.num_groups == 0 for norm in norms)
    assert max(norm.num_groups for norm in norms) == 32
    assert [norm.num_channels for norm in norms] == list(range(1, 600))
    assert {group_norm(width).num_groups for width in (64, 128, 256, 512)} == {32}


@pytest.mark.parametrize("width", [4, 8, 12, 32, 64, 96])
def test_no_channel_is_alone_in_its_group(width):
    """A channel alone in its group loses its mean, which carries its strength; with a single position, nothing is left
    of it."""
    norm = group_norm(width)
    assert norm.num_channels // norm.num_groups >= 2
    assert norm(rand(1, width, 1, 1)).abs().max() > 0.1


@pytest.mark.parametrize(("kind", "sizes"), [(ResBlock, (8, 12)), (ResBlock, (8, 8)), (SelfAttention2d, (32,))])
def test_no_batch_norm_anywhere(kind, sizes):
    modules = list(kind(*sizes).modules())
    assert any(isinstance(m, nn.GroupNorm) for m in modules)
    assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in modules)


# ---- residual block


@pytest.mark.parametrize(("before", "after"), [(8, 8), (8, 12), (12, 6), (7, 5)])
def test_residual_block_by_its_formula(before, after):
    block, x = seeded(ResBlock, before, after), rand(2, before, 5, 7)
    inner = F.conv2d(normed(block.norm1, x).clamp(min=0), block.conv1.weight, block.conv1.bias, padding=1)
    inner = F.conv2d(normed(block.norm2, inner).clamp(min=0), block.conv2.weight, block.conv2.bias, padding=1)
    what, how_much = inner[:, :after], inner[:, after:]
    shortcut = x if before == after else direct_conv(block.shortcut, x)
    torch.testing.assert_close(block(x), shortcut + what / (1 + (-how_much).exp()), rtol=1e-4, atol=1e-4)


def test_a_closed_gate_leaves_the_shortcut():
    block, x = seeded(ResBlock, 8, 8), rand(2, 8, 5, 5)
    with torch.no_grad():
        block.conv2.bias[8:] = -1e4
    assert torch.equal(block(x), x)


@every_width
def test_blocks_take_any_width(width):
    x = rand(2, width, 6, 5)
    assert ResBlock(width, width + 1)(x).shape == (2, width + 1, 6, 5)
    assert SelfAttention2d(width)(x).shape == x.shape
    assert AttentionGate(width, 3)(x, rand(2, 3, 3, 3)).shape == x.shape
    assert FiLM(4, width)(x, rand(2, 4)).shape == x.shape


# ---- self-attention


@pytest.mark.parametrize(("channels", "reduction"), [(32, 16), (12, 4), (8, 16)])
def test_self_attention_by_its_formula(channels, reduction):
    attention, x = seeded(SelfAttention2d, channels, reduction=reduction), rand(2, channels, 3, 4)
    inner = normed(attention.norm, x)
    query, key = direct_conv(attention.query, inner).flatten(2), direct_conv(attention.key, inner).flatten(2)
    value = direct_conv(attention.value, inner).flatten(2)
    scores = torch.einsum("bcn,bcm->bnm", query, key) / math.sqrt(query.shape[1])
    attended = torch.einsum("bnm,bcm->bcn", torch.softmax(scores, dim=2), value).reshape(x.shape)
    expected = x + attention.gamma * direct_conv(attention.project, attended)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-4)


def test_queries_and_keys_are_reduced_by_16_and_values_are_not():
    attention = SelfAttention2d(512)
    assert (attention.query.out_channels, attention.key.out_channels, attention.value.out_channels) == (32, 32, 512)
    assert SelfAttention2d(8).query.out_channels == 1


def test_gamma_zero_is_the_identity_and_it_starts_near():
    attention, x = SelfAttention2d(32), rand(2, 32, 4, 4)
    assert 0 < (attention(x) - x).std() < 0.2 * x.std()
    nn.init.zeros_(attention.gamma)
    assert torch.equal(attention(x), x)


def test_every_place_sees_every_other():
    """The answer at one corner depends on the picture at the opposite corner."""
    attention, x = seeded(SelfAttention2d, 16), rand(1, 16, 6, 6).requires_grad_()
    attention(x)[0, :, 0, 0].square().sum().backward()
    assert (x.grad.abs().amax(dim=1) > 0).all()


def test_attention_does_not_care_where_places_are():
    attention, x = seeded(SelfAttention2d, 16), rand(1, 16, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    torch.testing.assert_close(attention(shuffled), attention(x).flatten(2)[..., order].reshape(x.shape))


# ---- attention gate


def test_attention_gate_by_its_formula():
    gate, skip, deep = seeded(AttentionGate, 6, 10), rand(2, 6, 4, 4), rand(2, 10, 4, 4, seed=1)
    inner = (direct_conv(gate.of_skip, skip) + direct_conv(gate.of_gate, deep)).clamp(min=0)
    alpha = 1 / (1 + (-direct_conv(gate.psi, inner)).exp())
    assert alpha.shape == (2, 1, 4, 4)
    torch.testing.assert_close(gate(skip, deep), alpha * skip)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_the_deeper_layer_is_enlarged_to_the_skip(size):
    """A gate that is the same everywhere acts like one of the skip's size."""
    gate, skip, deep = seeded(AttentionGate, 6, 10), rand(2, 6, *size), rand(2, 10, 1, 1, seed=1)
    torch.testing.assert_close(gate(skip, deep.expand(-1, -1, 4, 3)), gate(skip, deep.expand(-1, -1, *size)))


def test_the_gate_knows_where():
    """The skip is suppressed only where the deeper layer rejects it."""
    gate, skip = AttentionGate(4, 1), torch.ones(1, 4, 8, 8)
    with torch.no_grad():
        gate.of_skip.weight.zero_()
        gate.of_gate.weight.fill_(1)
        gate.of_gate.bias.zero_()
        gate.psi.weight.fill_(50)
        gate.psi.bias.fill_(-50)
    deep = torch.zeros(1, 1, 4, 4)
    deep[..., 2:] = 5.0
    gated = gate(skip, deep)
    assert (gated[..., :3] < 1e-6).all()
    assert (gated[..., 5:] > 1 - 1e-6).all()


@pytest.mark.parametrize(("bias", "open_"), [(-1e4, 0), (1e4, 1)])
def test_a_gate_is_shut_at_0_and_open_at_1(bias, open_):
    gate, skip = seeded(AttentionGate, 6, 10), rand(2, 6, 8, 8)
    nn.init.constant_(gate.psi.bias, bias)
    assert torch.equal(gate(skip, rand(2, 10, 4, 4, seed=1)), open_ * skip)


# ---- FiLM


def test_film_starts_as_the_identity_and_can_be_taught():
    film, x = FiLM(128, 8), rand(2, 8, 3, 3)
    assert torch.equal(film(x, rand(2, 128, seed=1)), x)
    film(x, rand(2, 128, seed=1)).square().sum().backward()
    assert film.linear.weight.grad.ne(0).all()


def test_film_by_its_formula():
    film, x, context = seeded(FiLM, 5, 3), rand(2, 3, 4, 4), rand(2, 5, seed=1)
    both = context @ film.linear.weight.T + film.linear.bias
    gamma, beta = 1 + both[:, :3, None, None], both[:, 3:, None, None]
    torch.testing.assert_close(film(x, context), gamma * x + beta)


# ---- all


@pytest.mark.parametrize("kind", ["ResBlock", "SelfAttention2d", "AttentionGate", "FiLM"])
def test_every_parameter_gets_a_gradient(kind):
    x, deep = rand(2, 32, 6, 6), rand(2, 8, 3, 3, seed=1)
    modules = {"ResBlock": (ResBlock, 32, 48), "SelfAttention2d": (SelfAttention2d, 32)}
    modules |= {"AttentionGate": (AttentionGate, 32, 8), "FiLM": (FiLM, 8, 32)}
    torch.manual_seed(0)
    module = modules[kind][0](*modules[kind][1:])
    others = {"AttentionGate": (deep,), "FiLM": (deep.mean(dim=(2, 3)),)}
    (module(x, *others.get(kind, ())) * rand(2, 1, 6, 6, seed=2)).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name
