"""One thread a process, so that pytest-xdist's workers do not fight for the cores and sums keep their order.

By the environment: torch reads it when it is first imported, and the programs that tests start inherit it.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
