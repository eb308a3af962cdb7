"""The command that starts this program here, so that a printed command can be copied and pasted."""

import os
import shutil
import sys
from pathlib import Path


def command() -> str:
    """`project7` if that runs this installation; else the path of its script; else Python with the package."""
    beside = Path(sys.executable).with_name("project7")
    on_path = shutil.which("project7")
    if on_path and beside.exists() and os.path.samefile(on_path, beside):
        return "project7"
    if beside.exists():
        return quoted(beside)
    python = Path(sys.executable).stem if shutil.which(Path(sys.executable).stem) else quoted(Path(sys.executable))
    package = Path(__file__).parent
    return f"{python} -m Project7" if package.parent == Path.cwd() else f"{python} {quoted(package)}"


def quoted(path: Path) -> str:
    """A path for a shell: relative if that is shorter, and quoted if necessary."""
    import shlex

    try:
        shown = min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # on another drive of Windows
        shown = str(path)
    return shlex.quote(shown)
