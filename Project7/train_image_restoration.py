#!/usr/bin/env python
"""Recipe: photo restoration by direct regression to all of Lab with the enhanced loss; faded photos become clear again.

python Project7/train_image_restoration.py                                    asks what it needs
python Project7/train_image_restoration.py --name m --data PATH --fade 0.7 --yes     for strongly faded photos
"""

import sys
from pathlib import Path

if not __package__:  # run as a script: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program

program.begin(__name__)

from Project7 import recipe


def main(argv: list[str] | None = None) -> int:
    return recipe.main(
        recipe.regression(
            "Project7/train_image_restoration.py", __doc__.splitlines()[0], loss="enhanced", outputs="lab"
        ),
        argv,
    )


if __name__ == "__main__":
    sys.exit(program.run(main))
