#!/usr/bin/env python
"""Recipe: the classification generator, which answers with one of 313 colours for each pixel (Zhang et al. 2016).

python Project7/train_classification.py                               asks what it needs
python Project7/train_classification.py --name m --data PATH --yes    asks nothing; the palette is fitted first
python Project7/train_classification.py --resume m                    continues where it stopped
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program

program.begin(__name__)

from Project7 import recipe
from Project7.config import SECTIONS
from Project7.model_config import ClassificationConfig
from Project7.settings import with_defaults
from Project7.training_config import ObjectiveConfig

# No perceptual term unless it is asked for. A discriminator, if wanted, has three scales and feature matching.
_OBJECTIVE = with_defaults(
    ObjectiveConfig,
    hide=("mse_weight", "perceptual_weight"),
    perceptual_weight=0.0,
    image_share=1.0,
    gan_scales=3,
    feature_matching_weight=0.1,
)


def main(argv: list[str] | None = None) -> int:
    sections = SECTIONS | {"model": ClassificationConfig, "objective": _OBJECTIVE}
    return recipe.main(recipe.Recipe("Project7/train_classification.py", __doc__.splitlines()[0], sections), argv)


if __name__ == "__main__":
    sys.exit(program.run(main))
