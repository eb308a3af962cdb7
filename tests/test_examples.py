"""The examples: what they call exists, and the notebook runs from top to bottom."""

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import call

from Project7 import train_diffusion

ROOT = Path(__file__).resolve().parent.parent
SLURM = ROOT / "examples" / "slurm" / "train.sbatch"
SKYPILOT = ROOT / "examples" / "skypilot" / "train.yaml"


@pytest.fixture(scope="module")
def flags() -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", call(train_diffusion.main, "--help").stdout))


def flags_of_the_script(text: str) -> set[str]:
    """The flags of the script, without those of torchrun, which have underscores or precede the script."""
    script = text.index("Project7/train_diffusion.py")
    launcher = text[text.rindex("torchrun ", 0, script) : script]
    lines = [line for line in text.replace(launcher, "").splitlines() if not line.lstrip().startswith("#")]
    return set(re.findall(r"(?<!\w)--[a-z][a-z-]+", "\n".join(lines)))


@pytest.mark.parametrize("path", [SLURM, SKYPILOT], ids=["slurm", "skypilot"])
def test_a_job_gives_the_training_script_flags_that_it_has(path, flags):
    given = flags_of_the_script(path.read_text(encoding="utf-8"))
    assert {"--name", "--resume", "--data", "--yes"} <= given
    assert given <= flags


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_slurm_job_begins_a_run_and_then_goes_on_with_it(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {"scontrol": "echo node7; echo node8", "srun": 'printf "%s\\n" "$@"'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    of_slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "42"}

    def submit(**environment: str) -> list[str]:
        environment = {"PATH": path} | of_slurm | environment
        done = subprocess.run(["bash", SLURM], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]

    first = submit(DATA="/my photos")
    assert first[first.index("--data") + 1] == "/my photos"
    assert first[first.index("--rdzv_endpoint") + 1] == "node7:29500"
    assert "DATA names the photos" in submit()[0]
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "last_model.pth").touch()
    assert submit()[-3:] == ["--resume", "mine", "--yes"]


def test_ray_is_asked_for_pictures_by_calls_that_exist():
    """Ray itself is not part of the development setup; its example was run by hand, see benchmarks/RESULTS.md."""
    tree = ast.parse((ROOT / "examples" / "ray_colorize.py").read_text(encoding="utf-8"))
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("Project7")]
    assert len(ours) == 3
    for node in ours:
        module = __import__(node.module, fromlist=["x"])
        assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs the packages of the extra dev")
    nbclient = pytest.importorskip("nbclient", reason="needs the packages of the extra dev")
    pytest.importorskip("ipykernel", reason="needs the packages of the extra dev")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [any("image/png" in out.get("data", {}) for out in cell.outputs) for cell in code]
    assert pictures == [True, True, True, True, False]
