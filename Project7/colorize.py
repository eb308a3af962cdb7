"""Colours any image at its full size.

The network works on a small copy of the photo's lightness. Its chroma is enlarged along the edges of the full-size
lightness (guided_filter.py), which stays unchanged, so the cost of the network does not grow with the photo.
"""

import difflib
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from Project7 import color, hub
from Project7.answer_config import ColorizeConfig
from Project7.answer_options import usual_variety
from Project7.array_hints import corrected, influence, likelihoods, trust
from Project7.checkpoints import open_model
from Project7.config import RunConfig
from Project7.encoder import Maps, resize
from Project7.errors import ProjectError, UsageError
from Project7.hints import Hint, Spot, find_spots, hint_maps, hold, nearness
from Project7.mark import marked
from Project7.model_folder import default_models_dir, find_weights, name_of
from Project7.opened import OpenPhoto
from Project7.painting import as_photo, full_lightness, photo_noise, shrink
from Project7.photo import Photo, to_image
from Project7.scan import Lightness, faded, white_border
from Project7.settings import explain
from Project7.working_size import view_shape, working_shape

Picture: TypeAlias = str | Path | bytes | PIL.Image.Image | np.ndarray | Tensor | Photo
_TOGETHER = 8  # photos of a list that go through the network together


def names_its_options(method: Callable) -> Callable:
    """Wraps a method so that its TypeError for an unknown option names the most similar one."""
    known = [name for name in inspect.signature(method).parameters if name != "self"]

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]!r}? " if near else ""
                raise TypeError(f"{method.__name__}() has no option {name!r}; {meant}It takes {', '.join(known)}")
        return method(*arguments, **options)

    return call


def check_settings(**given: Any) -> None:
    """Raises UsageError if a value is out of bounds, as the flags of `project7 colorize` do."""
    plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in given.items()}
    try:
        ColorizeConfig(**plain)
    except ValidationError as error:
        raise UsageError(f"{explain(error).replace('--', '')}.") from None


class Colorizer:
    """A trained model, ready to colour photos.

    >>> Colorizer.load("base").colorize("photo.jpg").save("colour.png")
    """

    exported = False  # unlike an OnnxColorizer

    def __init__(
        self,
        model: Any,  # a module of methods.METHODS
        config: RunConfig,
        device: torch.device | str = "cpu",
        *,
        precision: Literal["fp32", "bf16"] = "fp32",
    ):
        self.model, self.config, self.device, self.precision = model, config, torch.device(device), precision
        self.name, self.sha256 = "", ""  # of the model and its file, if it was loaded from one
        self.note: str | None = None  # a sentence for the user about that file

    def __repr__(self) -> str:
        model, name = self.config.model, f"{self.name!r}, " if self.name else ""
        return f"Colorizer({name}{model.method}, {model.network_in_words()}, on {self.device}, {self.precision})"

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        models_dir: Path | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> "Colorizer":
        """Loads a trained model. `model`: a name in the models folder, a model's folder, or a .pth file. device: auto,
        cpu, cuda or mps. precision: of the network, fp32 or bf16. Raises ProjectError if the model cannot be used."""
        check_settings(precision=precision, device=device)
        where = pick_device(device)
        weights = find_weights(str(Path(model).expanduser()), models_dir or default_models_dir())
        stored = open_model(weights, where)
        colorizer = cls(stored.model, stored.config, where, precision=precision)
        colorizer.name, colorizer.sha256, colorizer.note = name_of(weights), stored.sha256, stored.note
        return colorizer

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> "Colorizer":
        """Loads owner/name from the Hugging Face Hub, or a folder that `save_pretrained` wrote. revision: a branch, tag
        or commit. Without a network the Hub's cache is used. Raises ProjectError if the model cannot be loaded."""
        check_settings(precision=precision, device=device)
        where = pick_device(device)
        stored = hub.read_folder(hub.local_folder(model, revision), where)
        colorizer = cls(stored.model, stored.config, where, precision=precision)
        colorizer.name, colorizer.sha256 = Path(model).name, stored.sha256
        return colorizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what `from_pretrained` reads: model.safetensors, config.json, and the card README.md."""
        hub.write_folder(Path(folder), self.model, self.config, called=str(folder))

    def push_to_hub(self, repo: str, *, private: bool | None = None, license: str | None = None) -> str:
        """Uploads the model to owner/name on the Hugging Face Hub, in one commit; returns its address.

        A missing repository is created, private or not. license: of the weights, by the Hub's identifier, such as mit.
        An existing card is not changed. Raises ProjectError if the Hub refuses.
        """
        return hub.upload(repo, self.model, self.config, private=private, license=license)

    @names_its_options
    def open(
        self,
        image: Picture,
        *,
        working_size: int | None = None,
        denoise: float = 0.0,
        levels: Literal["off", "network", "auto"] = "off",
        digest: str | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        candidates: int | None = None,
        calm: float | None = None,
        temperature: float | None = None,
        variety: float | None = None,
    ) -> OpenPhoto:
        """Keeps a photo open for hints, several answers and likely colours. The options are those of `colorize`;
        digest: of the picture whose noise is used, if it is another one. Raises PhotoError if it is not a photo."""
        options: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "candidates": candidates}
        options = self.model_options(options | {"calm": calm, "temperature": temperature, "variety": variety})
        view: dict[str, Any] = {"working_size": working_size, "denoise": denoise, "levels": levels}
        check_settings(**view, **options)
        return OpenPhoto(self, as_photo(image), digest=digest, **view, **options)

    @names_its_options
    def colorize(
        self,
        image: Picture | Sequence[Picture],
        *,
        seed: int = 0,
        variants: int | None = None,
        hints: Sequence[Hint] = (),
        saturation: float = 1.0,
        warmth: float = 0.0,
        denoise: float = 0.0,
        levels: Literal["off", "network", "auto"] = "off",
        mark: bool = False,
        working_size: int | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        candidates: int | None = None,
        calm: float | None = None,
        temperature: float | None = None,
        variety: float | None = None,
    ) -> Any:
        """Colours a photo at its own size. Returns a Pillow image, or a list of `variants` images if that is given; for
        a list of photos, a list of these. Variant k is what `seed` + k alone gives with the same options.

        hints: (x, y, colour) of spots whose colour is known. A model trained with --hints uses them everywhere; the
        answer of any other model is corrected on their surfaces. The other options are those of `project7 colorize`:
        sampler to calm are for diffusion models, temperature and variety for classification models; None is the model's
        default. Raises UsageError if a value is out of bounds, TypeError if the model does not have an option.
        """
        options: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "candidates": candidates}
        options = self.model_options(options | {"calm": calm, "temperature": temperature, "variety": variety})
        how: dict[str, Any] = {"saturation": saturation, "warmth": warmth, "denoise": denoise, "levels": levels}
        how |= {"mark": mark}
        check_settings(
            seed=seed, variants=1 if variants is None else variants, working_size=working_size, **how, **options
        )
        seeds = range(seed, seed + (variants or 1))
        how |= usual_variety(self.model, len(seeds)) | options | {"hints": hints, "working_size": working_size}
        several = isinstance(image, list | tuple)
        sources: Any = image if several else [image]
        answers = self.images(sources, seeds, **how)
        found = answers if variants is not None else [images[0] for images in answers]
        return found if several else found[0]

    def images(self, sources: Sequence[Picture], seeds: Sequence[int], **how: Any) -> list[list[PIL.Image.Image]]:
        """For each photo, a list of one Pillow image per seed. how: the options of colorize_photos."""
        photos = [as_photo(source) for source in sources]
        if how["hints"] and len(photos) > 1:
            raise UsageError(f"hints are for one photo, and there are {len(photos)}; colour it by itself.")
        return [
            [to_image(rgb, alpha=photo.alpha) for rgb in pictures]
            for batch in self.batches(photos, how["working_size"])
            for photo, pictures in zip(batch, self.colorize_photos(batch, seeds=seeds, **how), strict=True)
        ]

    def model_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The given options that are not None. Raises TypeError if one is not an option of the model's method."""
        chosen = {name: value for name, value in given.items() if value is not None}
        strange = [name for name in chosen if name not in self.model.OPTIONS]
        if strange:
            there = (
                f"whose options are {', '.join(self.model.OPTIONS)}" if self.model.OPTIONS else "which has no options"
            )
            raise TypeError(f"{strange[0]} is not for this {self.config.model.method} model, {there}")
        return chosen

    def batches(self, photos: Sequence[Photo], working_size: int | None) -> Iterator[list[Photo]]:
        """The photos in their order, in batches that have the same working shape."""
        batch: list[Photo] = []
        for photo in photos:
            shape = self.shapes(photo.rgb.shape[:2], working_size)
            if batch and (len(batch) == _TOGETHER or shape != self.shapes(batch[0].rgb.shape[:2], working_size)):
                yield batch
                batch = []
            batch.append(photo)
        if batch:
            yield batch

    def colorize_photos(
        self,
        photos: Sequence[Photo],
        *,
        seeds: Sequence[int],
        working_size: int | None = None,
        hints: Sequence[Hint] = (),
        denoise: float = 0.0,
        levels: str = "off",
        mark: bool = False,
        deep: bool = False,
        **options: Any,
    ) -> list[list[np.ndarray]]:
        """Colours photos whose working pictures have the same shape in one batch. Returns for each photo one (H, W, 3)
        picture per seed: uint8, or uint16 for a photo of 16 bits if `deep`. options: those of `chroma`."""
        views = [Lightness(photo, denoise=denoise, levels=levels) for photo in photos]
        generators = [noise for photo in photos for noise in photo_noise(photo, seeds)]
        size = self.working_shape(photos[0].rgb.shape[:2], working_size)
        spots = find_spots(hints, photos[0].rgb.shape[:2], shrink(views[0].seen, size)) if hints else []
        borders = [view.border_at(size) for view in views for _ in seeds]
        seen = [view.seen for view in views]
        border = torch.cat(borders) if any(part.any() for part in borders) else None
        small, ab = self.chroma(seen, generators, working_size=working_size, spots=spots, border=border, **options)
        mean, std = self.model.ab_mean.cpu(), self.model.ab_std.cpu()
        each, show = len(seeds), marked if mark else np.asarray
        return [
            [
                show(view.paint(small[n : n + 1], ab[n : n + 1], mean, std, deep=deep))
                for n in range(number * each, (number + 1) * each)
            ]
            for number, view in enumerate(views)
        ]

    def chroma(
        self,
        lightness: Sequence[Tensor],
        generators: list[torch.Generator],
        *,
        working_size: int | None = None,
        saturation: float = 1.0,
        warmth: float = 0.0,
        spots: Sequence[Spot] = (),
        border: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """The network's part: working pictures L (B, 1, h, w) and their ab (B, 2, h, w), in the network's range.

        lightness: L (1, 1, H, W) for the network, of photos with equal `shapes`; each photo gets one answer per
        generator, and every photo has the same number of generators. spots: hints, for one photo. border: see
        `finish`. options: the method's own.
        """
        each = len(generators) // len(lightness)
        size = self.working_shape(lightness[0].shape[-2:], working_size)
        small = torch.cat([shrink(L, size) for L in lightness]).repeat_interleave(each, dim=0)
        maps = self.look(lightness)
        if maps is not None:
            maps = tuple(part.repeat_interleave(each, dim=0) for part in maps)
        ab = self.answer(small, maps, generators, spots=spots, **options)
        return small, self.finish(ab, small, saturation=saturation, warmth=warmth, spots=spots, border=border)

    def answer(
        self,
        small: Tensor,
        maps: Maps | None,
        generators: list[torch.Generator],
        *,
        spots: Sequence[Spot] = (),
        untold: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The network's own answer to working pictures L (B, 1, h, w), one generator each: its ab (B, 2, h, w).

        maps: of the encoder. spots: given to a model that was trained with hints; they, and then all pictures, belong
        to one photo. untold: its answers to the same noise without the spots, if they are known.
        """
        if maps is not None:
            options["maps"] = maps
        told = self._told(small, spots)
        if told is None:
            return self._ask(small, generators, **options)
        likely = self.likelihoods(small, maps, spots)
        if likely is None:
            return self._ask(small, generators, hints=told, **options)
        again = [torch.Generator(g.device).set_state(g.get_state()) for g in generators]
        calm = options.get("calm")
        calm = self.model.usual["calm"] if calm is None else calm  # the more is known, the less is left to chance
        ab = self._ask(small, generators, hints=told, **options | {"calm": calm ** (1 - trust(likely))})
        if untold is None:
            untold = self._ask(small, again, **options | {"watch": None})
        share = influence([near.numpy() for near in nearness(small[:1], spots)], likely)
        ab = untold + torch.from_numpy(share) * (ab - untold)
        constants = self.model.ab_mean.cpu(), self.model.ab_std.cpu()
        L = small[0, 0].numpy()
        better = [corrected(one.numpy(), L, spots, trust(likely)) for one in color.to_lab_units(ab, *constants)]
        return color.to_network_range(torch.from_numpy(np.stack(better)), *constants)

    def likelihoods(self, small: Tensor, maps: Maps | None, spots: Sequence[Spot]) -> list[float] | None:
        """How likely each hinted colour was before it was given; None for a model that does not tell. Arguments as
        those of `answer`."""
        expected = self.distribution(small[:1], None if maps is None else tuple(part[:1] for part in maps))
        if expected is None:
            return None
        logits, colours = (part.numpy() for part in expected)
        return likelihoods(spots, logits[0], colours, tuple(small.shape[-2:]))

    def _ask(self, small: Tensor, generators: list[torch.Generator], **options: Any) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            ab = self.model.colorize(small.to(self.device), generator=generators, **options).float().cpu()
        if not ab.isfinite().all():
            raise ProjectError(
                f"The model {self.name or 'that was given'} answers with NaN or infinity: its weights are damaged or "
                f"too large for {self.precision}; use another copy, or fp32."
            )
        return ab

    def finish(
        self,
        ab: Tensor,
        small: Tensor,
        *,
        saturation: float = 1.0,
        warmth: float = 0.0,
        spots: Sequence[Spot] = (),
        shares: Tensor | None = None,
        border: Tensor | None = None,
    ) -> Tensor:
        """ab after the adjustments: a white border is made neutral, then saturation and warmth are applied, then hints,
        whose colours must stay as they were given. shares: the `surfaces` of the spots, if known. border: (B, 1, h, w).
        """
        constants = self.model.ab_mean.cpu(), self.model.ab_std.cpu()
        chroma, change = ab[:, -2:], ab[:, :-2]  # (B, 2, h, w), and (B, 1, h, w) where lightness is restored
        if border is not None:
            chroma = color.saturate(chroma, *constants, 1 - border)
        if saturation != 1:
            chroma = color.saturate(chroma, *constants, saturation)
        if warmth:
            chroma = color.warm(chroma, constants[1], warmth)
        if spots:
            held = hold(color.to_lab_units(chroma, *constants), small[:1], spots, shares)
            chroma = color.to_network_range(held, *constants)
        return torch.cat([change, chroma], dim=1)

    @torch.no_grad()
    def distribution(
        self, small: Tensor, maps: Maps | None, spots: Sequence[Spot] = ()
    ) -> tuple[Tensor, Tensor] | None:
        """How likely each colour of a palette is, without sampling: logits (1, Q, h, w) and the colours (Q, 2) in Lab
        units; None if the model has no palette. The arguments are those of `answer`, for one photo."""
        if not hasattr(self.model, "distribution"):
            return None
        hints = self._told(small, spots)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.model.distribution(small.to(self.device), maps, hints)
        return None if found is None else tuple(part.float().cpu() for part in found)

    @torch.no_grad()
    def mean(self, small: Tensor, maps: Maps | None, spots: Sequence[Spot] = ()) -> Tensor | None:
        """The mean colour in one pass, ab (1, 2, h, w) in the network's range; None if the model has no head for it.
        The arguments are those of `answer`, for one photo."""
        if getattr(self.model, "head", None) is None:
            return None
        L = small.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.model.mean(L, self.model.knowledge(L, maps, self._told(small, spots))).float().cpu()

    def _told(self, small: Tensor, spots: Sequence[Spot]) -> tuple[Tensor, Tensor] | None:
        """Hints in the form that the model takes; None if there are none, or if the model takes none."""
        if not (spots and self.takes_hints):
            return None
        constants = self.model.ab_mean.cpu(), self.model.ab_std.cpu()
        h, w = small.shape[-2:]
        ab, mask = hint_maps(spots, (h, w), *constants, len(small))
        return ab.to(self.device), mask.to(self.device)

    @property
    def takes_hints(self) -> bool:
        """Whether the model was trained with hints; the answers of other models are corrected along the edges of L."""
        return getattr(self.config.model, "hints", False)

    def confidence(self, image: Picture, *, working_size: int | None = None) -> np.ndarray:
        """(H, W) float32 in [0, 1]: the probability that a classification model's colour of each pixel is right.

        A colour is right if it is within 10 Lab units of the truth. Raises UsageError for a model of another method.
        """
        self.check_confidence()
        L = full_lightness(as_photo(image).rgb)
        small = shrink(L, self.working_shape(L.shape[-2:], working_size)).to(self.device)
        return self.at_full_size(self.model.confidence(small, self.look([L])), L.shape[-2:])

    @staticmethod
    def at_full_size(confidence: Tensor, size: tuple[int, int] | torch.Size) -> np.ndarray:
        """Confidence (1, 1, h, w) -> (H, W) float32 at the size of the photo."""
        return F.interpolate(confidence.float().cpu(), tuple(size), mode="bilinear")[0, 0].numpy()

    def faded(self, photo: Photo) -> bool:
        """Whether a photo has neither black nor white, like an old print that has lost its ink."""
        L = full_lightness(photo.rgb)
        return faded(L, white_border(L))

    def check_confidence(self) -> None:
        if not hasattr(self.model, "confidence"):
            raise UsageError(f"A {self.config.model.method} model has no confidence map; use a classification model.")

    def look(self, lightness: Sequence[Tensor]) -> Maps | None:
        """The encoder's feature maps of photos whose views have one shape: it sees the photos themselves, not the
        smaller working pictures. lightness: L (1, 1, H, W) of each. None if the model has no encoder."""
        if self.view_size is None:
            return None
        views = torch.cat([resize(L, view_shape(L.shape[-2:], self.view_size)) for L in lightness])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = self.model.look(views.to(self.device))
        # In one memory format: convolutions round differently in another, and a photo has one answer, however asked.
        return None if maps is None else tuple(part.contiguous() for part in maps)

    @property
    def view_size(self) -> int | None:
        """The short side at which the model's encoder looks at a photo; None without one."""
        return self.config.model.encoder_size if self.config.model.encoder else None

    def shapes(self, size: tuple[int, int], working_size: int | None) -> tuple[tuple[int, int] | None, ...]:
        """The shapes of the pictures that the network sees for a photo (H, W); equal ones fit in one batch."""
        view = None if self.view_size is None else view_shape(size, self.view_size)
        return self.working_shape(size, working_size), view

    def working_shape(self, size: tuple[int, ...], working_size: int | None) -> tuple[int, int]:
        """The shape of the picture that the network sees for a photo (H, W); `working_size` is its short side."""
        sees = self.view_size is not None
        return working_shape(tuple(size), self.config.data.image_size, working_size, sees=sees)


def pick_device(name: str) -> torch.device:
    """The device for `--device`. Raises UsageError if this machine does not have it."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if name == "cuda" and available["cuda"] and "LOCAL_RANK" in os.environ:  # each process has its own GPU
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    if not available.get(name):
        raise UsageError(f"--device {name}: there is no such device here; use --device auto.")
    return torch.device(name)
