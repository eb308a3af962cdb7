"""benchmarks/fuzz.py and soak.py in short: damaged files for every reader, and a training that is killed at random."""

import importlib.util
import sys
from pathlib import Path

import pytest
from conftest import call

ROOT = Path(__file__).resolve().parent.parent


def benchmark(name, monkeypatch, *arguments):
    """A script of benchmarks/, run in this process."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script puts its own folder's parent first
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return module, lambda: call(lambda _: module.main())


def test_damaged_files_are_read_or_refused(monkeypatch):
    _, run = benchmark("fuzz", monkeypatch, "--images", "160", "--checkpoints", "24", "--json", "60")
    done = run()
    assert done.returncode == 0, done.stdout
    counts = [line for line in done.stdout.splitlines() if "refused" in line]
    assert len(counts) == 3
    assert all("accepted" in line for line in counts), "the mutations are not so coarse that nothing passes"


def test_a_fault_is_found(monkeypatch):
    """The fuzzer notices faults: another error, an endless wait, an empty sentence."""
    module, _ = benchmark("fuzz", monkeypatch)
    assert module.tried(lambda content: None, b"") == "accepted"
    assert module.tried(lambda content: 1 / 0, b"").startswith("fault: ZeroDivisionError")
    monkeypatch.setattr(module, "SLOW", -1.0)
    assert module.tried(lambda content: None, b"").startswith("fault")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_at_random_ends_like_one_that_is_not(monkeypatch):
    module, run = benchmark("soak", monkeypatch, "--kills", "3")
    monkeypatch.setattr(module, "CASES", [("train_diffusion_v2", 0, 1)])
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills, nothing lost" in done.stdout
