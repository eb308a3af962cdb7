#!/usr/bin/env python
"""Whether this checkout can be published: builds the wheel and the sdist into dist/, and says all that is wrong.

The versions of the package, the changelog and the citation are the same, the metadata names an address, the wheel is
small enough, PyPI would show the description, and both archives install into a fresh environment and colour a photo
there. The environment's own packages are the dependencies of this one, so that torch is not downloaded again.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST = 60_000_000  # bytes of the wheel
SMOKE = """
import sys
from PIL import Image
from skimage import data
import Project7
assert Project7.__file__.startswith(sys.prefix), Project7.__file__
Image.fromarray(data.astronaut()[:128, :128]).convert("L").save("photo.png")
"""


def faults_of_source(root: Path) -> Iterator[str]:
    """What can be said before anything is built."""
    version = first(r'^__version__ = "(.+)"$', root / "Project7" / "__init__.py")
    newest, cited = first(r"^## (.+)$", root / "CHANGELOG.md"), first(r"^version: (.+)$", root / "CITATION.cff")
    if newest != version:
        yield f"The newest section of CHANGELOG.md is {newest!r}, and the version is {version}; make them the same."
    if cited != version:
        yield f"CITATION.cff has the version {cited}, and the package {version}; make them the same."
    with open(root / "pyproject.toml", "rb") as file:
        urls = tomllib.load(file)["project"].get("urls", {})
    if not any(address.startswith("https://") for address in urls.values()):
        yield "pyproject.toml has no [project.urls]; give the address of the repository there."
    if "REPOSITORY" in (root / "README.md").read_text(encoding="utf-8"):
        yield "README.md clones REPOSITORY; give its address there."


def first(pattern: str, path: Path) -> str | None:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return found and found[1]


def build(root: Path, to: Path) -> list[Path]:
    """Builds the sdist, and the wheel from it; returns both."""
    for old in to.glob("project7-*"):
        old.unlink()
    subprocess.run([sys.executable, "-m", "build", "--outdir", to, root], check=True, stdout=subprocess.DEVNULL)
    return sorted(to.glob("project7-*"))


def faults_of_archives(archives: list[Path]) -> Iterator[str]:
    for wheel in (archive for archive in archives if archive.suffix == ".whl"):
        if wheel.stat().st_size >= MOST:
            yield f"{wheel.name} has {wheel.stat().st_size:,} bytes, and {MOST:,} are the most; leave something out."
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives], stdout=subprocess.PIPE)
    if checked.returncode:
        yield f"twine refuses an archive:\n{checked.stdout.decode()}"


def smoke(archive: Path) -> None:
    """Installs an archive into a fresh environment and colours a photo there. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        python = Path(place) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        packages = sysconfig.get_path("purelib", vars={"base": place})
        ours = [path for path in sys.path if path.endswith("-packages")]  # on Debian dist-packages
        Path(packages, "dependencies.pth").write_text("\n".join(ours), encoding="utf-8")
        # PYTHONPATH may name the checkout, which must not be what is tried.
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for command in (
            ["-m", "pip", "install", "--quiet", "--no-deps", archive.resolve()],
            ["-c", SMOKE],
            ["-m", "Project7", "colorize", "photo.png", "--fast", "--device", "cpu"],
        ):
            subprocess.run([python, *command], check=True, cwd=place, env=alone)
        assert Path(place, "outputs", "photo.png").exists()


def main() -> int:
    faults = list(faults_of_source(ROOT))
    archives = build(ROOT, ROOT / "dist")
    faults += faults_of_archives(archives)
    for archive in archives:
        try:
            smoke(archive)
        except subprocess.CalledProcessError as error:
            faults.append(f"{archive.name} does not work when it is installed: {error}")
        print(f"{archive.stat().st_size:>12,}  {archive}")
    for fault in faults:
        print(fault)
    print(f"To mend before a release: {len(faults)}." if faults else "This can be published.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
