"""The input and output of a method's `forward`: its pictures, and the random numbers of a training step.

Randomness is a function of (seed, step, place in the batch): a run that was stopped continues bit for bit without
any stored generator state, and two processes that share a batch draw what one process would have drawn.
"""

import hashlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from Project7 import color

_GOLDEN_RATIO = (5**0.5 - 1) / 2


class BatchRandom(NamedTuple):
    """Random numbers for samples `start` ... `start + count - 1` of the `total` samples in optimizer step `step`.

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
        """(count,) float64 in [0, 1), on the CPU: evenly spread numbers with one common random offset.

        For low-discrepancy timesteps, after Kingma et al. 2021 (Variational Diffusion Models, appendix I): each number
        is uniform, and together they make the loss of a batch far less noisy. Multiples of the golden ratio are evenly
        spread over any run of neighbours too, so that every process and micro-step gets its share of low and high
        noise. They are on the CPU because they decide the shapes of tensors (which samples get image-space terms).
        """
        offset = torch.rand((), generator=self._generator(name, "cpu"), dtype=torch.float64)
        place = torch.arange(self.start, self.start + self.count, dtype=torch.float64)
        return (place * _GOLDEN_RATIO + offset).remainder(1)

    def _own(self, values: Tensor) -> Tensor:
        return values[self.start : self.start + self.count]

    def _generator(self, name: str, device: str | None = None) -> torch.Generator:
        return keyed_generator(f"{self.seed}/{self.step}/{name}", device or self.device)


def keyed_generator(key: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose random numbers are a function of `key` alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batch(NamedTuple):
    L: Tensor  # (B, 1, H, W) in [-1, 1]
    ab: Tensor  # (B, 2, H, W), about unit variance
    random: BatchRandom
    image_share: float = 0.0  # share of samples that need an estimate (for diffusion, those with the least noise)
    maps: tuple[Tensor, ...] | None = None  # the encoder's feature maps if they are cached: feature_cache.py
    view: Tensor | None = None  # (B, 1, V, V): L of the same squares with more pixels, for an encoder; None: L

    @property
    def seen(self) -> Tensor:
        """What an encoder is shown."""
        return self.L if self.view is None else self.view


def reduced(rgb: Tensor, size: int) -> Tensor:
    """Squares (B, 3, V, V) uint8 -> (B, 3, size, size) uint8, as squares.py makes them of a photo."""
    if rgb.shape[-1] == size:
        return rgb
    small = F.interpolate(rgb.float(), (size, size), mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8)


def view(rgb: Tensor, size: int) -> Tensor | None:
    """L (B, 1, V, V) of squares (B, 3, V, V) uint8 for an encoder; None if they have the network's own `size`."""
    return None if rgb.shape[-1] == size else color.lightness(rgb)


class Step(NamedTuple):
    """The result of one training step, per sample, so that a batch shared by several processes has one mean."""

    loss: Tensor  # (B,)
    metrics: dict[str, Tensor]  # named terms, (B,), detached
    estimate: "Estimate | None" = None  # None if image_share is 0


class Estimate(NamedTuple):
    """The method's estimate of the true chroma of K of the B samples, to which image-space loss terms are applied."""

    ab_hat: Tensor  # (K, 2, H, W), differentiable
    truth: Tensor  # (K, 2, H, W): the true chroma, at the resolution that the method can reach
    L: Tensor  # (K, 1, H, W): the true lightness
    weight: Tensor  # (K,): how much a term counts; on average its sum over a batch is the number of samples B
    L_hat: Tensor | None = None  # (K, 1, H, W), differentiable: the estimated lightness, if the method restores it
