"""What goes into a method's `forward` and what comes out, with the random numbers that both share.

Randomness is a function of (seed, step, place in the batch): a run that was stopped continues bit for bit without
any stored generator state, and two processes that share a batch draw what one process would have drawn.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

_GOLDEN_RATIO = (5**0.5 - 1) / 2


class BatchRandom(NamedTuple):
    """Random numbers for samples `start` ... `start + count - 1` of the `total` that make optimizer step `step`.

    Each name is a stream of its own, so the order of the calls does not matter.
    """

    seed: int
    step: int
    start: int
    count: int  # type: ignore[assignment] # hides tuple.count, which nobody calls
    total: int
    device: str = "cpu"

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._own(torch.randn(self.total, *shape, generator=self._generator(name), device=self.device))

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self._own(torch.rand(self.total, *shape, generator=self._generator(name), device=self.device))

    def spread(self, name: str) -> Tensor:
        """(count,) float64 in [0, 1), on the CPU: spread evenly, with one common random offset.

        Low-discrepancy timesteps, after Kingma et al. 2021 (Variational Diffusion Models, appendix I): each is uniform,
        and together they make the loss of a batch far less noisy. The golden ratio's multiples spread evenly over any
        run of neighbours too, so that every process and micro-step gets its share of low and high noise. They are on
        the CPU because what depends on them (which samples get the image-space terms) shapes the work.
        """
        offset = torch.rand((), generator=self._generator(name, "cpu"), dtype=torch.float64)
        place = torch.arange(self.start, self.start + self.count, dtype=torch.float64)
        return (place * _GOLDEN_RATIO + offset).remainder(1)

    def _own(self, values: Tensor) -> Tensor:
        return values[self.start : self.start + self.count]

    def _generator(self, name: str, device: str | None = None) -> torch.Generator:
        return keyed_generator(f"{self.seed}/{self.step}/{name}", device or self.device)


def keyed_generator(key: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers that are a function of `key` alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batch(NamedTuple):
    L: Tensor  # (B, 1, H, W) in [-1, 1]
    ab: Tensor  # (B, 2, H, W), about unit variance
    random: BatchRandom
    image_share: float = 0.0  # share of the samples whose ab_hat is wanted, those that are known best; 0 for none
    maps: tuple[Tensor, ...] | None = None  # what the encoder sees, where that was computed before: feature_cache.py


class Step(NamedTuple):
    """One training step's answer, per sample, so that a batch shared by several processes has one mean."""

    loss: Tensor  # (B,)
    metrics: dict[str, Tensor]  # named terms, (B,), detached
    estimate: "Estimate | None" = None  # None where none was wanted


class Estimate(NamedTuple):
    """The method's guess of the true chroma of K of the B samples, on which image-space terms act."""

    ab_hat: Tensor  # (K, 2, H, W), differentiable
    truth: Tensor  # (K, 2, H, W): the true chroma, as finely as the method can give it
    L: Tensor  # (K, 1, H, W): their true lightness
    weight: Tensor  # (K,): how much a term counts; on average its sum over a batch is the number of samples B
    L_hat: Tensor | None = None  # (K, 1, H, W), differentiable: the lightness, where the method restores it too
