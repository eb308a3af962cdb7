"""`python -m Project7` is `project7`; so is `python PATH/TO/Project7`, from any folder and uninstalled."""

import sys
from pathlib import Path

if not __package__:  # run by its path: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import errors

errors.check_requirements()

from Project7.cli import main

if __name__ == "__main__":
    sys.exit(main())
