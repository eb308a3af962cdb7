"""The folder for results that are computed once from photos: decoded squares, features, indexes of tars."""

import errno
import os
import shutil
import tempfile
from pathlib import Path


def default_cache_dir() -> Path:
    """The cache folder: $PROJECT7_CACHE if it is set, else `project7` in $XDG_CACHE_HOME or in ~/.cache."""
    if os.environ.get("PROJECT7_CACHE"):
        return Path(os.environ["PROJECT7_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "project7"
    try:
        return Path.home() / ".cache" / "project7"
    except RuntimeError:  # no HOME and an unknown user, as in some containers
        return Path(tempfile.gettempdir()) / f"project7-{os.getuid()}"


def free_bytes(folder: Path) -> int:
    """The free bytes on the disk of a folder, even if the folder does not exist yet."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free


def remedy(error: OSError) -> str:
    return "free some space, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
