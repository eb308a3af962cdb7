"""One thread a process, so that pytest-xdist's workers do not fight for the cores and sums keep their order.

By the environment: torch reads it when it is first imported, and the programs that tests start inherit it.
"""

import os
import socket

import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and nothing in torch's cache of downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    with socket.socket() as nobody:  # a port that is taken and not listened to: connections are refused
        nobody.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield
