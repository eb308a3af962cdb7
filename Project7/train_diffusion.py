#!/usr/bin/env python
"""Recipe: the diffusion colorizer, trained with the mean squared error of its prediction alone (Ho et al. 2020).

python Project7/train_diffusion.py                                    asks what it needs
python Project7/train_diffusion.py --name m --data PATH --yes         asks nothing
python Project7/train_diffusion.py --resume m                         continues where it stopped
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program

program.begin(__name__)

from Project7 import recipe
from Project7.config import SECTIONS


def main(argv: list[str] | None = None) -> int:
    return recipe.main(recipe.Recipe("Project7/train_diffusion.py", __doc__.splitlines()[0], SECTIONS), argv)


if __name__ == "__main__":
    sys.exit(program.run(main))
