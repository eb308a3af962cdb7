"""`python -m Project7` is `project7`."""

import sys

from Project7.cli import main

sys.exit(main())
