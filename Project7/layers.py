"""Blocks of the classification generator: residual block with GLU, self-attention, attention gate, FiLM.

All of them normalize with GroupNorm: BatchNorm depends on the batch and on running statistics of the data that a
network was first trained on, which are wrong for lightness in place of RGB.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 32  # largest number of groups; fewer if the channels cannot be divided so


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with at least two channels per group: a channel alone in its group would lose its mean."""
    return nn.GroupNorm(math.gcd(_GROUPS, channels // 2) if channels % 2 == 0 else 1, channels)


class ResBlock(nn.Module):
    """x -> shortcut(x) + GLU(conv(ReLU(GN(conv(ReLU(GN(x))))))): (B, C, H, W) -> (B, C', H, W).

    The gated linear unit (Dauphin et al. 2017) halves the channels of the second convolution: one half holds the
    values, the other their gates. Pre-activation as in He et al. 2016 (Identity Mappings), so that the shortcut stays
    an identity.
    """

    def __init__(self, before: int, after: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = group_norm(after), nn.Conv2d(after, 2 * after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(x)))
        inner = self.conv2(F.relu(self.norm2(inner)))
        return self.shortcut(x) + F.glu(inner, dim=1)


class SelfAttention2d(nn.Module):
    """Every position attends to every other (Zhang et al. 2019, SAGAN): x + gamma attention(x), (B, C, H, W) -> same.

    Queries and keys have C / reduction channels: comparing positions takes fewer channels than the values do. gamma
    starts small, so that the block starts near the identity.
    """

    def __init__(self, channels: int, *, reduction: int = 16):
        super().__init__()
        inner = max(1, channels // reduction)
        self.norm = group_norm(channels)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)  # a bias would add the same to all keys: no difference
        self.value, self.project = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (f(normed).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, H W, channels)
        return x + self.gamma * self.project(attended.transpose(1, 2).unflatten(2, x.shape[-2:]))


class AttentionGate(nn.Module):
    """Weights the positions of a skip connection by the features of the deeper layer (Oktay et al. 2018, eq. 1).

    skip (B, C, H, W), gate (B, G, h, w) -> alpha * skip, alpha = sigmoid(psi(ReLU(W_x skip + W_g gate))) in [0, 1].
    """

    def __init__(self, skip: int, gate: int):
        super().__init__()
        inner = max(1, skip // 2)
        self.of_skip, self.of_gate = nn.Conv2d(skip, inner, 1, bias=False), nn.Conv2d(gate, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        of_gate = F.interpolate(self.of_gate(gate), size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return skip * torch.sigmoid(self.psi(F.relu(self.of_skip(skip) + of_gate)))


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al. 2018): y = gamma(c) x + beta(c), both per channel.

    x (B, C, H, W), context (B, D). Starts as the identity: gamma 1, beta 0.
    """

    def __init__(self, context: int, channels: int):
        super().__init__()
        self.linear = nn.Linear(context, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        gamma, beta = self.linear(context)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * x + beta
