"""The head that predicts how likely each colour of the palette is in each cell of the chroma grid.

It gives the mean colour in one pass, the entropy (how unsure it is), colours to suggest at a point, and the likelihood
by which several answers are ranked. Chroma is in Lab units here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Project7.array_sampler import LIKELY
from Project7.layers import group_norm
from Project7.palette import Palette, SoftEncoder, annealed_mean, class_spread, rarity_weights, unlike_colours


class ColorHead(nn.Module):
    """(B, C, h, w) -> logits (B, Q, h, w) over a K-means palette, after Zhang et al. 2016.

    The palette is part of the weights: a new head has none before `set_palette`.
    """

    centres: Tensor  # (Q, 2), ab in Lab units
    counts: Tensor  # (Q,)

    def __init__(self, channels: int, bins: int, rebalance: float):
        super().__init__()
        self.rebalance = rebalance
        self.norm, self.project = group_norm(channels), nn.Conv2d(channels, bins, 1)
        self.register_buffer("centres", torch.zeros(bins, 2))
        self.register_buffer("counts", torch.zeros(bins))
        self._tables: tuple[SoftEncoder, Tensor] | None = None  # made from the palette at first use

    def set_palette(self, palette: Palette) -> None:
        self.centres.copy_(palette.centres)
        self.counts.copy_(palette.counts)
        self._tables = None

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.norm(x)))

    def loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(B,): cross-entropy with the soft target, rebalanced (Zhang et al. 2016, eq. 2). truth: (B, 2, h, w)."""
        encode, rarity = self._encoding(truth)
        classes, soft = encode(truth)  # (B, 5, h, w) twice, the nearest first
        return (rarity[classes[:, 0]] * -(soft * self._log(logits, classes)).sum(dim=1)).mean(dim=(1, 2))

    def mean(self, logits: Tensor) -> Tensor:
        """The mean colour (B, 2, h, w)."""
        return annealed_mean(logits, self.centres, 1.0)

    def entropy(self, logits: Tensor) -> Tensor:
        """(B, 1, h, w) in [0, 1]: 0 is certain, 1 is a uniform distribution."""
        log_p = torch.log_softmax(logits.float(), dim=1)
        return -(log_p.exp() * log_p).sum(dim=1, keepdim=True) / math.log(logits.shape[1])

    def suggest(
        self, logits: Tensor, count: int = 6, *, apart: float = 15.0
    ) -> list[tuple[tuple[float, float], float]]:
        """Distinct colours that are likely at one place, the likeliest first: ab in Lab units and its probability.

        logits: (Q,). Classes within `apart` Lab units of a chosen colour count as that colour.
        """
        return unlike_colours(torch.softmax(logits.float(), dim=0), self.centres, count, apart)

    def spread(self, logits: Tensor) -> Tensor:
        """(B, 1, h, w): the root mean square distance of the likely colours from their mean, in Lab units."""
        return class_spread(logits, self.centres)

    def likely_chroma(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w) twice, in Lab units: the expected chroma, and the largest that is likely (array_sampler.LIKELY)."""
        chroma, order = self.centres.norm(dim=1).sort()
        probability = torch.softmax(logits.float(), dim=1)[:, order]
        place = (probability.cumsum(dim=1) < LIKELY).sum(dim=1).clamp(max=len(order) - 1)
        return torch.einsum("bqhw,q->bhw", probability, chroma), chroma[place]

    def log_likelihood(self, logits: Tensor, ab: Tensor) -> Tensor:
        """(B,): the mean over cells of the log-probability of the classes around ab (B, 2, h, w)."""
        classes, soft = self._encoding(ab)[0](ab)
        return (soft * self._log(logits, classes)).sum(dim=1).mean(dim=(1, 2))

    def _log(self, logits: Tensor, classes: Tensor) -> Tensor:
        logits = logits.float()
        return logits.gather(1, classes) - logits.logsumexp(dim=1, keepdim=True)

    def _encoding(self, like: Tensor) -> tuple[SoftEncoder, Tensor]:
        if self._tables is None:
            palette = Palette(self.centres.cpu(), self.counts.cpu())
            weights = rarity_weights(palette, 1 - self.rebalance)
            self._tables = (SoftEncoder(self.centres.cpu()).to(like.device), weights.to(like.device))
        return self._tables


class MeanHead(nn.Module):
    """(B, C, h, w) -> only the mean colour (B, 2, h, w), trained with the squared error."""

    ab_mean: Tensor  # (2, 1, 1)
    ab_std: Tensor

    def __init__(self, channels: int, ab_mean: tuple[float, float], ab_std: tuple[float, float]):
        super().__init__()
        self.norm, self.project = group_norm(channels), nn.Conv2d(channels, 2, 3, padding=1)
        with torch.device("cpu"):
            self.register_buffer("ab_mean", torch.tensor(ab_mean)[:, None, None], persistent=False)
            self.register_buffer("ab_std", torch.tensor(ab_std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.silu(self.norm(x))).float() * self.ab_std + self.ab_mean

    def loss(self, answer: Tensor, truth: Tensor) -> Tensor:
        """(B,): the squared error in units of ab's standard deviation."""
        return ((answer - truth) / self.ab_std).square().mean(dim=(1, 2, 3))

    def mean(self, answer: Tensor) -> Tensor:
        return answer
