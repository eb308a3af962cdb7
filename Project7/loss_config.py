"""The settings of the losses of direct regression: their terms, their documented weights, and the presets."""

from typing import Any, Literal

from pydantic import BaseModel, model_validator

from Project7.settings import SETTINGS, setting

# The weights of each loss's terms; a preset replaces those of the enhanced loss.
LOSS_WEIGHTS: dict[str, dict[str, float]] = {
    "simple": {"perceptual_weight": 1.0, "lab_weight": 1.0, "ab_weight": 2.0, "diversity_weight": 0.0},
    "weighted": {"perceptual_weight": 0.0, "ab_weight": 1.0},
    "enhanced": {
        "perceptual_weight": 0.5,
        "l_weight": 0.3,
        "ab_weight": 3.0,
        "saturation_weight": 0.5,
        "a_weight": 1.0,
        "b_weight": 1.0,
    },
}
PRESETS: dict[str, dict[str, float]] = {
    "conservative": {"perceptual_weight": 0.5, "l_weight": 0.3, "ab_weight": 2.0, "saturation_weight": 0.3},
    "balanced": {"perceptual_weight": 0.5, "l_weight": 0.3, "ab_weight": 3.0, "saturation_weight": 0.5},
    "vibrant": {"perceptual_weight": 0.3, "l_weight": 0.2, "ab_weight": 4.0, "saturation_weight": 1.0},
    "maximum": {"perceptual_weight": 0.2, "l_weight": 0.2, "ab_weight": 5.0, "saturation_weight": 1.5},
}
# The documented training settings of each loss; the others have their usual defaults.
LOSS_TRAINING: dict[str, dict[str, Any]] = {
    "simple": {"learning_rate": 1e-4, "batch_size": 16},
    "weighted": {
        "learning_rate": 5e-5,
        "batch_size": 16,
        "weight_decay": 1e-5,
        "lr_schedule": "one-cycle",
        "epochs": 100,
    },
    "enhanced": {"learning_rate": 1e-4, "batch_size": 16},
}


def loss_weight(about: str, ask: str | None = None, default: float | None = None) -> Any:
    return setting(default, about, ask=ask, fixed=False, follows=("loss", "preset"), ge=0, le=1000)


class LossConfig(BaseModel):
    """The loss of direct regression, in the terms of losses.py. A weight that is not given is the documented one of the
    loss and its preset; None means that the loss does not have this term."""

    model_config = SETTINGS

    loss: Literal["simple", "weighted", "enhanced"] = setting(
        "simple",
        "simple: LPIPS, Lab and ab; weighted: ab, with more weight on saturated colours; enhanced: LPIPS, L, ab and "
        "saturation",
        ask="Loss (simple, weighted or enhanced)",
        fixed=False,
    )
    preset: Literal["conservative", "balanced", "vibrant", "maximum"] | None = setting(
        None,
        "named set of weights for the enhanced loss (balanced)",
        ask="Preset (conservative, balanced, vibrant or maximum)",
        fixed=False,
        follows=("loss",),
    )
    perceptual_weight: float = loss_weight(
        "weight of LPIPS; 0 loads no network (weighted 0, enhanced 0.5)", "Perceptual weight", default=1.0
    )
    lab_weight: float | None = loss_weight("weight of the squared error of Lab (simple 1)", "Lab weight")
    l_weight: float | None = loss_weight("weight of the squared error of L (enhanced 0.3)", "L weight")
    ab_weight: float = loss_weight(
        "weight of the squared error of ab (weighted 1, enhanced 3)", "ab weight", default=2.0
    )
    saturation_weight: float | None = loss_weight(
        "weight of the squared error of the chroma (enhanced 0.5)", "Saturation weight"
    )
    diversity_weight: float | None = loss_weight("weight of 1 / (variance of ab + 1) (simple 0; 0.01 is mild)")
    a_weight: float | None = loss_weight("weight of a, green to red, within the ab term (enhanced 1)")
    b_weight: float | None = loss_weight("weight of b, blue to yellow, within the ab term (enhanced 1)")
    perceptual_net: Literal["alex", "vgg", "random"] = setting(
        "alex",
        "network of LPIPS: AlexNet or VGG16 trained on ImageNet, or a random, untrained one (weaker)",
        fixed=False,
    )
    perceptual_weights: str | None = setting(
        None, "file with that network's weights, instead of torchvision's download", fixed=False, min_length=1
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fills in the weights that were not given, from the loss and its preset."""
        if not isinstance(values, dict):
            return values
        given = {name: value for name, value in values.items() if value is not None}
        loss = given.get("loss", cls.model_fields["loss"].default)
        if loss == "enhanced":
            given.setdefault("preset", "balanced")
        preset = given.get("preset") if loss == "enhanced" else None
        if not isinstance(loss, str) or not isinstance(preset, str | None):
            return values
        return {**LOSS_WEIGHTS.get(loss, {}), **PRESETS.get(preset or "", {}), **given}

    @model_validator(mode="after")
    def _combinations(self):
        if self.preset and self.loss != "enhanced":
            raise ValueError(f"only the enhanced loss has presets, and the loss is {self.loss}; use --loss enhanced")
        terms = LOSS_WEIGHTS[self.loss]
        foreign = [n for n in type(self).model_fields if n.endswith("_weight") and n not in terms and getattr(self, n)]
        if foreign:
            flag = "--" + foreign[0].replace("_", "-")
            owners = " or ".join(f"--loss {loss}" for loss, weights in LOSS_WEIGHTS.items() if foreign[0] in weights)
            raise ValueError(f"the {self.loss} loss has no term for {flag}; use it with {owners}")
        silent = {"a_weight", "b_weight"} | ({"ab_weight"} if self.a_weight == self.b_weight == 0 else set())
        if not any(getattr(self, name) for name in terms if name not in silent):
            raise ValueError("all weights of the loss are 0, and one must be above 0; leave out one of them")
        if self.perceptual_net == "random" and self.perceptual_weights:
            raise ValueError(
                f"perceptual_net random takes no weights, and perceptual_weights is {self.perceptual_weights}; use "
                "--perceptual-net alex, or --perceptual-weights none"
            )
        return self
