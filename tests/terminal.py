"""A person at a real terminal: starts a training script, reads its questions, types answers."""

import io
import os
import sys

import pexpect

ENTER = "\r"
CLEAR_LINE = "\x15"  # Ctrl-U


def open_terminal(script, models, *flags):
    """A terminal running a command; what it has shown is in `.logfile_read`."""
    child = pexpect.spawn(
        sys.executable,
        [str(script), "--models-dir", str(models), *map(str, flags)],
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        timeout=120,
        dimensions=(50, 240),
    )
    child.logfile_read = io.StringIO()
    return child


def answer(child, question, *typed):
    """Waits for a question and types its answer, after pairs of a bad answer and the expected refusal of it."""
    child.expect_exact(question)
    for bad, said in typed[:-1]:
        child.send(bad + ENTER)
        child.expect_exact(said)
        child.send(CLEAR_LINE)
    child.send(typed[-1] + ENTER)
