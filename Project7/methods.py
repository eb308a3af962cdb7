"""The methods of the toolkit, and how one is built from its configuration."""

from torch import nn

from Project7.config import DiffusionConfig
from Project7.diffusion_model import DiffusionColorizer

METHODS = {"diffusion": DiffusionColorizer}


def build(config: DiffusionConfig) -> nn.Module:
    """A fresh, untrained model of `config.method`."""
    return METHODS[config.method](config)
