"""One process of several, as torchrun starts them: which one this is, and its share of the work. No torch here."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

from Project7.errors import ProjectError, UsageError

T = TypeVar("T")

# How long a process waits for another that no longer answers because its machine or its network has failed. If a
# process ends, the others are told at once.
PATIENCE = timedelta(minutes=10)


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


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """In a worker process: Ctrl-C and SIGTERM reach the whole group, and the parent alone decides what they mean. It
    would otherwise find its workers dead before it has saved. worker: its number, which torch passes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def reaching_the_others(cure: str) -> Iterator[None]:
    """Raises ProjectError, with the `cure`, if the block failed because another process cannot be reached."""
    try:
        yield
    except RuntimeError as error:
        if not several_processes():
            raise
        from torch.distributed import DistError  # torch is already loaded if there is such an error

        if "gloo" not in str(error).lower() and not isinstance(error, DistError):
            raise
        reason = str(error).split("] ", 1)[-1].split(". ")[0][:200]  # without the place in the library's source
        raise ProjectError(f"The other processes of this run cannot be reached ({reason}); {cure}.") from error


def check_launch() -> None:
    """Raises UsageError if `accelerate launch` was asked for several processes and has started only one.

    That is what it does without a GPU: it leaves the others to MPI. Each machine would then train a model of its own,
    with a smaller batch than was asked for.
    """
    environment = os.environ
    if "ACCELERATE_USE_CPU" in environment and "MASTER_PORT" in environment and "RANK" not in environment:
        raise UsageError(
            "accelerate launch was asked for several processes and has started only this one, as it does without a "
            "GPU; start with torchrun --nproc_per_node N instead, or with accelerate launch --multi_gpu."
        )
