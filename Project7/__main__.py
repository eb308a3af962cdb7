"""`project7`, also as `python -m Project7`; so is `python PATH/TO/Project7`, from any folder and uninstalled."""

import sys
from pathlib import Path

if not __package__:  # run by its path: this folder holds modules, the one above it holds the package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from Project7 import program

program.begin("__main__", without_torch=True)

from Project7.cli import main

if __name__ == "__main__":
    sys.exit(main())
