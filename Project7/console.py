"""Printing in which names and other data never act as markup, or as commands to the terminal."""

import sys
from typing import Any, TextIO

from rich.console import Console, RenderHook
from rich.text import Text

from Project7.errors import printable


def make_console(*, stderr: bool = False, quiet: bool = False, width: int | None = None, wrap: bool = True) -> Console:
    """A console of rich that prints text unchanged, without live bars or colours if the output is not a terminal.

    width: in columns; None for the terminal's. wrap: whether rich rather than the terminal breaks long lines.
    """
    stream = sys.stderr if stderr else sys.stdout
    live = None if stream and stream.isatty() else False  # FORCE_COLOR is not meant for files
    console = Console(
        stderr=stderr, quiet=quiet, width=width, soft_wrap=not wrap, force_terminal=live, markup=False, highlight=False,
        emoji=False,
    )  # fmt: skip
    console.push_render_hook(PrintableText())
    return console


class PrintableText(RenderHook):
    """Replaces control characters by visible symbols."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        for shown in renderables:
            if isinstance(shown, Text):
                shown.plain = printable(shown.plain)  # the same length, so that styles stay in place
        return renderables


def say(text: str, *, file: TextIO | None = None) -> None:
    """Prints one line and flushes it, so that a pipe gets it at once."""
    print(one_line(text), file=file, flush=True)


def one_line(text: str) -> str:
    """Printable text without line breaks, because a file name may contain one."""
    return printable(text).replace("\n", "␊")
