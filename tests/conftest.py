"""One thread a process, so that pytest-xdist's workers do not fight for the cores and sums keep their order.

By the environment: torch reads it when it is first imported, and the programs that tests start inherit it.
"""

import contextlib
import io
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # every program that a test starts would compile the toolkit anew
sys.dont_write_bytecode = False
os.fsync = lambda descriptor: None  # no test pulls the plug, and waiting for the disk takes a tenth of the time


class Done(NamedTuple):
    """The outcome of a program, with the fields of subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


def call(main: Callable[[list[str]], int | None], *arguments: object) -> Done:
    """Runs a program of the toolkit in this process, without a terminal: torch is imported once for all tests."""
    from Project7 import program

    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = program.run(lambda: main([str(argument) for argument in arguments]))
            except SystemExit as end:  # of --help
                code = int(end.code or 0)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if accelerate := sys.modules.get("accelerate.state"):  # a process of its own would leave no precision behind
            accelerate.AcceleratorState._reset_state(reset_partial_state=True)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """There is no network, and nothing in torch's cache of downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    # urllib keeps the proxies of its first call for the whole process, so those of this test are removed at its end.
    monkeypatch.setattr("urllib.request._opener", None)
    with socket.socket() as nobody:  # a bound port without a listener, which refuses connections
        nobody.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        forget_connections()
        yield
    forget_connections()


def forget_connections() -> None:
    """huggingface_hub keeps one client for the whole process, with the proxies that there were at its first call."""
    if hub := sys.modules.get("huggingface_hub.utils"):
        hub.close_session()


def save_untrained(folder: Path, kind: Any, size: int) -> dict[str, Any]:
    """folder/best_model.pth: a model with random weights and palette that was trained at `size`; its configuration."""
    import torch

    from Project7.checkpoints import save_checkpoint
    from Project7.config import RunConfig
    from Project7.methods import build_model
    from Project7.training_config import DataConfig

    torch.manual_seed(1)
    model = build_model(kind)
    for part in (model, getattr(model, "head", None)):
        if hasattr(part, "centres"):
            part.centres.normal_(0, 30)
    config = RunConfig(model=kind, data=DataConfig(image_size=size)).model_dump(mode="json")
    folder.mkdir(parents=True)
    save_checkpoint(folder / "best_model.pth", {"model_state_dict": model.state_dict(), "config": config})
    return config
