"""How a program of this toolkit starts and ends: errors become one clear sentence and an exit code, not a traceback.

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
from types import FrameType
from typing import Any

from Project7.errors import ProjectError, UsageError, printable, sentence

_ECHO_SECONDS = 0.3  # torchrun repeats the Ctrl-C that its processes have already received from the terminal


# The packages that every program needs, by their import names; requirements.txt has the versions.
_NEEDED = ("numpy", "PIL", "pydantic", "rich", "questionary", "filelock", "torch", "torchvision", "diffusers", "timm")
_WITH_ONNXRUNTIME = _NEEDED[:4]  # what `project7 colorize` needs instead, of a model that was exported


def begin(name: str, *, without_torch: bool = False) -> None:
    """Comes before all other imports of a script. name: the script's `__name__`; without_torch: whether it can do
    something with onnxruntime where there is no torch.

    Until `run` there is nothing to clean up, so Ctrl-C ends the program at once, without a traceback from an import. If
    this Python lacks what is needed, because the wrong interpreter was called, one sentence says so.
    """
    if name == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    needed = _WITH_ONNXRUNTIME if without_torch and not has("torch") and has("onnxruntime") else _NEEDED
    missing = [name for name in needed if not has(name)]
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


def has(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    return importlib.util.find_spec(package) is not None


def run(main: Callable[[], int | None]) -> int:
    """Calls `main` and turns whatever it raises into an exit code and at most one sentence on stderr.

    SIGTERM unwinds like Ctrl-C, so that `finally` blocks remove their temporary files. PROJECT7_TRACEBACK=1
    shows an unexpected error with its traceback, for a bug report.
    """
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell sets it to be ignored for background jobs
        signal.signal(signal.SIGINT, _leave)
    sys.unraisablehook = _leave_from_anywhere
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name that this terminal cannot display is not an error
    try:
        code = main() or 0
        if sys.stdout:
            sys.stdout.flush()  # here, so that a closed pipe is still caught below
        return code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the rest of the program
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `project7 models | head`: the reader has closed the pipe, which is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ProjectError, OSError) as error:
        print(f"Error: {printable(sentence(error))}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except Exception as error:
        if os.environ.get("PROJECT7_TRACEBACK"):
            raise
        if isinstance(error, ModuleNotFoundError) and not (error.name or "Project7").startswith("Project7"):
            print(f"Error: this needs {error.name}, which is not installed: pip install project7", file=sys.stderr)
            return UsageError.exit_code
        hint = "this is a fault of the program; PROJECT7_TRACEBACK=1 shows where"
        print(f"Error: {printable(sentence(error))} ({hint})", file=sys.stderr)
        return 1


def _leave(signum: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C and SIGTERM. During an import it exits at once: libraries swallow what is raised there, or
    abort."""
    if _importing(frame):
        if signum == signal.SIGINT:
            os.write(2, b"\nStopped.\n")
        os._exit(128 + signum)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)


def _importing(frame: FrameType | None) -> bool:
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave_from_anywhere(unraisable: Any) -> None:
    """Ends the program even if the request arrives in a finalizer or a callback, where Python drops exceptions."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt | SystemExit):
        os._exit(130 if isinstance(error, KeyboardInterrupt) else int(error.code or 0))
    sys.__unraisablehook__(unraisable)


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a polite request, so that a training step can finish and be saved.

    The second Ctrl-C ends the program at once: files are replaced whole or not at all, so nothing is damaged.

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
