"""Which settings of `colorize` and `evaluate` apply to which method: as given, by default, or with --fast."""

from collections.abc import Collection
from typing import Any

from Project7.answer_config import FAST_STEPS, ColorizeConfig, EvaluateConfig
from Project7.errors import UsageError

METHOD_OPTIONS: dict[str, tuple[str, ...]] = {
    "diffusion": ("sampler", "steps", "guidance", "candidates", "calm"),
    "classification": ("temperature", "variety"),
    "regression": (),
}


def model_options(model: Any, settings: ColorizeConfig | EvaluateConfig, answers: int) -> dict[str, Any]:
    """The options of the model's method for `answers` answers per photo: as given, else the model's defaults."""
    chosen = {name: value for name in model.OPTIONS if (value := getattr(settings, name, None)) is not None}
    return getattr(model, "usual", {}) | usual_variety(model, answers) | chosen


def usual_variety(model: Any, answers: int) -> dict[str, float]:
    """The default variety for several answers to one photo, for a method that is deterministic without it."""
    return {"variety": 1.0} if answers > 1 and "variety" in model.OPTIONS else {}


def method_options(colorizer: Any, settings: ColorizeConfig, given: Collection[str]) -> dict[str, Any]:
    """The settings that apply to a Colorizer's model. Raises UsageError if a setting was given that is only for other
    methods."""
    options, method = colorizer.model.OPTIONS, colorizer.config.model.method
    for name in given:
        owners = [owner for owner, names in METHOD_OPTIONS.items() if name in names]
        if owners and name not in options:
            if method in owners:
                raise UsageError(f"--{name} is not for an exported {method} model, which answers as it was exported.")
            raise UsageError(f"--{name} is for {owners[0]} models; this one is a {method} model.")
    for name, value in {"steps": FAST_STEPS, "candidates": 1}.items():
        if settings.fast and name in given:
            mine = getattr(settings, name)
            raise UsageError(f"--fast means --{name} {value}, and --{name} {mine} was given; leave one out.")
    found = model_options(colorizer.model, settings, settings.variants)
    if settings.fast and "steps" in options:
        found |= {"steps": FAST_STEPS, "candidates": 1}
    return found
