"""A person at a real terminal: starts a training script, reads its questions, types answers.

The scripts run in processes of their own, which are forked from one that has imported torch and the toolkit already
(multiprocessing's forkserver): starting a script anew takes seconds, most of them for imports.
"""

import fcntl
import io
import multiprocessing
import os
import pty
import runpy
import struct
import sys
import termios
import time
from multiprocessing.reduction import DupFd
from pathlib import Path

from pexpect.fdpexpect import fdspawn

ENTER = "\r"
CLEAR_LINE = "\x15"  # Ctrl-U
ROWS, COLUMNS = 50, 240
ENVIRONMENT = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
FORKS = multiprocessing.get_context("forkserver")
TOOLKIT = ["dataset", "diffusion_model", "prompts", "recipe", "report", "resume", "samplers", "trainer"]
IMPORTED_WHERE_NEEDED = [
    "diffusers.models.unets.unet_2d",
    "diffusers.schedulers.scheduling_ddpm",
    "diffusers.schedulers.scheduling_dpmsolver_multistep",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "torchvision",
]
FORKS.set_forkserver_preload([*(f"Project7.{name}" for name in TOOLKIT), *IMPORTED_WHERE_NEEDED])


class Terminal(fdspawn):
    """A terminal in which a script runs; what it has shown is in `.logfile_read`, and after `close` its exit code in
    `.exitstatus`."""

    def __init__(self, *command: str, **environment: str):
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        forkable = _Script(its, command, os.environ | ENVIRONMENT | environment, os.getcwd())
        self.process = FORKS.Process(target=forkable, daemon=True)
        self.process.start()
        os.close(its)
        super().__init__(mine, encoding="utf-8", timeout=120)
        self.logfile_read = io.StringIO()

    def send(self, text: str) -> int:
        time.sleep(0.05)  # as long as pexpect.spawn waits: the program may be changing the terminal's mode
        return super().send(text)

    def close(self) -> None:
        super().close()  # a script that still runs gets SIGHUP
        self.process.join(60)
        self.exitstatus = self.process.exitcode


class _Script:
    """Runs a script with a pseudo-terminal as its controlling terminal, in a forked process."""

    def __init__(self, its: int, command: tuple[str, ...], environment: dict[str, str], cwd: str):
        self.its, self.command, self.environment, self.cwd = its, command, environment, cwd

    def __getstate__(self):
        return self.__dict__ | {"its": DupFd(self.its)}

    def __call__(self) -> None:
        its = self.its.detach()
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)
        for standard in range(3):
            os.dup2(its, standard)
        os.close(its)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.cwd)
        sys.argv = list(self.command)
        runpy.run_path(self.command[0], run_name="__main__")


def open_terminal(script: Path, models: Path, *flags: object, **environment: str) -> Terminal:
    return Terminal(str(script), "--models-dir", str(models), *map(str, flags), **environment)


def answer(child, question, *typed):
    """Waits for a question and types its answer, after pairs of a bad answer and the expected refusal of it."""
    child.expect_exact(question)
    for bad, said in typed[:-1]:
        child.send(bad + ENTER)
        child.expect_exact(said)
        child.send(CLEAR_LINE)
    child.send(typed[-1] + ENTER)
