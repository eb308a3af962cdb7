"""What goes into a method's `forward` and what comes out, with the random numbers that both share.

Randomness is a function of (seed, step, place in the batch): a run that was stopped continues bit for bit without
any stored generator state, and two processes that share a batch draw what one process would have drawn.
"""

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor


class BatchRandom(NamedTuple):
    """Random numbers for samples `start` ... `start + count - 1` of the `total` that make optimizer step `step`.

    Each name is a stream of its own, so the order of the calls does not matter.
    """

    seed: int
    step: int
    start: int
    count: int
    total: int
    device: str = "cpu"

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._own(torch.randn(self.total, *shape, generator=self._generator(name), device=self.device))

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        return self._own(torch.rand(self.total, *shape, generator=self._generator(name), device=self.device))

    def stratified(self, name: str) -> Tensor:
        """(count,) in [0, 1), spread evenly over the whole batch with one common random offset.

        Low-discrepancy timesteps (Kingma et al. 2021, Variational Diffusion Models, appendix I): each is uniform,
        and together they make the loss of a batch far less noisy.
        """
        offset = torch.rand((), generator=self._generator(name), device=self.device)
        place = torch.arange(self.total, device=self.device)
        return self._own((place / self.total + offset).remainder(1))

    def _own(self, values: Tensor) -> Tensor:
        return values[self.start : self.start + self.count]

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{self.step}/{name}".encode()).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batch(NamedTuple):
    L: Tensor  # (B, 1, H, W) in [-1, 1]
    ab: Tensor  # (B, 2, H, W), about unit variance
    random: BatchRandom
    wants_ab_hat: bool = False  # image-space terms act on this step


class Step(NamedTuple):
    """One training step's answer, per sample, so that a batch shared by several processes has one mean."""

    loss: Tensor  # (B,)
    metrics: dict[str, Tensor]  # named terms, (B,), detached
    ab_hat: Tensor | None  # (B, 2, H, W): the method's estimate of the true chroma, differentiable
    image_weight: Tensor | None  # (B,): how much an image-space term on ab_hat should count
