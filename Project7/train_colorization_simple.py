#!/usr/bin/env python
"""Recipe: direct regression from L to ab, with one of the three losses of losses.py.

python Project7/train_colorization_simple.py                                         asks what it needs
python Project7/train_colorization_simple.py --loss weighted --name m --data PATH --yes     no other network is needed
python Project7/train_colorization_simple.py --loss enhanced --preset vibrant ...    against sepia and purple
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
            "Project7/train_colorization_simple.py", __doc__.splitlines()[0], loss="simple", outputs="ab"
        ),
        argv,
    )


if __name__ == "__main__":
    sys.exit(program.run(main))
