"""The discriminator within a run: its term of the loss, its own optimizer step, its state in a checkpoint.

After Goodfellow et al. 2014, with the PatchGAN, the hinge loss and the feature matching of discriminator.py.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from Project7.batch import Estimate
from Project7.checkpoints import load_moments
from Project7.discriminator import MultiScalePatchGAN, adversarial_loss, discriminator_loss, feature_matching_loss
from Project7.training_config import ObjectiveConfig

ADVERSARIAL_TERMS = ("adversarial", "feature_matching")


class Critic:
    """A discriminator with its optimizer. image_size: side of the training squares in pixels. seed: of the initial
    weights. exact: whether it stays in float32 even under autocast."""

    def __init__(
        self, config: ObjectiveConfig, *, image_size: int, device: torch.device, seed: int = 0, exact: bool = False
    ):
        self.config, self.device, self.exact = config, device, exact
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            discriminator = MultiScalePatchGAN(image_size, scales=config.gan_scales, width=config.gan_width)
        self.discriminator = discriminator.to(device).eval()  # see follow_weights
        self.optimizer = torch.optim.AdamW(
            discriminator.parameters(), lr=config.gan_learning_rate, betas=(0.5, 0.999), weight_decay=0, fused=True
        )

    # -- its term of the loss ----------------------------------------------------------------------------------------

    def weights(self, step: int) -> dict[str, float]:
        """The weights of its terms, `step` optimizer steps after its start: absent for `gan_start` steps, then rising
        linearly to their full value over `gan_warmup` more."""
        rise = min(1.0, (step - self.config.gan_start + 1) / (self.config.gan_warmup + 1))
        if rise <= 0:
            return {}
        weights = {"adversarial": rise * self.config.adversarial_weight}
        if self.config.feature_matching_weight:
            weights["feature_matching"] = rise * self.config.feature_matching_weight
        return weights

    def terms(self, estimate: Estimate, *, matching: bool) -> dict[str, Tensor]:
        """name -> (K,), each sample's value times its weight; differentiable in the estimate, not in the critic."""
        with self.frozen():
            fake = self.discriminator(estimate.L, estimate.ab_hat)
            found = {"adversarial": estimate.weight * adversarial_loss(fake)}
            if matching:
                with torch.no_grad():
                    real = self.discriminator(estimate.L, estimate.truth)
                found["feature_matching"] = estimate.weight * feature_matching_loss(real, fake)
        return found

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freezes its weights: gradients pass through the network, but none are stored in it."""
        self.discriminator.requires_grad_(False)
        try:
            with self.precision():
                yield
        finally:
            self.discriminator.requires_grad_(True)

    def precision(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, enabled=False) if self.exact else contextlib.nullcontext()

    # -- its own step ------------------------------------------------------------------------------------------------

    def teach(self, estimate: Estimate, share: float) -> dict[str, Tensor]:
        """Adds the gradient of its hinge loss, on true and estimated colours, times `share`.

        Returns its loss and its mean outputs, each (K,), detached.
        """
        ab_hat, truth, L, weight, _ = estimate
        count = len(L)
        with self.precision():  # one pass for both
            answers = self.discriminator(torch.cat([L, L]), torch.cat([truth, ab_hat.detach()]))
        real = [[features[:count] for features in scale] for scale in answers]
        fake = [[features[count:] for features in scale] for scale in answers]
        loss = weight * discriminator_loss(real, fake)
        (loss.sum() * share).backward()
        opinions = {"critic_of_truth": -adversarial_loss(real), "critic_of_estimate": -adversarial_loss(fake)}
        return {"critic": loss.detach(), **{name: weight * v.detach() for name, v in opinions.items()}}

    def step(self, accelerator: Accelerator, bad: Tensor) -> None:
        """One step of its AdamW, skipped if `bad` is 1 or its own gradient is not finite."""
        parameters = list(self.discriminator.parameters())
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        if accelerator.num_processes > 1:  # each process holds its part of the sum over the batch
            whole = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "sum")
            parts = whole.split([g.numel() for g in gradients])
            gradients = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        skip = torch.maximum(bad, (~norm.isfinite()).float())
        self.optimizer.found_inf = skip  # type: ignore[attr-defined]  # torch declares it nowhere, and reads it
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.follow_weights()

    @torch.no_grad()
    def follow_weights(self) -> None:
        """One power iteration of each spectral norm. torch does one at every forward pass in training mode, but then
        the network would depend on how many micro-steps and processes share a batch."""
        self.discriminator.train()
        for module in self.discriminator.modules():
            if is_parametrized(module):
                _ = module.weight  # computed on access
        self.discriminator.eval()

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state under the keys that the source document gives."""
        return {
            "discriminator_state_dict": self.discriminator.state_dict(),
            "discriminator_optimizer_state_dict": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Any) -> str | None:
        """Restores a stored discriminator. Returns a sentence if a new one starts instead, else None."""
        state = state if isinstance(state, dict) else {}
        weights = state.get("discriminator_state_dict")
        if weights is None:
            return "The checkpoint has no discriminator: a new one starts."
        shapes = {name: tensor.shape for name, tensor in self.discriminator.state_dict().items()}
        if not isinstance(weights, dict) or {n: getattr(t, "shape", None) for n, t in weights.items()} != shapes:
            return "The discriminator of the checkpoint has another shape: a new one starts."
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            return "The discriminator of the checkpoint holds NaN or infinity: a new one starts."
        self.discriminator.load_state_dict(weights)
        if "discriminator_optimizer_state_dict" not in state:
            return "The checkpoint has no state of the discriminator's optimizer: its AdamW starts afresh."
        load_moments(self.optimizer, state["discriminator_optimizer_state_dict"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.gan_learning_rate
        return None
