"""Losses for colour that train stably: simple, weighted, enhanced.

Called with sRGB in [0, 1], (B, 3, H, W), each returns the weighted total and its named terms, averaged over the batch.
Internally, Lab is scaled to a common range: L / 100 and ab / 110. The terms are squared errors and LPIPS (Zhang et al.
2018), none of which can explode. There is no diversity term of the form -log(variance): its slope grows without bound
as the variance goes to 0, which is where a picture of one colour needs a gentle push.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from Project7 import color
from Project7.loss_config import LOSS_WEIGHTS, PRESETS, LossConfig
from Project7.perceptual_loss import load_lpips, picture

_GRAY, _SATURATED = 5.0, 35.0  # Lab units of chroma: below the first a pixel is gray, above the second saturated
_GRAY_COUNTS, _SATURATED_COUNTS = 0.5, 1.5  # weights of such pixels
Terms = dict[str, Tensor]


class ColorizationLossSimple(nn.Module):
    """perceptual_weight LPIPS + lab_weight MSE(Lab) + ab_weight MSE(ab) [+ diversity_weight / (variance of ab + 1)].

    Terms: `perceptual`, `lab`, `ab`, `diversity`. A term of weight 0 is left out; without LPIPS no network is loaded.
    """

    name = "simple"

    def __init__(
        self,
        perceptual_weight: float = 1.0,
        lab_weight: float = 1.0,
        ab_weight: float = 2.0,
        diversity_weight: float = 0.0,
        perceptual_net: str = "alex",
        perceptual_weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.weights = above_zero(
            perceptual=perceptual_weight, lab=lab_weight, ab=ab_weight, diversity=diversity_weight
        )
        self.perceptual: Any = lpips_for(self.weights, perceptual_net, perceptual_weights, device)

    def forward(self, rgb: Tensor, truth: Tensor) -> tuple[Tensor, Terms]:
        """sRGB in [0, 1], (B, 3, H, W) twice -> the total (), and the terms () by name, unweighted and detached."""
        return total_and_terms(self, rgb, truth)

    def of_lab(self, lab: Tensor, truth: Tensor) -> Terms:
        """Lab (B, 3, H, W) twice -> the terms, (B,) each, differentiable in `lab`."""
        squared = (color.scaled(lab) - color.scaled(truth)).square()
        terms = {
            "perceptual": lambda: self.perceptual(picture(lab), picture(truth)),
            "lab": lambda: mean(squared),
            "ab": lambda: mean(squared[:, 1:]),
            "diversity": lambda: diversity(lab),
        }
        return wanted(terms, self.weights)


class ColorizationWeightedLoss(nn.Module):
    """MSE(ab), with each pixel weighted by the saturation of its true colour: 0.5 if it is gray, 1.5 if saturated.

    The average of all plausible colours is gray, so this makes averaging costly. Between a chroma of 5 and of 35 Lab
    units the weight rises smoothly (3 x^2 - 2 x^3): a step would divide regions of one colour. Terms: `ab` and
    `perceptual`, whose weight should be tiny if it is used at all (0.01).
    """

    name = "weighted"

    def __init__(
        self,
        ab_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        perceptual_net: str = "alex",
        perceptual_weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.weights = above_zero(ab=ab_weight, perceptual=perceptual_weight)
        self.perceptual: Any = lpips_for(self.weights, perceptual_net, perceptual_weights, device)

    def forward(self, rgb: Tensor, truth: Tensor) -> tuple[Tensor, Terms]:
        """sRGB in [0, 1], (B, 3, H, W) twice -> the total (), and the terms () by name, unweighted and detached."""
        return total_and_terms(self, rgb, truth)

    def of_lab(self, lab: Tensor, truth: Tensor) -> Terms:
        """Lab (B, 3, H, W) twice -> the terms, (B,) each, differentiable in `lab`."""
        squared = (color.scaled(lab) - color.scaled(truth))[:, 1:].square()
        terms = {
            "ab": lambda: mean(pixel_weights(truth) * squared),
            "perceptual": lambda: self.perceptual(picture(lab), picture(truth)),
        }
        return wanted(terms, self.weights)


class ColorizationLossEnhanced(nn.Module):
    """perceptual_weight LPIPS + l_weight MSE(L) + ab_weight MSE(ab) + saturation_weight MSE(chroma).

    Chroma is sqrt(a^2 + b^2): its error punishes sepia and gray even where the hue is right. a_weight and b_weight
    shift the ab term between green-red and blue-yellow. Terms: `perceptual`, `l_luminance`, `ab_chrominance`,
    `saturation`; a term of weight 0 is left out. Presets: loss_config.PRESETS.
    """

    def __init__(
        self,
        perceptual_weight: float = 0.5,
        l_weight: float = 0.3,
        ab_weight: float = 3.0,
        saturation_weight: float = 0.5,
        a_weight: float = 1.0,
        b_weight: float = 1.0,
        perceptual_net: str = "alex",
        perceptual_weights: str | None = None,
        device: torch.device | str = "cpu",
    ):
        super().__init__()
        self.weights = above_zero(
            perceptual=perceptual_weight,
            l_luminance=l_weight,
            ab_chrominance=ab_weight,
            saturation=saturation_weight,
        )
        if not (a_weight >= 0 and b_weight >= 0):
            raise ValueError(f"a_weight and b_weight must be 0 or more, not {a_weight} and {b_weight}")
        self.a_weight, self.b_weight = a_weight, b_weight
        self.perceptual: Any = lpips_for(self.weights, perceptual_net, perceptual_weights, device)

    @property
    def name(self) -> str:
        return (
            "enhanced"
            if self.a_weight == self.b_weight == 1
            else f"enhanced (a {self.a_weight:g}, b {self.b_weight:g})"
        )

    @classmethod
    def preset(cls, name: str, **settings: Any) -> "ColorizationLossEnhanced":
        """The loss with the weights of `conservative`, `balanced`, `vibrant` or `maximum`; KeyError for another
        name."""
        return cls(**{**PRESETS[name], **settings})

    def forward(self, rgb: Tensor, truth: Tensor) -> tuple[Tensor, Terms]:
        """sRGB in [0, 1], (B, 3, H, W) twice -> the total (), and the terms () by name, unweighted and detached."""
        return total_and_terms(self, rgb, truth)

    def of_lab(self, lab: Tensor, truth: Tensor) -> Terms:
        """Lab (B, 3, H, W) twice -> the terms, (B,) each, differentiable in `lab`."""
        found, true = color.scaled(lab), color.scaled(truth)
        L, a, b = (found - true).square().unbind(dim=1)
        terms = {
            "perceptual": lambda: self.perceptual(picture(lab), picture(truth)),
            "l_luminance": lambda: mean(L),
            "ab_chrominance": lambda: mean(self.a_weight * a + self.b_weight * b) / 2,
            "saturation": lambda: mean((chroma(found) - chroma(true)).square()),
        }
        return wanted(terms, self.weights)


Loss = ColorizationLossSimple | ColorizationWeightedLoss | ColorizationLossEnhanced


def make_loss(config: LossConfig, device: torch.device | str) -> Loss:
    """The loss that a configuration describes. Raises WeightsMissing if the network of LPIPS is not available."""
    kinds: dict[str, type[Loss]] = {
        "simple": ColorizationLossSimple,
        "weighted": ColorizationWeightedLoss,
        "enhanced": ColorizationLossEnhanced,
    }
    names = ("perceptual_net", "perceptual_weights", *LOSS_WEIGHTS[config.loss])
    return kinds[config.loss](**{name: getattr(config, name) for name in names}, device=device)


# -- the parts -------------------------------------------------------------------------------------------------------


def total_and_terms(loss: Loss, rgb: Tensor, truth: Tensor) -> tuple[Tensor, Terms]:
    if rgb.shape != truth.shape or rgb.ndim != 4 or rgb.shape[1] != 3:
        raise ValueError(
            f"the loss compares pictures of the same shape (B, 3, H, W), not {tuple(rgb.shape)} and "
            f"{tuple(truth.shape)}"
        )
    terms = {name: value.mean() for name, value in loss.of_lab(color.rgb_to_lab(rgb), color.rgb_to_lab(truth)).items()}
    total = torch.stack([loss.weights[name] * value for name, value in terms.items()]).sum()
    return total, {name: value.detach() for name, value in terms.items()}


def above_zero(**weights: float) -> dict[str, float]:
    """The weights that are not 0. Raises ValueError if a weight is below 0, or if all are 0."""
    below = {name: weight for name, weight in weights.items() if not weight >= 0}  # NaN too
    if below or not any(weights.values()):
        raise ValueError(f"weights of a loss must be 0 or more, and at least one above 0; these are {below or weights}")
    return {name: weight for name, weight in weights.items() if weight}


def lpips_for(weights: dict[str, float], net: str, file: str | None, device: torch.device | str) -> nn.Module | None:
    """The network of the perceptual term; None if the weight of the term is 0."""
    # A copy, because the loaded network is cached: moving it to a device would move it for all its users.
    return copy.deepcopy(load_lpips(net, file)).to(device) if "perceptual" in weights else None


def wanted(terms: dict[str, Callable[[], Tensor]], weights: dict[str, float]) -> Terms:
    return {name: make() for name, make in terms.items() if name in weights}


def mean(values: Tensor) -> Tensor:
    """(B, ...) -> (B,)"""
    return values.flatten(1).mean(dim=1)


def chroma(lab: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H, W): sqrt(a^2 + b^2), with a finite slope at gray."""
    return (lab[:, 1:].float().square().sum(dim=1) + 1e-8).sqrt()


def pixel_weights(truth: Tensor) -> Tensor:
    """(B, 1, H, W): the weight of each pixel, by its true chroma."""
    x = ((chroma(truth)[:, None] - _GRAY) / (_SATURATED - _GRAY)).clamp(0, 1)
    return _GRAY_COUNTS + (_SATURATED_COUNTS - _GRAY_COUNTS) * x * x * (3 - 2 * x)


def diversity(lab: Tensor) -> Tensor:
    """(B,): 1 / (v + 1), where v is the mean of the variances of a and b over the pixels of a picture, in units of 110.

    It is computed per picture, so that it does not depend on which pictures share a batch. Its slope in v is at most 1.
    """
    variance = color.scaled(lab)[:, 1:].var(dim=(2, 3)).mean(dim=1)
    return 1 / (variance + 1)
