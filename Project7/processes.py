"""Training with several processes: which one this is, what it may use, and starting those that a launcher left out. No
torch here."""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")


def is_main_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def own_share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of the items: every N-th of them for N processes, so that each item has exactly one."""
    return items[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]


def usable_cpus() -> int:
    """The number of processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cpus() -> int:
    """The processors per process: a launcher may have started several processes on this machine."""
    return max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def start_missing_processes() -> None:
    """Makes `accelerate launch --num_processes N` mean N processes where there is no GPU.

    Without a GPU, accelerate's launcher starts a single process whatever N is (it leaves the others to MPI), which
    would train with a smaller batch than was asked for. That process then becomes torchrun, which starts all of them.
    """
    if "MASTER_PORT" not in os.environ or "RANK" in os.environ or "OMPI_COMM_WORLD_RANK" in os.environ:
        return
    wanted = _launched_with()
    if wanted < 2 or _has_cuda():
        return
    os.environ.pop("MASTER_PORT")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(wanted)]
    os.execv(sys.executable, [*launcher, *sys.argv])


def _launched_with() -> int:
    """The --num_processes of the `accelerate launch` that started this process; 1 if none did."""
    import psutil  # comes with accelerate

    parent = psutil.Process().parent()
    words = parent.cmdline() if parent else []
    words = [part for word in words for part in word.split("=", 1)]
    for flag, value in pairwise(words):
        if flag in ("--num_processes", "--num-processes") and value.isdecimal():
            return int(value)
    return 1


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
