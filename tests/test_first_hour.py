"""The first hour: the README from top to bottom, in a fresh clone and a real terminal, with every command as it is
printed. The output is kept beside the pictures, as walk.txt."""

import os
import re
import shutil
import site
import subprocess
import venv
from pathlib import Path

import numpy as np
import pexpect
import pytest
from PIL import Image

from Project7.photo_source import sample_photos

ROOT = Path(__file__).resolve().parent.parent
ENTER, CTRL_C, CLEAR_LINE = "\r", "\x03", "\x15"
# The flags that make a training small; everything else is as in the README.
SMALL = "--features 16,32 --time-dim 16 --image-size 32 --val-fraction 0.3 --epochs 1 --encoder none --device cpu"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a repository to clone"),
]


class Walk:
    """A person in a terminal of `columns` columns, in the folder of the clone."""

    def __init__(self, place: Path, columns: int):
        self.place, self.columns = place, columns
        python = place.parent / "venv" / "bin" / "python"
        venv.create(python.parent.parent, with_pip=False)
        program = python.with_name("project7")
        program.write_text(f"#!{python}\nimport sys\nfrom Project7.cli import main\nsys.exit(main())\n")
        program.chmod(0o755)
        paths = [str(place), *site.getsitepackages()]
        self.environment = os.environ | {
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",  # as after the activation
            "PYTHONPATH": os.pathsep.join(paths),
            "HOME": str(place.parent / "home"),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "BROWSER": "true",
            "PROJECT7_CACHE": str(place.parent / "cache"),
        }
        self.record = open(place.parent / "walk.txt", "w", encoding="utf-8")  # noqa: SIM115

    def begins(self, line: str) -> pexpect.spawn:
        self.record.write(f"\n$ {line}\n")
        child = pexpect.spawn(
            "/bin/sh",
            ["-c", line if "\n" in line else f"exec {line}"],
            cwd=self.place,
            env=self.environment,
            encoding="utf-8",
            timeout=300,
            dimensions=(45, self.columns),
        )
        child.logfile_read = self.record
        return child

    def ends(self, child: pexpect.spawn, code: int = 0) -> str:
        """What was shown last, without escape codes."""
        child.expect(pexpect.EOF)
        child.close()
        self.record.flush()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", child.before)
        assert child.exitstatus == code, shown
        assert "Traceback" not in shown
        return shown

    def runs(self, line: str, code: int = 0) -> str:
        return self.ends(self.begins(line), code)


@pytest.fixture(params=[80, 120])
def walk(request, tmp_path):
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "project7")], check=True)
    walk = Walk(tmp_path / "project7", request.param)
    pictures = {name: Image.open(path).convert("RGB") for name, path in sample_photos().items()}
    for folder, names in {"holiday": ["coffee", "rocket"], "scans": ["coffee"], "../home/photos": [*pictures]}.items():
        (walk.place / folder).mkdir(parents=True)
        for name in names:
            pictures[name].resize((320, 240)).save(walk.place / folder / f"{name}.jpg")
    pictures["astronaut"].convert("L").resize((256, 256)).save(walk.place / "photo.jpg", dpi=(300, 300))
    pictures["coffee"].save(walk.place / "postcard.jpg")
    pictures["rocket"].convert("L").save(walk.place / "original.tif")
    pictures["rocket"].resize((320, 214)).save(walk.place / "edited.png")
    yield walk
    walk.record.close()


def commands() -> list[str]:
    """The lines of the README's blocks that a person pastes, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for language, block in blocks if not language for line in block.splitlines()]
    return [line for line in lines if line.startswith(("project7 ", "python Project7/"))]


def test_the_readme_from_top_to_bottom(walk):
    lines = commands()
    assert {line.split()[1] for line in lines} >= {"colorize", "serve", "transfer", "evaluate", "compare"}
    for line in lines:
        if line == "python Project7/train_diffusion.py":
            asks_and_goes_back(walk)
        elif line.startswith("project7 serve"):
            serves(walk, line)
        elif "--name mine" in line:
            trains(walk, line)
        elif line.startswith("project7 compare"):
            shutil.copy(walk.place / "result.json", walk.place / "yesterday.json")
            assert "psnr" in walk.runs(line)
        else:
            shown = walk.runs(line)
            if line.startswith("project7 colorize"):
                assert re.search(r"\d coloured", shown), shown
    made = {path.relative_to(walk.place).as_posix() for path in walk.place.rglob("*.png")}
    assert {"outputs/photo.png", "coloured/holiday/coffee.png", "coloured/scans/coffee.png"} <= made
    assert {
        "outputs/photo-sheet.png",
        "outputs/photo-hints.png",
        "outputs/photo-hints-2.png",
        "out.png",
        "sheets/sheet.png",
    } <= made
    with Image.open(walk.place / "outputs" / "photo.png") as picture:
        assert [round(value) for value in picture.info["dpi"]] == [300, 300]
        assert np.ptp(np.asarray(picture)[..., :3].astype(int), axis=-1).mean() > 3
    python = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    walk.runs(f"python - <<'END'\n{python[1]}END")
    assert (walk.place / "colour.png").exists()
    models = walk.runs("project7 models").splitlines()
    assert max(map(len, models)) <= walk.columns + len("\r")


def asks_and_goes_back(walk: Walk) -> None:
    """A person sees the questions, types a wrong path, goes back, and says no at the end: nothing is left."""
    child = walk.begins(f"python Project7/train_diffusion.py {SMALL} --crops 20")
    child.expect_exact("Create new model")
    child.send(ENTER)
    child.expect_exact("Model name")
    child.send("first" + ENTER)
    for question, typed in (("Diffusion timesteps", "50"), ("Batch size", "4"), ("Learning rate", "<"), ("Batch", "8")):
        child.expect_exact(question)
        child.send(typed + ENTER)
    child.expect_exact("Learning rate")
    child.send(ENTER)
    child.expect_exact("Training images")
    child.send("no/such/folder" + ENTER)
    child.expect_exact("does not exist")
    child.send(CLEAR_LINE + "~/photos" + ENTER)
    child.expect_exact("an epoch takes about")
    child.expect_exact("Start? [Y/n]:")
    child.send("n" + ENTER)
    walk.ends(child)
    assert not (walk.place / "models" / "first").exists()


def trains(walk: Walk, line: str) -> None:
    """The training is stopped by Ctrl-C and continued by the command printed then; the photo is coloured by the one
    printed at the end."""
    child = walk.begins(f"{line} {SMALL.replace('--epochs 1', '--epochs 40')}")
    child.expect(r"step [1-9]\d*/\d+")
    child.send(CTRL_C)
    child.expect_exact("Go on with:")
    shown = walk.ends(child, code=130)
    again = next(line.strip() for line in shown.splitlines() if "--resume" in line)
    done = walk.runs(f"{again} --epochs 1 --replan --yes")
    printed = re.search(r"Colour a photo with it: (.*)", done.replace("\r\n", "\n"))[1]
    assert "1 coloured" in walk.runs(printed.replace("PHOTO", "photo.jpg"))


def serves(walk: Walk, line: str) -> None:
    child = walk.begins(f"{line} --port 0")
    child.expect(r"Project7 is at http://127.0.0.1:\d+")
    child.send(CTRL_C)
    child.expect(pexpect.EOF)
    child.close()
