"""The methods of the toolkit, and building a model of one from its configuration."""

from typing import Any

from Project7.classification_model import ClassificationColorizer
from Project7.diffusion_model import DiffusionColorizer
from Project7.model_config import MethodConfig
from Project7.regression_model import RegressionColorizer

Method = DiffusionColorizer | ClassificationColorizer | RegressionColorizer
METHODS: dict[str, Any] = {  # name -> class
    "diffusion": DiffusionColorizer,
    "classification": ClassificationColorizer,
    "regression": RegressionColorizer,
}


def build_model(config: MethodConfig) -> Method:
    """A fresh, untrained model of `config.method`."""
    return METHODS[config.method](config)
