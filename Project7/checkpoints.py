"""Saves, loads and rebuilds models: best_model.pth and last_model.pth. Writes are atomic, and no code is unpickled.

A checkpoint is a dict of tensors and plain Python values:

    epoch                  epochs finished
    model_state_dict       the weights to use: the EMA
    optimizer_state_dict   AdamW
    loss_state_dict        the weights of the objectives
    train_loss, val_loss, best_val_loss
    config                 RunConfig as a dict: enough to rebuild the model
    raw_state_dict, progress, history ...   only in last_model.pth: what else resuming exactly needs

The file is torch's zip archive; the comment of the archive holds the SHA-256 of the rest (see atomic_file.seal).
"""

import hashlib
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import nn

from Project7.atomic_file import is_sealed, replacing, seal, seal_holds
from Project7.config import RunConfig, from_dict
from Project7.errors import ProjectError, sentence
from Project7.feature_networks import is_plain
from Project7.methods import Method, build_model

FORMAT = 1
_KEYS = ("model_state_dict", "config")


class CheckpointError(ProjectError):
    """The file of weights cannot be used. The message says what was expected, what was found and what to do."""


class StoredModel(NamedTuple):
    """A trained model, ready to colour, and what is known of the file it came from."""

    model: Any  # of methods.METHODS
    config: RunConfig
    sha256: str  # of the whole file
    note: str | None  # a sentence for the user if the file has no checksum


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Writes a checkpoint with its checksum, completely or not at all.

    Raises CheckpointError if a weight is NaN or infinite.
    """
    for key in ("model_state_dict", "raw_state_dict"):
        if not all_finite(checkpoint.get(key, {}).values()):
            raise CheckpointError(
                f"{path} was not written: the weights hold NaN or infinity; the earlier file is kept."
            )
    with replacing(path) as file:
        torch.save({"format": FORMAT, **checkpoint}, file)
        seal(file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU. Raises CheckpointError if the file is not a complete and safe checkpoint."""
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, Any], str, bool]:
    """The checkpoint, the SHA-256 of its file, and whether the file carries a checksum."""
    try:
        with open(path, "rb") as file:  # opened once: another process may replace the path at any time
            _check_kind(path, file)
            if seal_holds(file) is False:
                raise CheckpointError(f"{path} is damaged: its checksum does not match; use another copy of it.")
            with warnings.catch_warnings(action="ignore"):  # torch warns about a pickle before it refuses it
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            sealed = is_sealed(file)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {sentence(error)}.") from None
    except Exception as error:  # torch and pickle raise a dozen kinds for damaged files
        unsafe = "weights_only" in str(error) or "Unsupported" in str(error)
        found = (
            "holds more than weights, and could run code when read"
            if unsafe
            else f"is damaged ({sentence(error)[:120]})"
        )
        raise CheckpointError(f"{path} {found}; use a checkpoint that this toolkit wrote.") from None
    if isinstance(checkpoint, dict):
        for key in ("model_state_dict", "raw_state_dict"):
            if isinstance(checkpoint.get(key), dict):
                checkpoint[key] = bare_names(checkpoint[key])
    missing = [k for k in _KEYS if k not in checkpoint] if isinstance(checkpoint, dict) else list(_KEYS)
    if missing:
        raise CheckpointError(f"{path} is not a model of this toolkit: it has no {' and no '.join(missing)}.")
    return checkpoint, sha256, sealed


def unsealed_note(path: Path) -> str | None:
    """A sentence for the user if the file has no checksum, else None."""
    with open(path, "rb") as file:
        return _note(path, is_sealed(file))


def _note(path: Path, sealed: bool) -> str | None:
    return None if sealed else f"{path} carries no checksum (not written by this toolkit): taken as it is."


def open_model(path: Path, device: torch.device | str = "cpu") -> StoredModel:
    """The trained model, ready to colour, from `best_model.pth` alone. Raises CheckpointError if it cannot be used."""
    checkpoint, sha256, sealed = _read(path)
    config = from_dict(checkpoint["config"], path)
    model = rebuild(config, checkpoint["model_state_dict"], path)
    return StoredModel(model.to(device).eval().requires_grad_(False), config, sha256, _note(path, sealed))


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[Any, RunConfig]:
    """The trained model, ready to colour, and its configuration. Raises CheckpointError if it cannot be used."""
    return open_model(path, device)[:2]


def bare_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights with their names from before torch.compile, which inserts `_orig_mod.`."""
    return {str(name).replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}


def rebuild(config: RunConfig, weights: dict[str, torch.Tensor], path: Path) -> Method:
    """A model of `config` with `weights`. Raises CheckpointError if they do not fit.

    It is built on the meta device first, so that a small file cannot demand a large amount of memory.
    """
    with torch.device("meta"):
        model = build_model(config.model)
    check_weights(model, weights, path)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return model


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores the moments and the learning rate of a stored AdamW, but none of its other settings.

    Raises KeyError, TypeError or ValueError if the state belongs to another model.
    """
    ours = optimizer.state_dict()["param_groups"]
    groups = [
        {**own, "params": theirs["params"], "lr": theirs["lr"]}
        for own, theirs in zip(ours, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def check_weights(model: nn.Module, weights: Any, path: Path) -> None:
    """Raises CheckpointError, with a summary of at most five lines, unless names, shapes and values fit `model`."""
    if not isinstance(weights, dict) or not all(is_plain(tensor) for tensor in weights.values()):
        raise CheckpointError(
            f"{path}: model_state_dict is not a dict of plain tensors; use the file as it was written."
        )
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    misshapen = [f"{n} {found[n]} instead of {s}" for n, s in expected.items() if n in found and found[n] != s]
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "misshapen": misshapen,
    }
    lines = [f"  {len(names)} {kind}: {names[0]}{' ...' * (len(names) > 1)}" for kind, names in faults.items() if names]
    if lines:
        fits = f"{path}: the weights do not fit the model that its configuration describes;"
        raise CheckpointError("\n".join([f"{fits} use the file as it was written.", *lines]))
    if not all_finite(tensor.float() for tensor in weights.values()):  # checked as float32, where 1e300 is infinite
        raise CheckpointError(f"{path}: the weights hold NaN or infinity; use an earlier copy.")


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())


def _check_kind(path: Path, file: BinaryIO) -> None:
    """Raises CheckpointError that names the kind of a file which is not a checkpoint at all."""
    start = file.read(64)
    file.seek(0)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # without the byte order mark that Windows writes
    kinds = {
        "is empty": not start,
        "is a web page": text.startswith((b"<!doctype", b"<html", b"<?xml")),
        "is JSON": text.startswith((b"{", b"[")),
        "is a picture": start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")),
        "has only a few bytes": len(start) < 16,
        "is a Git LFS pointer, not the file that it points to": start.startswith(b"version https://git-lfs"),
        "is a safetensors file": len(start) > 9 and start[8:9] == b"{" and start[4:8] == b"\0\0\0\0",
    }
    for kind, is_it in kinds.items():
        if is_it:
            raise CheckpointError(f"{path} {kind}; expected a checkpoint of this toolkit (best_model.pth).")
    check_unpacked_size(path, file)


def check_unpacked_size(path: Path, file: BinaryIO) -> None:
    """Raises CheckpointError if an archive is much larger unpacked: torch does not compress, so a small file that would
    fill the memory was not written by this toolkit."""
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not an archive, or damaged: reading it will fail
    finally:
        stored = file.seek(0, 2)
        file.seek(0)
    if size > 2 * stored + (1 << 20):
        raise CheckpointError(
            f"{path} has {stored:,} bytes and would take {size:,} in memory; use a checkpoint that this toolkit wrote."
        )
