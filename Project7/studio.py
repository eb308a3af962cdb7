"""What a server keeps in memory: the models in use, and the open photos."""

import contextlib
import copy
import dataclasses
import io
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, create_model
from torch import Tensor

from Project7 import model_folder
from Project7.answer_config import ColorizeConfig
from Project7.checkpoints import CheckpointError
from Project7.colorize import Colorizer
from Project7.errors import ProjectError, UsageError
from Project7.hints import Hint
from Project7.jobs import Worker
from Project7.opened import OpenPhoto
from Project7.painting import full_lightness
from Project7.photo import Photo, open_photo, photo_digest
from Project7.provenance import OPTIONS, TONE, Provenance, read_provenance
from Project7.scan import faded, white_border
from Project7.settings import SETTINGS

_MODELS = 3  # number of models that stay loaded
_ASKED = (*OPTIONS, *TONE, "seed", "working_size")

# The options of a request, with the bounds of `colorize`; those that are not given take the model's defaults.
_fields: dict[str, Any] = {
    name: (field.annotation, field) for name, field in ColorizeConfig.model_fields.items() if name in _ASKED
}
_fields["model"] = (str | None, Field(None, min_length=1, max_length=64))
Asked: Any = create_model("Asked", __config__=SETTINGS, **_fields)


def model_options(asked: Any, colorizer: Colorizer) -> dict[str, Any]:
    """The options that the model's method has. Raises UsageError if one was given that it does not have."""
    known = colorizer.model.OPTIONS
    if strange := [name for name in OPTIONS if name in asked.model_fields_set and name not in known]:
        raise UsageError(f"{strange[0]} is not an option of a {colorizer.config.model.method} model; leave it out.")
    return {name: value for name in known if (value := getattr(asked, name, None)) is not None}


class NotHere(ProjectError):
    """There is no model or photo of this name (HTTP 404)."""


class Unusable(ProjectError):
    """The model exists but cannot be used now (HTTP 503)."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    upload: int = 100 << 20  # bytes per request
    pixels: int = 50_000_000  # per photo
    upload_seconds: float = 60.0  # within which a request must have arrived
    job_seconds: float = 300.0  # for one job, from its start
    waiting: int = 8  # jobs that wait while one runs
    photos: int = 12  # open at the same time; the one unused for longest is closed
    open_pixels: int = 120_000_000  # of all open photos together
    variants: int = 16  # answers per request


@dataclasses.dataclass(eq=False)
class Shelved:
    """An open photo, for all models."""

    id: str
    photo: Photo
    L: Tensor  # (1, 1, H, W)
    digest: str  # keys the noise
    made: Provenance | None  # how it was made, if it is a picture of this toolkit
    faded: bool  # whether stretching its contrast (levels) would help
    by_model: dict[Any, OpenPhoto] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> int:
        return self.photo.rgb.shape[0] * self.photo.rgb.shape[1]


class Studio:
    def __init__(self, models_dir: Path | None = None, *, device: str = "auto", limits: Limits | None = None):
        self.models_dir, self.device = models_dir or model_folder.default_models_dir(), device
        self.limits = limits or Limits()
        self.heavy = Worker(waiting=self.limits.waiting, seconds=self.limits.job_seconds)  # the device's
        self.light = Worker(waiting=4 * self.limits.waiting, seconds=self.limits.job_seconds)  # clicks, uploads
        self._models: OrderedDict[str, tuple[tuple[int, ...], Colorizer]] = OrderedDict()
        self._photos: OrderedDict[str, Shelved] = OrderedDict()
        self._lock, self._loading = threading.Lock(), threading.Lock()

    def close(self) -> None:
        self.heavy.close()
        self.light.close()

    # -- models ------------------------------------------------------------------------------------------------------

    def models(self) -> list[model_folder.ModelSummary]:
        """The models of the folder and those that come with the toolkit, `base` first; without those that have no
        weights yet."""
        found = {m.name: m for m in [*model_folder.shipped_models(), *model_folder.list_models(self.models_dir)]}
        ready = [model for model in found.values() if model.config and model.folder.best.exists()]
        return sorted(ready, key=lambda model: (model.name != "base", model.name))

    def default_model(self) -> str:
        names = [model.name for model in self.models()]
        if not names:
            raise NotHere("there are no models here yet; train one, or start with --models-dir.")
        return names[0]

    def weights(self, name: str) -> Path:
        """The file of a model's weights. Raises NotHere if there is no such model."""
        try:
            return model_folder.existing_folder(self.models_dir, name).best
        except UsageError:
            raise NotHere(f"there is no model {name[:64]!r} here; GET /api/models lists those there are.") from None

    def colorizer(self, name: str) -> Colorizer:
        """The model, loaded once, and again if its file was replaced. Raises NotHere or Unusable."""
        file = self.weights(name)
        try:
            stat = file.stat()
        except OSError:
            raise NotHere(f"the model {name!r} has no weights yet.") from None
        stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        with self._loading:
            if name not in self._models or self._models[name][0] != stamp:
                try:
                    self._models[name] = stamp, Colorizer.load(file, device=self.device)
                except CheckpointError:
                    raise Unusable(
                        f"the model {name!r} cannot be used: its file is damaged, or not of this toolkit."
                    ) from None
            self._models.move_to_end(name)
            while len(self._models) > _MODELS:
                self._models.popitem(last=False)
            return self._models[name][1]

    def warm_up(self) -> None:
        """Loads the default model and all that its answers need, so that the first photo need not wait for it."""
        with contextlib.suppress(NotHere, Unusable):
            colorizer = self.colorizer(self.default_model())
            fast = {"steps": 1, "candidates": 1} if "steps" in colorizer.model.OPTIONS else {}
            colorizer.open(np.full((64, 64, 3), 128, np.uint8), **fast).hint(30, 30, "brown").picture()

    # -- photos ------------------------------------------------------------------------------------------------------

    def read(self, content: bytes) -> Shelved:
        """Reads a photo without keeping it open. Raises PhotoError."""
        photo = open_photo(content, most=self.limits.pixels)
        made = read_provenance(io.BytesIO(content)) if content.startswith(b"\x89PNG") else None
        if made and (made.height, made.width) != photo.rgb.shape[:2]:
            made = None
        digest = (made and made.noise) or photo_digest(photo)
        L = full_lightness(photo.rgb)
        return Shelved(secrets.token_urlsafe(9), photo, L, digest, made, faded(L, white_border(L)))

    def keep(self, shelved: Shelved) -> None:
        """Keeps a photo open, and closes those unused for longest if there are too many."""
        with self._lock:
            self._photos[shelved.id] = shelved
            while len(self._photos) > 1 and (
                len(self._photos) > self.limits.photos
                or sum(other.pixels for other in self._photos.values()) > self.limits.open_pixels
            ):
                self._photos.popitem(last=False)

    def find(self, id: str) -> Shelved:
        """An open photo. Raises NotHere if it is not open any longer."""
        with self._lock:
            if id not in self._photos:
                raise NotHere("this photo is not open any longer; open it again.")
            self._photos.move_to_end(id)
            return self._photos[id]

    def drop(self, id: str) -> None:
        with self._lock:
            self._photos.pop(id, None)

    def opened(self, shelved: Shelved, asked: Any, hints: Sequence[Hint]) -> OpenPhoto:
        """The photo opened for a model, with the requested options (Asked). Requests for the same photo and model share
        their results."""
        colorizer = self.colorizer(asked.model or self.default_model())
        key = colorizer.sha256, asked.working_size, asked.denoise, asked.levels
        if key not in shelved.by_model:
            if len(shelved.by_model) >= _MODELS:
                shelved.by_model.pop(next(iter(shelved.by_model)))
            settings = {name: getattr(asked, name) for name in ("working_size", "denoise", "levels")}
            settings |= {"lightness": shelved.L, "digest": shelved.digest}
            shelved.by_model[key] = OpenPhoto(colorizer, shelved.photo, **settings)
        opened = copy.copy(shelved.by_model[key])
        opened.colorizer = colorizer
        opened.options, opened.seed = model_options(asked, colorizer), asked.seed
        opened.saturation, opened.warmth, opened.mark = asked.saturation, asked.warmth, asked.mark
        return opened.tell(hints)
