"""Models on the Hugging Face Hub: model.safetensors, config.json, and README.md, the card. Nothing is pickled.

The Hub counts downloads by config.json, and indexes the metadata at the head of the card. HF_HOME, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE work as usual.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Project7 import __version__
from Project7.atomic_file import write_text
from Project7.checkpoints import CheckpointError, StoredModel, rebuild
from Project7.config import RunConfig, from_json, to_json
from Project7.download import bounded_hub
from Project7.errors import ProjectError, UsageError, sentence
from Project7.feature_networks import read_weights, save_weights

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_TAGS = ["image-colorization", "colorization", "pytorch"]
_TASK = "image-to-image"


def local_folder(model: str | Path, revision: str | None = None) -> Path:
    """The folder with a model's files: `model` itself, or the Hub's cache of owner/name, downloaded if it is missing or
    outdated. Raises ProjectError if it cannot be had."""
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    from huggingface_hub import snapshot_download

    with bounded_hub(), said_plainly(str(model)):
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=[WEIGHTS, CONFIG]))


def read_folder(folder: Path, device: torch.device | str = "cpu") -> StoredModel:
    """The model in a folder that `write_folder` wrote, ready to colour. Raises ProjectError if it cannot be used."""
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} holds no model of this toolkit: {' and '.join(missing)} cannot be found there; give a folder or "
            "repository that save_pretrained or push_to_hub wrote."
        )
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {sentence(error)}.") from None
    config = from_json(text, folder / CONFIG)
    weights, _ = read_weights(folder / WEIGHTS, cure="save or download the model again")
    model = rebuild(config, weights, folder / WEIGHTS)
    with open(folder / WEIGHTS, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return StoredModel(model.to(device).eval().requires_grad_(False), config, sha256, None)


def write_folder(folder: Path, model: nn.Module, config: RunConfig, *, called: str, license: str | None = None) -> None:
    """Writes the three files. called: the argument of from_pretrained in the card's example. The configuration names
    files and folders without their paths, which are private."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: smallest(tensor.cpu()) for name, tensor in model.state_dict().items()}
    save_weights(folder / WEIGHTS, weights, {"format": "pt", "project7": __version__})
    public = RunConfig.model_validate(without_paths(config.model_dump(mode="json")) | {"shipped": False})
    write_text(folder / CONFIG, to_json(public))
    write_text(folder / CARD, make_card(public, called, license))


def smallest(tensor: Tensor) -> Tensor:
    """The tensor in half precision if that loses nothing, as for the models that come with the toolkit."""
    half = tensor.half() if tensor.dtype == torch.float32 else tensor
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def without_paths(value: Any) -> Any:
    """The same settings with only the last part of each path: photos instead of /home/me/photos."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return value.replace("\\", "/").rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def make_card(config: RunConfig, called: str, license: str | None) -> str:
    from huggingface_hub import ModelCardData

    about = ModelCardData(
        license=license, library_name="project7", pipeline_tag=_TASK, tags=[*_TAGS, config.model.method]
    )
    return _CARD.format(
        metadata=about.to_yaml(),
        called=called,
        method=config.model.method,
        words=config.model.method_in_words(),
        network=config.model.network_in_words(),
        size=config.data.image_size,
        data=", ".join(config.data.data),
        version=__version__,
    )


def upload(repo: str, model: nn.Module, config: RunConfig, *, private: bool | None, license: str | None) -> str:
    """Uploads a model in one commit; returns the address of its page. Raises ProjectError if the Hub refuses."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="project7", library_version=__version__)
    with tempfile.TemporaryDirectory() as folder, said_plainly(repo):
        write_folder(Path(folder), model, config, called=repo, license=license)
        made = api.create_repo(repo, private=private, exist_ok=True)
        if api.file_exists(made.repo_id, CARD):
            (Path(folder) / CARD).unlink()  # somebody may have edited the card there
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=f"A {config.model.method} model")
    return str(made)


@contextlib.contextmanager
def said_plainly(repo: str) -> Iterator[None]:
    """Turns errors of the Hub into ProjectErrors with a cure."""
    from huggingface_hub import constants, errors

    there, login = constants.ENDPOINT, "log in with `hf auth login`"
    try:
        yield
    except ProjectError:
        raise
    except errors.HFValidationError:
        raise UsageError(f"{repo!r} is neither a repository of the Hub nor a folder here; use owner/name.") from None
    except errors.RepositoryNotFoundError:
        raise ProjectError(
            f"There is no model {repo} at {there}, or it is private; check the name, or {login}."
        ) from None
    except errors.RevisionNotFoundError:
        raise ProjectError(f"{repo} has no such revision; give one of its branches, tags or commits.") from None
    except errors.OfflineModeIsEnabled:
        raise ProjectError(f"HF_HUB_OFFLINE is set, so {repo} cannot be reached; unset it.") from None
    except errors.LocalEntryNotFoundError:
        raise ProjectError(
            f"{repo} is not in the Hub's cache, and {there} cannot be reached; connect once, or give a folder."
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        cure = login if status in (401, 403) else "try again later"
        raise ProjectError(f"{there} refuses {repo} ({status or sentence(error)}); {cure}.") from None
    except Exception as error:  # httpx, requests and hf_xet raise a dozen kinds
        raise ProjectError(f"{there} cannot be reached for {repo} ({sentence(error)}); try again later.") from None


_CARD = """\
---
{metadata}
---

# A {method} model that gives gray photos their colour

The lightness of a photo is kept, and the model answers with its chroma (CIE Lab). {words}; {network}.
Trained on squares of {size} pixels: {data}.

```python
from Project7 import Colorizer

colorizer = Colorizer.from_pretrained("{called}")
colorizer.colorize("photo.jpg").save("colour.png")
```

The colours are plausible, not known: do not read evidence, flags or the colour of a person's skin off them.
Written by Project7 {version}.
"""
