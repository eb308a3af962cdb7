"""What is printed: names and other data never act as markup, or as commands to the terminal."""

import sys
from typing import Any, TextIO

from rich.console import Console, RenderHook
from rich.text import Text

from Project7.errors import printable


def make_console(*, stderr: bool = False, quiet: bool = False, width: int | None = None, wrap: bool = True) -> Console:
    """A console of rich that prints text as it is, without live bars or colours where the output is no terminal.

    width: in columns; None for that of the terminal. wrap: whether rich breaks long lines, not the terminal.
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
    """Shows control characters as pictures of them."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        for shown in renderables:
            if isinstance(shown, Text):
                shown.plain = printable(shown.plain)  # of the same length: styles stay where they are
        return renderables


def say(text: str, *, file: TextIO | None = None) -> None:
    """Prints one line at once, for a pipe as for a person."""
    print(one_line(text), file=file, flush=True)


def one_line(text: str) -> str:
    """Printable, and without line breaks: a name of a file may hold one."""
    return printable(text).replace("\n", "␊")
