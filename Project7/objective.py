"""What a run minimises: the method's own loss (or one of losses.py), and image-space terms on its estimate of the
true colours.

    mse_weight * mse + perceptual_weight * perceptual + adversarial_weight * adversarial
        + feature_matching_weight * feature matching

An image-space term acts on a share of the samples, those whose estimate is known best, each with its weight (see
batch.Estimate), and is divided by the whole batch: so micro-steps and processes agree with one pass over it all.
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
    """The terms and their weights, the frozen features and the discriminator, at one stage of a run.

    config: None is the method's own loss alone. image_size: side of the training squares. seed: of the
    discriminator's first weights. exact_critic: keep the discriminator in float32 whatever autocast says.
    method_loss: the name of the method's own loss. loss: one of losses.py in its place.
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
        self.config: Any = config  # an ObjectiveConfig where there are terms besides the loss
        self.method_loss = method_loss
        self.loss = make_loss(loss, device) if loss else None
        self.active = False
        self.perceptual: Any = None  # a PerceptualLoss, where it counts
        self.critic: Any = None  # a critic.Critic, where there is a discriminator
        if config and config.perceptual_weight:
            # A copy: the loaded one is kept, and moving it would move it for all.
            features = load_perceptual(config.perceptual_net, config.perceptual_weights)
            self.perceptual = copy.deepcopy(features).to(device)
        if config and config.gan:
            self.critic = Critic(config, image_size=image_size, device=device, seed=seed, exact=exact_critic)

    # -- which terms, and how much -----------------------------------------------------------------------------------

    def begin(self, epoch: int) -> int:
        """Which stage epoch `epoch` (from 0) belongs to: 1 is the method's loss alone, 2 all terms; 0 has no stages."""
        stages = self.config.stage1_epochs if self.config else 0
        self.active = bool(self.config) and epoch >= stages
        return 0 if not stages else 2 if self.active else 1

    @property
    def score_name(self) -> str:
        """What validation measures. Losses under different names are not compared."""
        loss = self.method_loss_name
        if not (self.active and self.perceptual):
            return loss
        weight, share = self.config.perceptual_weight, self.config.image_share
        return f"{loss} + {weight:g} perceptual ({self.perceptual.name}; least noisy {share:g} of the timesteps)"

    @property
    def score_key(self) -> str:
        """The identity of what validation measures: losses of different keys do not compare."""
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
        """What training minimises: the score, and the discriminator's part in it."""
        matching = self.config.feature_matching_weight if self.config else 0
        critic = f" + {self.config.adversarial_weight:g} adversarial" if self.has_critic else ""
        return f"{self.score_name}{critic}" + (f" + {matching:g} feature matching" if critic and matching else "")

    @property
    def method_loss_name(self) -> str:
        """The method's own loss, or the terms of the one of losses.py."""
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
        """Share of the samples whose estimate the terms want; 0 for none."""
        if self.loss:
            return 1.0
        return self.config.image_share if self.active and (self.perceptual or self.critic) else 0.0

    def weights(self, critic_step: int) -> dict[str, float]:
        """The weight of each term that counts. critic_step: optimizer steps since the discriminator began."""
        weights = self.loss.weights.copy() if self.loss else {self.method_loss: self.method_loss_weight}
        if self.active and self.perceptual:
            weights["perceptual"] = self.config.perceptual_weight
        return weights | (self.critic.weights(critic_step) if self.has_critic else {})

    def validation_weights(self) -> dict[str, float]:
        """The terms by which validation scores: all but the discriminator's, whose opinion changes."""
        weights = self.weights(0)
        return {name: weight for name, weight in weights.items() if name not in ADVERSARIAL_TERMS}

    # -- the terms ---------------------------------------------------------------------------------------------------

    def terms(self, step: Step, ab_mean: Tensor, ab_std: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
        """name -> (B,) or (K,) values of the terms in `weights`, each sample's times its weight; differentiable."""
        if self.loss:
            estimate: Any = step.estimate  # such a loss asks for it: image_share
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
        """After a micro-step that ran out of memory."""
        if self.critic:
            self.critic.optimizer.zero_grad()

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
        return state | (self.critic.state_dict() if self.critic else {})

    def load_state_dict(self, state: Any) -> str | None:
        """Takes over a stored discriminator. Returns a sentence if there is a new one instead, else None."""
        return self.critic.load_state_dict(state) if self.critic else None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def both_in_lab(estimate: Estimate, ab_mean: Tensor, ab_std: Tensor) -> tuple[Tensor, Tensor]:
    """Lab (K, 3, H, W): what the method answers, and the truth."""
    L_hat = estimate.L if estimate.L_hat is None else estimate.L_hat
    return color.join(L_hat, estimate.ab_hat, ab_mean, ab_std), color.join(estimate.L, estimate.truth, ab_mean, ab_std)
