"""The objective of a run: the method's own loss (or one of losses.py), and image-space terms on its estimate of the
true colours.

    mse_weight * mse + perceptual_weight * perceptual + adversarial_weight * adversarial
        + feature_matching_weight * feature matching

An image-space term acts on a share of the samples, those with the most reliable estimate, each with its weight (see
batch.Estimate), and is divided by the size of the whole batch, so that micro-steps and processes add up to one pass
over it.
"""

import copy
import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from Project7 import color
from Project7.batch import Estimate, Step
from Project7.critic import ADVERSARIAL_TERMS, Critic
from Project7.loss_config import LossConfig
from Project7.losses import make_loss
from Project7.perceptual_loss import load_perceptual
from Project7.training_config import ObjectiveConfig


class Objective:
    """The terms and their weights, the frozen features and the discriminator, in one stage of a run.

    config: None means the method's own loss alone. image_size: side of the training squares in pixels. seed: random
    seed of the discriminator's initial weights. exact_critic: keep the discriminator in float32 even under autocast.
    method_loss: the name of the method's own loss. loss: a loss of losses.py that replaces it.
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
        method_loss: str = "mse",
    ):
        self.config: Any = config  # an ObjectiveConfig if there are terms besides the loss
        self.method_loss = method_loss
        self.loss = make_loss(loss, device) if loss else None
        self.active = False
        self.perceptual: Any = None  # a PerceptualLoss if its weight is above 0
        self.critic: Any = None  # a critic.Critic if there is a discriminator
        if config and config.perceptual_weight:
            # A copy, because the loaded network is cached: moving it to a device would move it for all its users.
            features = load_perceptual(config.perceptual_net, config.perceptual_weights)
            self.perceptual = copy.deepcopy(features).to(device)
        if config and config.gan:
            self.critic = Critic(config, image_size=image_size, device=device, seed=seed, exact=exact_critic)

    # -- which terms, and how much -----------------------------------------------------------------------------------

    def begin(self, epoch: int) -> int:
        """Begins epoch `epoch` (from 0) and returns its stage: 1 is the method's loss alone, 2 all terms; 0 means that
        the run has no stages."""
        stages = self.config.stage1_epochs if self.config else 0
        self.active = bool(self.config) and epoch >= stages
        return 0 if not stages else 2 if self.active else 1

    @property
    def score_name(self) -> str:
        """What validation measures, in words."""
        loss = self.method_loss_name
        if not (self.active and self.perceptual):
            return loss
        weight, share = self.config.perceptual_weight, self.config.image_share
        return f"{loss} + {weight:g} perceptual ({self.perceptual.name}; least noisy {share:g} of the timesteps)"

    @property
    def score_key(self) -> str:
        """The identity of what validation measures: losses under different keys cannot be compared."""
        score: dict[str, Any] = {"weights": self.validation_weights()}
        if self.loss:
            score |= {"loss": self.loss.name, "features": getattr(self.loss.perceptual, "name", None)}
        elif self.active and self.perceptual:
            score |= {"features": self.perceptual.name, "image_share": self.config.image_share}
        return _digest(score)

    @property
    def key(self) -> str:
        """The identity of what training minimises."""
        adversarial = [self.config.adversarial_weight, self.config.feature_matching_weight] if self.has_critic else None
        return _digest([self.score_key, adversarial])

    @property
    def name(self) -> str:
        """What training minimises, in words: the score, and the terms of the discriminator."""
        matching = self.config.feature_matching_weight if self.config else 0
        critic = f" + {self.config.adversarial_weight:g} adversarial" if self.has_critic else ""
        return f"{self.score_name}{critic}" + (f" + {matching:g} feature matching" if critic and matching else "")

    @property
    def method_loss_name(self) -> str:
        """The method's own loss, or the terms of the loss of losses.py that replaces it, in words."""
        weights = self.loss.weights if self.loss else {self.method_loss: self.method_loss_weight}
        terms = [
            f"{weight:g} {name}{f' ({self.loss.perceptual.name})' if self.loss and name == 'perceptual' else ''}"
            for name, weight in weights.items()
        ]
        return (f"{self.loss.name}: " if self.loss else "") + " + ".join(terms)

    @property
    def method_loss_weight(self) -> float:
        return self.config.mse_weight if self.active else 1.0

    @property
    def has_critic(self) -> bool:
        return self.active and self.critic is not None

    @property
    def image_share(self) -> float:
        """Share of the samples whose estimate the terms need; 0 for none."""
        if self.loss:
            return 1.0
        return self.config.image_share if self.active and (self.perceptual or self.critic) else 0.0

    def weights(self, critic_step: int) -> dict[str, float]:
        """The weight of each active term. critic_step: optimizer steps since the discriminator began."""
        weights = self.loss.weights.copy() if self.loss else {self.method_loss: self.method_loss_weight}
        if self.active and self.perceptual:
            weights["perceptual"] = self.config.perceptual_weight
        return weights | (self.critic.weights(critic_step) if self.has_critic else {})

    def validation_weights(self) -> dict[str, float]:
        """The weights of the terms that validation measures: all but the discriminator's, because it changes itself."""
        weights = self.weights(0)
        return {name: weight for name, weight in weights.items() if name not in ADVERSARIAL_TERMS}

    # -- the terms ---------------------------------------------------------------------------------------------------

    def terms(self, step: Step, ab_mean: Tensor, ab_std: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
        """name -> the values (B,) or (K,) of the terms in `weights`, multiplied by the weights of the samples;
        differentiable."""
        if self.loss:
            estimate: Any = step.estimate  # never None here, because image_share is 1
            return self.loss.of_lab(*both_in_lab(estimate, ab_mean, ab_std))
        terms = {self.method_loss: step.loss}
        if step.estimate is None:
            return terms
        ab_hat, truth, L, weight, _ = step.estimate
        if "perceptual" in weights:
            terms["perceptual"] = weight * self.perceptual.of_chroma(L, ab_hat, truth, ab_mean, ab_std)
        if "adversarial" in weights:
            terms |= self.critic.terms(step.estimate, matching="feature_matching" in weights)
        return terms

    def forget_gradients(self) -> None:
        """Clears the discriminator's gradients after a micro-step that ran out of memory."""
        if self.critic:
            self.critic.optimizer.zero_grad()

    # -- saving and resuming -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The weights of the terms, and the discriminator; the keys are those of the source document."""
        config = self.config
        if self.loss:
            return {f"{name}_weight": weight for name, weight in self.loss.weights.items()}
        state = {
            "mse_weight": config.mse_weight if config else 1.0,
            "perceptual_weight": config.perceptual_weight if config else 0.0,
            "adversarial_weight": config.adversarial_weight if config and config.gan else 0.0,
            "use_gan": bool(config and config.gan),
        }
        return state | (self.critic.state_dict() if self.critic else {})

    def load_state_dict(self, state: Any) -> str | None:
        """Restores a stored discriminator. Returns a sentence if a new one begins instead, else None."""
        return self.critic.load_state_dict(state) if self.critic else None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def both_in_lab(estimate: Estimate, ab_mean: Tensor, ab_std: Tensor) -> tuple[Tensor, Tensor]:
    """The method's answer and the truth in Lab, (K, 3, H, W) each."""
    L_hat = estimate.L if estimate.L_hat is None else estimate.L_hat
    return color.join(L_hat, estimate.ab_hat, ab_mean, ab_std), color.join(estimate.L, estimate.truth, ab_mean, ab_std)
