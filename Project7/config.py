"""All settings of one training run, as `config.json` and every checkpoint hold them, and the reading of such files.

It does not import torch, so that `--help` and the first question appear at once.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, model_validator

from Project7.errors import UsageError
from Project7.loss_config import LossConfig
from Project7.model_config import ENCODER, METHOD_CONFIGS, DiffusionConfig, MethodConfig
from Project7.settings import SETTINGS, Sections, parse_settings, with_defaults
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

_LPIPS_SMALLEST = 32  # pixels: AlexNet's last feature map vanishes below


class RunConfig(BaseModel):
    """One training run: what `config.json` and the `config` key of a checkpoint hold."""

    model_config = SETTINGS

    model: MethodConfig = DiffusionConfig.model_validate({})
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    objective: ObjectiveConfig | None = None  # None: the method's own loss alone
    loss: LossConfig | None = None  # what a regression model calls its own; None: the squared error of ab
    shipped: bool = False  # whether the model comes with the toolkit, and is continued only in a copy

    @model_validator(mode="after")
    def _combinations(self):
        if self.training.cache_features:
            if not self.model.encoder:
                raise ValueError(
                    "cache_features keeps what an encoder sees, and this model has none; use --encoder NAME"
                )
            if self.model.method == "regression" and self.model.outputs == "lab":
                raise ValueError(
                    "cache_features keeps what the encoder sees of each photo as it is, and --outputs lab fades it at "
                    "every step; leave out --cache-features"
                )
        if self.data.view_size and not self.model.encoder:
            raise ValueError(
                "view_size is for what an encoder is shown, and this model has none; use --encoder NAME, or leave out "
                "--view-size"
            )
        if self.loss is None:
            return self
        if self.model.method != "regression" or self.objective:
            raise ValueError("a loss of losses.py is for a regression model without further objectives")
        if self.model.outputs == "lab" and not (self.loss.lab_weight or self.loss.l_weight):
            raise ValueError(
                f"this {self.loss.loss} loss says nothing about lightness, which the model is to restore (--outputs "
                "lab); use --loss enhanced with an --l-weight, or simple with a --lab-weight"
            )
        if self.loss.perceptual_weight and self.data.image_size < _LPIPS_SMALLEST:
            raise ValueError(
                f"--image-size {self.data.image_size} is too small for the perceptual term ({_LPIPS_SMALLEST} pixels "
                "at least); use larger pictures or --perceptual-weight 0"
            )
        return self


# Defaults of new diffusion models. A stored configuration without these keys comes from an early version: at full
# resolution, without an encoder.
SECTIONS: Sections = {
    "model": with_defaults(DiffusionConfig, chroma_scale=4, encoder=ENCODER, head="classes", attention_levels=2),
    "data": with_defaults(DataConfig, ask={"image_size": "Image size"}),
    "training": TrainingConfig,
}


def for_recipe(stored: RunConfig, sections: Sections) -> RunConfig:
    """A stored configuration as a recipe continues it. Raises UsageError if another recipe has to continue it."""
    method = sections["model"].model_fields["method"].default
    if stored.model.method != method:
        raise UsageError(
            f"This is a {stored.model.method} model, not a {method} one; continue it with "
            f"{' or '.join(stored.model.SCRIPTS)}."
        )
    for part in ("objective", "loss"):
        if part in sections and getattr(stored, part) is None:
            stored = stored.model_copy(update={part: parse_settings(sections[part], {})})
    if "objective" not in sections and stored.objective is not None:
        raise UsageError(
            "This model is trained with the terms of train_diffusion_v2.py; continue it with that script "
            "(for the squared error alone: --perceptual-weight 0 --no-gan)."
        )
    return stored


def to_json(config: BaseModel) -> str:
    return json.dumps(config.model_dump(mode="json"), indent=2) + "\n"


def from_json(text: str, source: Path | str) -> RunConfig:
    """Reads a `config.json`. Raises UsageError that names the file, the key and the rule."""
    try:
        raw = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{source} is not valid JSON: {error}.") from None
    return from_dict(raw, source)


def from_dict(raw: Any, source: Path | str) -> RunConfig:
    """Checks a configuration that came from a file. Raises UsageError that names the file, the key and the rule."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        wrong = [f"{_place(e)}: {e['msg']}" for e in error.errors()[:4]]
        raise UsageError(f"{source} is not a configuration of this toolkit: {'; '.join(wrong)}.") from None


def _place(fault: Any) -> str:
    """The key in a file, as a person would write it: without the tag that tells the methods apart."""
    loc = (*fault["loc"], "method") if fault["type"] == "method" else fault["loc"]
    return ".".join(str(p) for n, p in enumerate(loc) if n != 1 or p not in METHOD_CONFIGS) or "the whole"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a valid number in JSON")
