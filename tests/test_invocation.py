"""invocation.py: printed commands can be pasted."""

import sys
from pathlib import Path

import pytest

from Project7 import invocation

PACKAGE = Path(invocation.__file__).parent


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A virtual environment called `my env` whose interpreter is running; nothing is on the PATH."""
    (tmp_path / "my env").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_program(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_an_activated_environment_has_the_command(place, monkeypatch):
    make_program(place / "my env" / "project7")
    monkeypatch.setenv("PATH", str(place / "my env"))
    assert invocation.command() == "project7"


def test_one_that_is_not_activated_has_its_path_and_another_ones_command_is_not_meant(place, monkeypatch):
    make_program(place / "my env" / "project7")
    assert invocation.command() == "'my env/project7'"
    (place / "other").mkdir()
    make_program(place / "other" / "project7")
    monkeypatch.setenv("PATH", str(place / "other"))
    assert invocation.command() == "'my env/project7'"


def test_without_an_installation_python_runs_the_package(place, monkeypatch):
    python = "'my env/python'"
    assert invocation.command().startswith(f"{python} ")
    assert invocation.command().endswith("Project7")
    monkeypatch.chdir(PACKAGE.parent)
    assert invocation.command().endswith(" -m Project7")
    make_program(place / "my env" / "python")
    monkeypatch.setenv("PATH", str(place / "my env"))
    assert invocation.command() == "python -m Project7"
