"""Progress of work that can be counted: what it reports, and the progress bar that shows it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Counting = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


@contextlib.contextmanager
def counting(console: Console) -> Iterator[Counting]:
    """A progress bar as a function (what, done, total). It is silent if the console is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    here = sys.stdout.isatty()  # else lines go to a file or pipe, and must not be redirected
    shown: dict[str, Any] = {"disable": not console.is_terminal, "redirect_stdout": here}
    with Progress(*columns, console=console, transient=True, **shown) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield progress


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 epoch, 2 epochs, 1,000 steps."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sized(count: int) -> str:
    """A size in bytes for people: 17.3 MB, 812 kB, 120 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return counted(count, "byte")
