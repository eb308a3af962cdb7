"""How a picture was made, stored as a text in its file: the model, seed, settings and hints.

It never contains a path or a file's name. If the picture is dropped onto the page, or given to `colorize --like`, work
continues from there.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from Project7 import __version__
from Project7.answer_config import ColorizeConfig
from Project7.brush import Strokes
from Project7.errors import UsageError
from Project7.mark import SAID
from Project7.photo import XMP, xmp_text
from Project7.settings import explain

KEY = "project7"  # key of the text in a picture
MOST_HINTS = 1000
TONE = ("saturation", "warmth", "denoise", "levels", "mark")  # settings of every method
OPTIONS = ("sampler", "steps", "guidance", "candidates", "calm", "temperature", "variety")  # options of some methods


class GivenHint(BaseModel):
    """The colour of a spot, as JSON: `{"x": 10, "y": 20, "color": "#aa3322"}`, x and y in pixels of the photo."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    x: float = Field(ge=0, lt=1e6)
    y: float = Field(ge=0, lt=1e6)
    color: str = Field(min_length=3, max_length=40)

    def as_hint(self) -> tuple[float, float, str]:
        return self.x, self.y, self.color


class Provenance(BaseModel):
    """Everything needed to make the same picture again from its lightness."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)  # later versions may add fields

    version: str = Field(__version__, max_length=40)
    model: str = Field("", max_length=64)  # name of the model
    model_sha256: str = Field("", max_length=64)  # of the file of its weights
    method: str = Field("", max_length=40)
    noise: str = Field("", max_length=64)  # the digest of the picture that keys the noise
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    seed: int = 0
    saturation: float = 1.0
    warmth: float = 0.0
    denoise: float = 0.0
    levels: Literal["off", "network", "auto"] = "off"
    mark: bool = False
    working_size: int | None = None
    hints: tuple[GivenHint, ...] = Field((), max_length=MOST_HINTS)
    strokes: Strokes = ()
    options: dict[str, int | float | str | None] = {}

    @model_validator(mode="after")
    def _settings_hold(self):
        if strange := set(self.options) - set(OPTIONS):
            raise ValueError(f"there is no option {min(strange)}")
        ColorizeConfig(**self.settings())
        return self

    def settings(self) -> dict[str, Any]:
        """The settings of `colorize`, without those that were left to their defaults."""
        own = {name: getattr(self, name) for name in ("seed", *TONE, "working_size")}
        return {name: value for name, value in (own | self.options).items() if value is not None}

    def as_text(self) -> dict[str, str]:
        """The texts to be stored in the file of a picture, by their keys."""
        return {KEY: self.model_dump_json()} | ({"Comment": SAID} if self.mark else {})


def provenance(
    colorizer: Any, size: tuple[int, int], digest: str, seed: int, *, hints: Iterable[Any] = (), **settings: Any
) -> Provenance:
    """How a Colorizer makes the answer of a seed to a photo of this size (H, W). hints: (x, y, colour) of each;
    settings: fields of Provenance."""
    height, width = size
    return Provenance(
        model=colorizer.name,
        model_sha256=colorizer.sha256,
        method=colorizer.config.model.method,
        noise=digest,
        width=width,
        height=height,
        seed=seed,
        hints=[GivenHint(x=x, y=y, color=colour) for x, y, colour in hints],
        **settings,
    )


def parse_hint(text: str) -> tuple[float, float, str]:
    """Reads `X,Y,COLOUR` as a person types it. Raises UsageError if it is not of this form."""
    x, y, name = (*text.split(",", 2), "", "")[:3]
    try:
        return GivenHint(x=x, y=y, color=name.strip()).as_hint()
    except ValidationError:
        raise UsageError(f"--hint {text}: write X,Y,COLOUR, such as 120,80,#2a5caa.") from None


def read_hints(text: str) -> list[tuple[float, float, str]]:
    """Reads hints from the text of a JSON list. Raises UsageError, which says what is wrong."""
    try:
        values = json.loads(text)
        if not isinstance(values, list) or len(values) > MOST_HINTS:
            raise UsageError(
                f'hints must be a list of at most {MOST_HINTS}, each like {{"x": 10, "y": 20, "color": "#aa3322"}}.'
            )
        return [GivenHint(**value).as_hint() if isinstance(value, dict) else _no_hint(value) for value in values]
    except ValidationError as error:
        raise UsageError(f"a hint is wrong: {explain(error).replace('--', '')}.") from None
    except (ValueError, RecursionError):
        raise UsageError('hints are not valid JSON; write [{"x": 10, "y": 20, "color": "#aa3322"}].') from None


def _no_hint(value: Any) -> Any:
    raise UsageError(f'{str(value)[:40]} is not a hint; write {{"x": 10, "y": 20, "color": "#aa3322"}}.')


def read_provenance(source: Path | BinaryIO) -> Provenance | None:
    """What a picture's file says about how it was made; None if it says nothing, or nothing usable. No pixel is
    decoded."""
    try:
        with Image.open(source, formats=("PNG", "JPEG", "WEBP", "TIFF")) as image:
            if image.format == "PNG":
                return Provenance.model_validate_json(image.info[KEY])
            tiff: Any = image
            packet = tiff.tag_v2[XMP] if image.format == "TIFF" else image.info["xmp"]
            return Provenance.model_validate_json(xmp_text(packet, KEY) or "")
    except Exception:  # foreign bytes: Pillow and pydantic raise a dozen kinds, which all mean "nothing usable"
        return None


def differences(made: Provenance, wanted: Provenance) -> list[str]:
    """What distinguishes two recipes, in words for a file's name: ["base-classification"], ["seed1", "steps20"]; [] if
    they give the same picture. An unknown digest (\"\") counts as the same."""
    words = []
    if (made.model, made.model_sha256) != (wanted.model, wanted.model_sha256):
        words.append(wanted.model if made.model != wanted.model else f"{wanted.model}-{wanted.model_sha256[:6]}")
    before, now = ({n: getattr(p, n) for n in ("seed", *TONE, "working_size")} | p.options for p in (made, wanted))
    for name in now | before if made.method == wanted.method else ("seed", *TONE, "working_size"):
        if before.get(name) != now.get(name):
            value = now.get(name)
            if isinstance(value, bool):
                words.append(name if value else f"no-{name}")
                continue
            shown = f"{value:g}" if isinstance(value, float) else "-default" if value is None else str(value)
            words.append(f"{name}-{shown}" if isinstance(value, str) else f"{name}{shown}")
    if made.hints != wanted.hints:
        words.append("hints" if wanted.hints else "no-hints")
    if made.strokes != wanted.strokes:
        words.append("mixed" if wanted.strokes else "not-mixed")
    if made.noise and wanted.noise and made.noise != wanted.noise:
        words.append(wanted.noise[:6])  # another photo under the same name
    return [word.replace("_", "-") for word in words]
