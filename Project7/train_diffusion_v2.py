#!/usr/bin/env python
"""Recipe: the diffusion colorizer with a VGG16 perceptual term and, if wanted, a PatchGAN discriminator.

python Project7/train_diffusion_v2.py                                 asks what it needs
python Project7/train_diffusion_v2.py --resume m                      adds the terms to a model trained without them
python Project7/train_diffusion_v2.py --strategy two-stage --name m --data PATH --yes     squared error first
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program

program.begin(__name__)

from Project7 import recipe
from Project7.config import SECTIONS
from Project7.training_config import ObjectiveConfig


def main(argv: list[str] | None = None) -> int:
    sections = SECTIONS | {"objective": ObjectiveConfig}
    return recipe.main(
        recipe.Recipe("Project7/train_diffusion_v2.py", __doc__.splitlines()[0], sections, stages=True), argv
    )


if __name__ == "__main__":
    sys.exit(program.run(main))
