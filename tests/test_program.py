"""program.py: every program starts quietly, and ends with one sentence and the right exit code."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from Project7 import program
from Project7.errors import ProjectError, UsageError
from Project7.program import StopSignals, run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_signal_handlers():
    """`run` replaces the handler of SIGTERM for good; pytest gets its own handlers back."""
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def start(code: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONUNBUFFERED", None)  # it would hide output that is still in the buffer at the end
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **options)


def raising(error: BaseException):
    def main():
        raise error

    return main


# -- run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (130, 130)])
def test_what_main_returns_is_the_exit_code(returned, code, capsys):
    assert run(lambda: returned) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("--steps 0 is below 1; use 20."), 2, "Error: --steps 0 is below 1; use 20.\n"),
        (ProjectError("The disk is full."), 1, "Error: The disk is full.\n"),
        (FileNotFoundError(2, "No such file", "photo.png"), 1, "Error: No such file: photo.png\n"),
        (OSError("no number, no name"), 1, "Error: OSError: no number, no name\n"),
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
    ],
)
def test_a_known_error_is_one_sentence_and_a_code(error, code, said, capsys):
    assert run(raising(error)) == code
    assert capsys.readouterr() == ("", said)


def test_an_unexpected_error_is_one_line_without_a_traceback(capsys, monkeypatch):
    monkeypatch.delenv("PROJECT7_TRACEBACK", raising=False)
    assert run(raising(ValueError("first line\n   second line"))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ValueError: first line second line (")
    assert "PROJECT7_TRACEBACK=1" in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_project7_traceback_lets_an_unexpected_error_through(monkeypatch, capsys):
    monkeypatch.setenv("PROJECT7_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
    assert run(raising(UsageError("known all the same"))) == 2
    assert capsys.readouterr().err == "Error: known all the same\n"


def test_sigterm_ends_with_143_and_the_finally_blocks_run():
    code = """
import signal, sys
from Project7.program import run
def main():
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        print("cleaned up", flush=True)
sys.exit(run(main))
"""
    with start(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "cleaned up\n", "")


IMPORTS = """
import sys
from Project7.program import run
def main():
    import slow_to_import
sys.exit(run(main))
"""
FINALIZES = """
import sys, time
from Project7.program import run
class Slow:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
def main():
    Slow()
    print("went on")
sys.exit(run(main))
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("script", [IMPORTS, FINALIZES], ids=["in an import", "in a finalizer"])
def test_a_signal_where_python_would_drop_it_ends_the_program(tmp_path, script, signum, code):
    swallows = "import time\ntry:\n    print('ready', flush=True); time.sleep(60)\nexcept BaseException: pass"
    (tmp_path / "slow_to_import.py").write_text(swallows)
    with start(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert err in ("", "\nStopped.\n")


def test_ctrl_c_before_a_script_has_begun_leaves_no_traceback(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    script = "from Project7 import program\nprogram.begin(__name__)\nimport slow_to_import"
    with start(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (-signal.SIGINT, "")  # a shell shows this as 130


def test_an_imported_script_leaves_ctrl_c_alone():
    before = signal.getsignal(signal.SIGINT)
    program.begin("Project7.train_diffusion")
    assert signal.getsignal(signal.SIGINT) is before


PRINTS = "import sys; from Project7.program import run; sys.exit(run(lambda: print({text})))"


@pytest.mark.parametrize("text", ["'one short line'", "'many lines\\n' * 100_000"], ids=["short", "long"])
def test_a_reader_that_has_left_is_no_error(text):
    reading, writing = os.pipe()
    os.close(reading)  # `project7 models | true`
    with start(PRINTS.format(text=text), stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_console_that_cannot_write_a_name_is_no_error(monkeypatch):
    """Many Windows machines use code page 1252."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    assert run(lambda: print("Köln 写真 \udce9.png")) == 0
    assert raw.getvalue() == "Köln ?? ?.png\n".encode("cp1252")


def test_a_closed_stdout_is_no_error():
    """`project7 models >&-`: Python then has no sys.stdout at all."""
    closed = f"import os; os.close(1); os.execv({sys.executable!r}, ['python', '-c', {PRINTS.format(text=1)!r}])"
    with start(closed, stderr=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


# -- StopSignals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_a_request(signum, code):
    with StopSignals() as stop:
        assert stop.requested is None
        assert stop.exit_code == 0
        signal.raise_signal(signum)
        assert stop.requested == signum
        assert stop.exit_code == code


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_request_leaves_at_once(first, monkeypatch):
    monkeypatch.setattr(program, "_ECHO_SECONDS", -1.0)
    with StopSignals() as stop:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.requested == first


def test_the_echo_of_a_launcher_is_no_second_ctrl_c(monkeypatch):
    monkeypatch.setattr(program, "_ECHO_SECONDS", 3600.0)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130


def test_a_second_sigterm_is_no_hurry():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.exit_code == 130


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_handlers_are_restored(error):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGINT) not in before
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_python_without_the_requirements_is_told_in_one_sentence(tmp_path):
    """A fresh interpreter without any packages is what a person has who has not activated the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for script in (["Project7/train_diffusion.py", "--help"], ["-m", "Project7", "models"], ["Project7", "models"]):
        result = subprocess.run(
            [sys.executable, "-S", *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 2
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert "lacks numpy, PIL, pydantic" in result.stderr
        assert "pip install -r" in result.stderr
