#!/usr/bin/env python
"""Is this checkout ready to be released? Builds the wheel and the source archive, and tries the wheel.

python benchmarks/release_check.py          (`make release-check` installs what it needs)

The version must be the newest section of CHANGELOG.md and that of CITATION.cff; `twine check` must find nothing; the
wheel must stay below 60 MB. It is then installed without its dependencies into an empty environment that borrows them
from this one, and must colour a built-in photo from a folder that is not the checkout.
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from Project7 import __version__, program
from Project7.errors import ProjectError
from Project7.photo_source import sample_photos

MOST = 60e6  # bytes of the wheel


def main() -> int:
    check_version()
    with tempfile.TemporaryDirectory() as place:
        files = build(Path(place) / "dist")
        run(sys.executable, "-m", "twine", "check", "--strict", *files)
        (wheel,) = (path for path in files if path.suffix == ".whl")
        if wheel.stat().st_size > MOST:
            raise ProjectError(
                f"{wheel.name} has {wheel.stat().st_size / 1e6:.0f} MB, and {MOST / 1e6:.0f} are allowed."
            )
        with zipfile.ZipFile(wheel) as archive:
            strangers = [name for name in archive.namelist() if not name.startswith(("Project7/", "project7-"))]
        if strangers:
            raise ProjectError(f"{wheel.name} holds {strangers[0]}, which is not part of the package.")
        try_wheel(wheel, Path(place))
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB; it installs, and colours a photo.")
    return 0


def check_version() -> None:
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    for found, where in ((newest, "the newest section of CHANGELOG.md"), (cited, "CITATION.cff")):
        if not found or found[1] != __version__:
            raise ProjectError(
                f"{where} says {found[1] if found else 'nothing'}, and Project7/__init__.py {__version__}; "
                "give all three the version that is to be released."
            )


def build(folder: Path) -> list[Path]:
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return sorted(folder.iterdir())


def try_wheel(wheel: Path, place: Path) -> None:
    python = place / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    venv.create(place / "venv", with_pip=True)
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel)
    borrowed = os.pathsep.join(path for path in sys.path[1:] if path.endswith("-packages"))
    photo = next(iter(sample_photos().values()))
    colorize = ("-m", "Project7", "colorize", photo, "--fast", "--output", place / "out")
    run(python, *colorize, PYTHONPATH=borrowed, cwd=place)
    if not list((place / "out").iterdir()):
        raise ProjectError("The installed package coloured nothing.")


def run(*command: object, cwd: Path | None = None, **environment: str) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ProjectError(f"{' '.join(map(str, command[:4]))} ...: {(done.stderr or done.stdout).strip()[-600:]}")


if __name__ == "__main__":
    sys.exit(program.run(main))
