"""The folder models/<name>/: names, files, listing, history and the lock.

Imports no torch, so that prompts and `project7 models` are quick.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path

from Project7.atomic_file import file_lock, sweep, write_text
from Project7.config import RunConfig, from_json, to_json
from Project7.errors import ProjectError, UsageError

_PACKAGE = Path(__file__).resolve().parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # devices of Windows, not files
_LIST_OF_NUMBERS = re.compile(r"\[[\s\d.,eE+-]*\]")  # written on one line of the history


def default_models_dir() -> Path:
    """`models/` of this checkout, whatever the current folder is; of the current folder if the package is installed."""
    return _PACKAGE.parent / "models" if _in_checkout() else Path("models")


def _in_checkout() -> bool:
    return (_PACKAGE.parent / "pyproject.toml").exists()


def check_name(name: str) -> str:
    """Raises UsageError unless `name` can name a model: a folder inside `models/`, on every operating system."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise UsageError(
            f"{name!r} cannot name a model: use 1 to 64 of the letters A-Z and a-z, digits, '.', '_' and '-', starting "
            "with a letter or digit and not ending with a dot; for example my-model."
        )
    if _RESERVED.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a model: Windows keeps it for a device; for example my-{name}.")
    return name


@dataclass(frozen=True)
class ModelFolder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def best(self) -> Path:
        return self.path / "best_model.pth"

    @property
    def last(self) -> Path:
        return self.path / "last_model.pth"

    @property
    def healthy(self) -> Path:
        return self.path / "healthy_model.pth"  # the state that --on-collapse rollback returns to

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def history(self) -> Path:
        return self.path / "training_history.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def exists(self) -> bool:
        return self.has_weights() or self.config.exists()

    def has_weights(self) -> bool:
        """False also for a run that ended before its first save and left only its configuration."""
        return self.best.exists() or self.last.exists()


def open_folder(models_dir: Path, name: str) -> ModelFolder:
    """The folder of a model, which need not exist yet.

    Raises UsageError for a bad name, or for a link that leads out of `models_dir`.
    """
    folder = ModelFolder(Path(models_dir) / check_name(name))
    for path, kind in ((folder.path, "folder"), *((p, "file") for p in (folder.best, folder.last, folder.config))):
        if path.is_symlink() and not path.resolve().is_relative_to(Path(models_dir).resolve()):
            raise UsageError(f"{path} is a link out of the models folder and is not followed; put a {kind} there.")
    return folder


def shipped_models() -> list["ModelSummary"]:
    """The models that come with the toolkit, from `models/` in the checkout or in the installed package."""
    models = list_models((_PACKAGE.parent if _in_checkout() else _PACKAGE) / "models")
    return [model for model in models if model.config and model.config.shipped]


def existing_folder(models_dir: Path, name: str) -> ModelFolder:
    """The folder of a model in `models_dir`, or else of the shipped model of this name. Raises UsageError if there is
    neither."""
    folder = open_folder(models_dir, name)
    if not folder.exists():
        if shipped := next((model for model in shipped_models() if model.name == name), None):
            return shipped.folder
        there = [model.name for model in list_models(models_dir)]
        known = f"the models there are {', '.join(there)}" if there else "there are no models yet; train one first"
        raise UsageError(f"No model {name!r} in {models_dir}: {known}.")
    return folder


def create(folder: ModelFolder) -> bool:
    """Makes the folder and checks that it can be written to, before hours are spent on training.

    Returns True if this call made it: of two processes, only that one may remove it again. Raises ProjectError if it
    cannot be written.
    """
    try:
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.path.mkdir()
            created = True
        except FileExistsError:
            created = False
        sweep(folder.path)
        if not os.access(folder.path, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise ProjectError(
            f"The model folder {folder.path} cannot be written ({error.strerror}); choose another with --models-dir."
        ) from None
    return created


@contextmanager
def locked(folder: ModelFolder) -> Iterator[bool]:
    """Reserves the folder for one trainer. The operating system releases the lock however the process ends.

    Yields False if the file system does not support locks: then no other process is kept out. Raises ProjectError if
    another process holds the lock.
    """
    from filelock import Timeout

    owner = folder.path / ".lock-owner"
    try:
        with file_lock(folder.path / ".lock", timeout=0) as reserved:
            try:
                owner.write_text(str(os.getpid()))
                yield reserved
            finally:
                owner.unlink(missing_ok=True)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise ProjectError(
            f"The model {folder.name!r} is in use by pid {pid}; wait for that run to end, or use another --name."
        ) from None


def write_config(folder: ModelFolder, config: RunConfig) -> None:
    write_text(folder.config, to_json(config))


def read_config(folder: ModelFolder) -> RunConfig:
    try:
        return from_json(folder.config.read_text(encoding="utf-8"), folder.config)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{folder.config} cannot be read ({error}); colouring needs only best_model.pth.") from None


def write_history(folder: ModelFolder, history: list[dict]) -> None:
    text = json.dumps(history, indent=1)
    write_text(folder.history, _LIST_OF_NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n")


def read_history(folder: ModelFolder) -> list[dict] | None:
    """One entry per epoch; None if the file is damaged, [] if there is none."""
    try:
        history = json.loads(folder.history.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, OSError, RecursionError):
        return None
    usable = isinstance(history, list) and all(isinstance(entry, dict) for entry in history)
    return history if usable else None


def set_aside(path: Path) -> Path:
    """Renames a damaged file to an unused name beside it, so that nothing is lost. Returns the new path."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            path.rename(aside)
            return aside
    raise ProjectError(f"{path} is damaged and could not be set aside; move it away by hand.")


@dataclass(frozen=True)
class ModelSummary:
    """One model in the table of `project7 models`."""

    folder: ModelFolder
    config: RunConfig | None  # None if config.json is missing or damaged
    epochs: int
    best_val_loss: float | None
    changed: datetime | None  # of the weights
    size: int  # bytes of best_model.pth
    complete: bool  # whether all planned epochs are done

    @property
    def name(self) -> str:
        return self.folder.name


def list_models(models_dir: Path) -> list[ModelSummary]:
    """Every model in the folder, sorted by name."""
    models_dir = Path(models_dir)
    names = sorted(p.name for p in models_dir.iterdir() if p.is_dir()) if models_dir.is_dir() else []
    models = []
    for name in names:
        with suppress(UsageError):  # a folder that cannot be a model, or a link that leads elsewhere
            models.append(open_folder(models_dir, name))
    return [summarize(folder) for folder in models if folder.exists()]


def summarize(folder: ModelFolder) -> ModelSummary:
    try:
        config = read_config(folder)
    except UsageError:
        config = None
    history = read_history(folder) or []
    latest = history[-1] if history else {}
    epochs = latest.get("epoch", len(history))
    losses = [v for e in history if isinstance(v := e.get("val_loss"), int | float) and isfinite(v)]
    # The lowest loss of the history is only a fallback: the objective may have changed during training.
    best = latest.get("best_val_loss", min(losses, default=None))
    weights = next((path for path in (folder.best, folder.last) if path.exists()), None)
    return ModelSummary(
        folder=folder,
        config=config,
        epochs=epochs if isinstance(epochs, int) else len(history),
        best_val_loss=best if isinstance(best, int | float) and isfinite(best) else None,
        changed=datetime.fromtimestamp(weights.stat().st_mtime) if weights else None,
        size=weights.stat().st_size if weights else 0,
        complete=config is not None and isinstance(epochs, int) and epochs >= config.training.epochs,
    )


def name_of(weights: Path) -> str:
    """The name of the model in a file of weights: that of its folder, or of the file if it stands by itself."""
    return weights.parent.name if weights.name == "best_model.pth" else weights.stem


def find_weights(model: str, models_dir: Path, *, flag: str = "--model") -> Path:
    """The file of weights that `--model` means: a name in the models folder, a model's folder, or a .pth file. Raises
    UsageError if there is none."""
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir() and (path / "best_model.pth").exists():
        return path / "best_model.pth"
    if path.suffix == ".pth" or len(path.parts) > 1:
        raise UsageError(f"{flag} {model}: there is no such file, and no folder with a best_model.pth.")
    folder = existing_folder(models_dir, model)
    if not folder.best.exists():
        raise UsageError(
            f"The model {model!r} has no best_model.pth yet, because its first epoch is not finished; continue it with "
            f"--resume {model}."
        )
    return folder.best
