"""How a program of this toolkit ends: one clear sentence and an exit code, never a traceback.

| code | meaning                                              |
| ---- | ---------------------------------------------------- |
| 0    | done                                                 |
| 1    | the work failed (a file, the disk, the numbers)      |
| 2    | the request cannot be carried out as it was written  |
| 130  | Ctrl-C                                               |
| 143  | SIGTERM                                              |
"""

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

_ECHO_SECONDS = 0.3  # torchrun passes on the Ctrl-C that its processes have had from the terminal already


# What every program needs, by the names that are imported; requirements.txt has the versions.
_NEEDED = ("numpy", "PIL", "pydantic", "rich", "questionary", "filelock", "torch", "torchvision", "diffusers", "timm")


class ProjectError(Exception):
    """Something a person can mend. The message names the value, the rule and the cure, in one sentence."""

    exit_code = 1


class UsageError(ProjectError):
    """The request itself is wrong: an unknown name, a value out of bounds, a missing answer."""

    exit_code = 2


def check_requirements() -> None:
    """Ends the program with one sentence where this Python has not what is needed: the wrong interpreter was called."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return
    root = Path(__file__).resolve().parent.parent
    ready = root / ".venv" / "bin" / "python"
    other = f"use {ready}, which has them, or " if ready.exists() else ""
    print(
        f"Error: this Python ({sys.executable}) lacks {', '.join(missing)}; {other}install what is needed with: "
        f"{sys.executable} -m pip install -r {root / 'requirements.txt'}",
        file=sys.stderr,
    )
    sys.exit(UsageError.exit_code)


def sentence(error: BaseException) -> str:
    """A library's exception as one line for a person, without its type's module or line breaks."""
    if isinstance(error, ProjectError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    if "operator torchvision::" in text:
        return (
            "torch and torchvision do not fit together; install a matching pair from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def run(main: Callable[[], int | None]) -> int:
    """Calls `main` and turns whatever leaves it into an exit code and at most one sentence on stderr.

    SIGTERM unwinds like Ctrl-C, so that `finally` blocks remove their temporary files. PROJECT7_TRACEBACK=1
    lets an unexpected error through with its traceback, for a bug report.
    """
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name that this terminal cannot write is no error
    try:
        code = main() or 0
        if sys.stdout:
            sys.stdout.flush()  # here, where a reader that has left can still be met
        return code
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `project7 models | head`: the reader has left, and that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ProjectError, OSError) as error:
        print(f"Error: {sentence(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except Exception as error:
        if os.environ.get("PROJECT7_TRACEBACK"):
            raise
        hint = "this is a fault of the program; PROJECT7_TRACEBACK=1 shows where"
        print(f"Error: {sentence(error)} ({hint})", file=sys.stderr)
        return 1


def _terminate(signum, frame):
    raise SystemExit(128 + signum)


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a polite request, so that a training step can finish and be saved.

    The second Ctrl-C leaves at once: files are replaced whole or not at all, so nothing is damaged.

    >>> with StopSignals() as stop:
    ...     for progress in run:
    ...         if stop.requested: break
    """

    def __init__(self):
        self.requested: int | None = None  # the signal's number

    def __enter__(self):
        self._before = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _request(self, signum, frame):
        if self.requested is None:
            self.requested, self._when = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._when > _ECHO_SECONDS:
            raise KeyboardInterrupt

    @property
    def exit_code(self) -> int:
        return 128 + self.requested if self.requested else 0
