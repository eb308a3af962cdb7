"""What a run minimises: the method's own loss (or one of losses.py), and image-space terms on its estimate of the
true colours.

    mse_weight * mse + perceptual_weight * perceptual + adversarial_weight * adversarial
        + feature_matching_weight * feature matching

An image-space term acts on a share of the samples, those whose estimate is known best, each with its weight (see
batch.Estimate), and is divided by the whole batch: so micro-steps and processes agree with one pass over it all.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from Project7 import color
from Project7.batch import Estimate, Step
from Project7.checkpoints import load_moments
from Project7.discriminator import MultiScalePatchGAN, adversarial_loss, discriminator_loss, feature_matching_loss
from Project7.loss_config import LossConfig
from Project7.losses import make_loss
from Project7.perceptual_loss import load_perceptual
from Project7.training_config import ObjectiveConfig


class Objective:
    """The terms and their weights, the frozen features and the discriminator, at one stage of a run.

    config: None is the method's own loss alone. image_size: side of the training squares. seed: of the
    discriminator's first weights. exact_critic: keep the discriminator in float32 whatever autocast says. own: what
    the method calls its own loss. loss: one of losses.py in its place.
    """

    def __init__(
        self,
        config: ObjectiveConfig | None,
        *,
        loss: LossConfig | None = None,
        image_size: int,
        device: torch.device,
        seed: int = 0,
        exact_critic: bool = False,
        own: str = "mse",
    ):
        self.config, self.device, self.exact_critic, self.own = config, device, exact_critic, own
        self.perceptual = self.discriminator = self.critic_optimizer = None
        self.loss = make_loss(loss, device) if loss else None
        self.active = False
        if config and config.perceptual_weight:
            # A copy: the loaded one is kept, and moving it would move it for all.
            self.perceptual = copy.deepcopy(load_perceptual(config.perceptual_net, config.perceptual_weights)).to(
                device
            )
        if config and config.gan:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                discriminator = MultiScalePatchGAN(image_size, scales=config.gan_scales, width=config.gan_width)
            self.discriminator = discriminator.to(device).eval()  # see follow_weights
            self.critic_optimizer = torch.optim.AdamW(
                discriminator.parameters(), lr=config.gan_learning_rate, betas=(0.5, 0.999), weight_decay=0, fused=True
            )

    # -- which terms, and how much -----------------------------------------------------------------------------------

    def begin(self, epoch: int) -> int:
        """Which stage epoch `epoch` (from 0) belongs to: 1 is the method's loss alone, 2 all terms; 0 has no stages."""
        stages = self.config.stage1_epochs if self.config else 0
        self.active = bool(self.config) and epoch >= stages
        return 0 if not stages else 2 if self.active else 1

    @property
    def score_name(self) -> str:
        """What validation measures. Losses under different names are not compared."""
        own = self.own_name
        if not (self.active and self.perceptual):
            return own
        weight, share = self.config.perceptual_weight, self.config.image_share
        return f"{own} + {weight:g} perceptual ({self.perceptual.name}; least noisy {share:g} of the timesteps)"

    @property
    def name(self) -> str:
        """What training minimises: the score, and the discriminator's part in it."""
        matching = self.config.feature_matching_weight if self.config else 0
        critic = f" + {self.config.adversarial_weight:g} adversarial" if self.has_critic else ""
        return f"{self.score_name}{critic}" + (f" + {matching:g} feature matching" if critic and matching else "")

    @property
    def own_name(self) -> str:
        """The method's own loss, or the terms of the one of losses.py."""
        weights = self.loss.weights if self.loss else {self.own: self.own_weight}
        terms = [
            f"{weight:g} {name}{f' ({self.loss.perceptual.name})' if self.loss and name == 'perceptual' else ''}"
            for name, weight in weights.items()
        ]
        return (f"{self.loss.name}: " if self.loss else "") + " + ".join(terms)

    @property
    def own_weight(self) -> float:
        return self.config.mse_weight if self.active else 1.0

    @property
    def has_critic(self) -> bool:
        return self.active and self.discriminator is not None

    @property
    def image_share(self) -> float:
        """Share of the samples whose estimate the terms want; 0 for none."""
        if self.loss:
            return 1.0
        return self.config.image_share if self.active and (self.perceptual or self.discriminator) else 0.0

    def weights(self, critic_step: int) -> dict[str, float]:
        """The weight of each term that counts. critic_step: optimizer steps since the discriminator began.

        Its opinion counts after `gan_start` steps, and rises linearly to its full weight over `gan_warmup` more.
        """
        weights = self.loss.weights.copy() if self.loss else {self.own: self.own_weight}
        if self.active and self.perceptual:
            weights["perceptual"] = self.config.perceptual_weight
        rise = min(1.0, (critic_step - self.config.gan_start + 1) / (self.config.gan_warmup + 1)) if self.config else 0
        if self.has_critic and rise > 0:
            weights["adversarial"] = rise * self.config.adversarial_weight
            if self.config.feature_matching_weight:
                weights["feature_matching"] = rise * self.config.feature_matching_weight
        return weights

    def validation_weights(self) -> dict[str, float]:
        """The terms by which validation scores: all but the discriminator's, whose opinion changes."""
        weights = self.weights(0)
        return {name: weight for name, weight in weights.items() if name not in ("adversarial", "feature_matching")}

    # -- the terms ---------------------------------------------------------------------------------------------------

    def terms(self, step: Step, ab_mean: Tensor, ab_std: Tensor, weights: dict[str, float]):
        """name -> (B,) or (K,) values of the terms in `weights`, each sample's times its weight; differentiable."""
        if self.loss:
            return self.loss.of_lab(*both_in_lab(step.estimate, ab_mean, ab_std))
        terms = {self.own: step.loss}
        if step.estimate is None:
            return terms
        ab_hat, truth, L, weight, _ = step.estimate
        if "perceptual" in weights:
            terms["perceptual"] = weight * self.perceptual.of_chroma(L, ab_hat, truth, ab_mean, ab_std)
        if "adversarial" in weights:
            with self.frozen_critic():
                fake = self.discriminator(L, ab_hat)
                terms["adversarial"] = weight * adversarial_loss(fake)
                if "feature_matching" in weights:
                    with torch.no_grad():
                        real = self.discriminator(L, truth)
                    terms["feature_matching"] = weight * feature_matching_loss(real, fake)
        return terms

    @contextlib.contextmanager
    def frozen_critic(self) -> Iterator[None]:
        """The discriminator as a judge: gradients go through it, and none stay in it."""
        self.discriminator.requires_grad_(False)
        try:
            with self.critic_precision():
                yield
        finally:
            self.discriminator.requires_grad_(True)

    def critic_precision(self):
        return torch.autocast(self.device.type, enabled=False) if self.exact_critic else contextlib.nullcontext()

    # -- the discriminator's own step --------------------------------------------------------------------------------

    def teach_critic(self, estimate: Estimate, share: float) -> dict[str, Tensor]:
        """Adds the gradient of the discriminator's hinge loss, true colours against estimated ones, times `share`.

        Returns its loss and mean answers, (K,), detached.
        """
        ab_hat, truth, L, weight, _ = estimate
        count = len(L)
        with self.critic_precision():  # one pass for both
            answers = self.discriminator(torch.cat([L, L]), torch.cat([truth, ab_hat.detach()]))
        real = [[features[:count] for features in scale] for scale in answers]
        fake = [[features[count:] for features in scale] for scale in answers]
        loss = weight * discriminator_loss(real, fake)
        (loss.sum() * share).backward()
        opinions = {"critic_of_truth": -adversarial_loss(real), "critic_of_estimate": -adversarial_loss(fake)}
        return {"critic": loss.detach(), **{name: weight * v.detach() for name, v in opinions.items()}}

    def critic_step(self, accelerator, bad: Tensor) -> None:
        """One step of the discriminator's AdamW; none where `bad` is 1 or its own gradient is not finite."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.discriminator.parameters()]
        if accelerator.num_processes > 1:  # each process has its part of the batch's sum
            whole = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "sum")
            gradients = [
                g.view_as(p) for g, p in zip(whole.split([g.numel() for g in gradients]), gradients, strict=True)
            ]
        for parameter, gradient in zip(self.discriminator.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.discriminator.parameters(), 1.0)
        self.critic_optimizer.found_inf = torch.maximum(bad, (~norm.isfinite()).float())
        self.critic_optimizer.step()
        self.critic_optimizer.zero_grad()
        self.follow_weights()

    @torch.no_grad()
    def follow_weights(self) -> None:
        """One power iteration of each spectral norm. Not at every forward pass, as torch does in training mode: then
        the network would depend on how many micro-steps and processes share a batch."""
        self.discriminator.train()
        for module in self.discriminator.modules():
            if is_parametrized(module):
                _ = module.weight  # computed on access
        self.discriminator.eval()

    def forget_gradients(self) -> None:
        """After a micro-step that ran out of memory."""
        if self.critic_optimizer:
            self.critic_optimizer.zero_grad()

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The keys of the source document."""
        config = self.config
        if self.loss:
            return {f"{name}_weight": weight for name, weight in self.loss.weights.items()}
        state = {
            "mse_weight": config.mse_weight if config else 1.0,
            "perceptual_weight": config.perceptual_weight if config else 0.0,
            "adversarial_weight": config.adversarial_weight if config and config.gan else 0.0,
            "use_gan": bool(config and config.gan),
        }
        if self.discriminator is not None:
            state["discriminator_state_dict"] = self.discriminator.state_dict()
            state["discriminator_optimizer_state_dict"] = self.critic_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Takes over a stored discriminator. Returns a sentence if there is a new one instead, else None."""
        if self.discriminator is None:
            return None
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
        load_moments(self.critic_optimizer, state["discriminator_optimizer_state_dict"])
        for group in self.critic_optimizer.param_groups:
            group["lr"] = self.config.gan_learning_rate
        return None


def both_in_lab(estimate: Estimate, ab_mean: Tensor, ab_std: Tensor) -> tuple[Tensor, Tensor]:
    """Lab (K, 3, H, W): what the method answers, and the truth."""
    L_hat = estimate.L if estimate.L_hat is None else estimate.L_hat
    return color.join(L_hat, estimate.ab_hat, ab_mean, ab_std), color.join(estimate.L, estimate.truth, ab_mean, ab_std)
