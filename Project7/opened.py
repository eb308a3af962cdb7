"""A photo that stays open: several answers, hints, likely colours, and where a model is unsure.

What the network sees of the photo is computed once, so that a new hint costs only the denoising.
"""

import copy
import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from Project7 import color
from Project7.answer_config import FAST_STEPS
from Project7.batch import keyed_generator
from Project7.brush import Stroke, coverage
from Project7.encoder import Maps
from Project7.errors import UsageError
from Project7.hints import Hint, Spot, find_spots, loosened, nearness, surfaces
from Project7.mark import marked
from Project7.painting import no_larger, shrink
from Project7.palette import class_spread, unlike_colours
from Project7.photo import DEEP_SUFFIXES, Photo, carried_over, photo_digest, save_photo, to_image
from Project7.provenance import TONE, Provenance, provenance
from Project7.scan import Lightness
from Project7.settings import explain

_APART = 12.0  # Lab units: colours closer than this make one suggestion
_SAMPLES = 4  # answers that stand in for the distribution of a model that has none
_CLICKS = 24  # places that are compared for the best next click
_KEPT = 64  # largest number of answers that are kept
_SHOWN = 1024  # pixels of the long side in a notebook


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a model answers to an open photo, before its strength, its warmth and the hints' surfaces."""

    seed: int
    ab: Tensor  # (2, h, w) at the working size, in the network's range; (3, h, w) if a change of L precedes ab


class OpenPhoto:
    """A photo and the model that colours it.

    >>> photo = Colorizer.load("base").open("photo.jpg")
    >>> photo.hint(120, 80, "#2a5caa").save("colour.png")
    >>> photo.mix(2, [(10, 20), (300, 25)], radius=40).save("mixed.png", seed=1)  # seed 2's sky in seed 1
    """

    def __init__(
        self,
        colorizer: Any,  # a Colorizer
        photo: Photo,
        *,
        working_size: int | None = None,
        denoise: float = 0.0,
        levels: str = "off",
        lightness: Tensor | None = None,
        digest: str | None = None,
        **options: Any,
    ):
        """lightness: L (1, 1, H, W) of the photo, if it is known already. digest: that of another picture whose noise
        is to be used. options: the method's own, as for Colorizer.colorize."""
        self.colorizer, self.photo, self.options = colorizer, photo, options
        self.hints: tuple[Hint, ...] = ()
        self.strokes: tuple[Stroke, ...] = ()
        self.seed, self.saturation, self.warmth, self.mark = 0, 1.0, 0.0, False
        self.working_size, self.digest = working_size, digest or photo_digest(photo)
        self.denoise, self.levels = denoise, levels
        self.lightness = Lightness(photo, denoise=denoise, levels=levels, lightness=lightness)
        self.L, self.seen = (
            self.lightness.L,
            self.lightness.seen,
        )  # (1, 1, H, W): the lightness of the result, and the lightness that the network sees
        self.small = shrink(self.seen, colorizer.working_shape(self.size, working_size))  # (1, 1, h, w)
        self._answers: dict[Any, Answer] = {}
        self._near: dict[tuple[int, int], Tensor] = {}

    def __repr__(self) -> str:
        height, width = self.size
        return f"OpenPhoto({width} x {height}, {len(self.hints)} hints, seed {self.seed}, {self.colorizer!r})"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.photo.rgb.shape[:2]

    @functools.cached_property
    def border(self) -> Tensor | None:
        """(1, 1, h, w): the share of each place that is the white border of a print, which stays neutral."""
        return None if self.lightness.border is None else self.lightness.border_at(tuple(self.small.shape[-2:]))

    @functools.cached_property
    def maps(self) -> Maps | None:
        """The maps of the model's encoder; None if it has none."""
        return self.colorizer.look([self.seen])

    # -- hints -------------------------------------------------------------------------------------------------------

    def hint(self, x: float, y: float, colour: str) -> "OpenPhoto":
        """Gives the pixel (x, y) a colour ("#rrggbb" or a CSS name). Raises UsageError if the pixel lies outside the
        photo or the colour is unknown."""
        return self.tell([*self.hints, (x, y, colour)])

    def tell(self, hints: Sequence[Hint]) -> "OpenPhoto":
        """Replaces all hints by these. Raises UsageError as `hint` does."""
        find_spots(hints, self.size, self.small)
        self.hints = tuple(hints)
        return self

    @property
    def spots(self) -> list[Spot]:
        """The hints in the working picture."""
        return find_spots(self.hints, self.size, self.small)

    def near(self, spot: Spot) -> Tensor:
        """(h, w) in (0, 1]: how much each place belongs to the surface of a spot."""
        place = spot.row, spot.column
        if place not in self._near:
            (self._near[place],) = nearness(self.small, [spot])
        return self._near[place]

    def shares(self) -> Tensor | None:
        """(K, h, w): the share of each hint in each place; None without hints."""
        spots = self.spots
        return surfaces([self.near(spot) for spot in spots]) if spots else None

    def mix(self, seed: int, points: Sequence[tuple[float, float]], radius: float) -> "OpenPhoto":
        """Paints the answer of `seed` over the picture with a soft brush along points (x, y); points and radius are in
        pixels of the photo. Raises UsageError if the stroke is not valid."""
        try:
            stroke = Stroke(seed=seed, points=tuple(points), radius=radius)
        except ValidationError as error:
            raise UsageError(f"The stroke is wrong: {explain(error).replace('--', '')}.") from None
        self.strokes = (*self.strokes, stroke)
        return self

    # -- answers -----------------------------------------------------------------------------------------------------

    def answers(self, seeds: Sequence[int] = range(_SAMPLES), *, watch: Any = None, **options: Any) -> list[Answer]:
        """One answer for each seed, kept until the hints or the options change. watch: see diffusion_model.Watch."""
        options = self.options | options
        keys = {seed: (seed, self._told(), tuple(sorted(options.items()))) for seed in seeds}
        missing = [seed for seed, key in keys.items() if key not in self._answers]
        if missing:
            extra = {"watch": watch} if watch is not None and "steps" in self.colorizer.model.OPTIONS else {}
            count, maps = len(missing), self.maps
            if self._told() and self.knows:  # the answers without hints are needed as well, and are kept
                bare = copy.copy(self).tell(()).answers(missing, watch=watch, **options)
                extra["untold"] = torch.stack([answer.ab for answer in bare])
            ab = self.colorizer.answer(
                self.small.expand(count, -1, -1, -1),
                None if maps is None else tuple(part.expand(count, -1, -1, -1) for part in maps),
                [keyed_generator(f"{seed}/{self.digest}") for seed in missing],
                spots=self.spots,
                **options,
                **extra,
            )
            self._answers |= {keys[seed]: Answer(seed, one) for seed, one in zip(missing, ab, strict=True)}
        found = [self._answers.pop(keys[seed]) for seed in seeds]
        self._answers |= {keys[answer.seed]: answer for answer in found}  # the most recently used last
        while len(self._answers) > _KEPT:
            self._answers.pop(next(iter(self._answers)))
        return found

    def _told(self) -> tuple[Hint, ...]:
        """The hints that the network is given; none if it does not take hints."""
        return self.hints if self.colorizer.takes_hints else ()

    def latest(self, seed: int) -> Answer | None:
        """The last answer to this seed, whatever its hints were: it is shown while the next one is made."""
        wanted = tuple(sorted(self.options.items()))
        kept = (
            answer for (of, _, options), answer in reversed(self._answers.items()) if (of, options) == (seed, wanted)
        )
        return next(kept, None)

    def first(self) -> Answer | None:
        """The mean colour in one pass, to be shown until the answers are there; None if the model has no head for
        it."""
        ab = self.colorizer.mean(self.small, self.maps, self.spots)
        return None if ab is None else Answer(self.seed, ab[0])

    def estimate(self, x_0: Tensor) -> Answer:
        """The answer that is forming: the first picture of the x_0 that `watch` receives at a step."""
        L = self.small.to(x_0.device)
        return Answer(self.seed, self.colorizer.model.expand(x_0[:1].float(), L)[0].cpu())

    def chroma(self, answer: Answer) -> Tensor:
        """(1, 2 or 3, h, w) in the network's range: an answer as it is shown, with its hints, strength and warmth."""
        tone = {"saturation": self.saturation, "warmth": self.warmth}
        told = {"spots": self.spots, "shares": self.shares(), "border": self.border}
        return self.colorizer.finish(answer.ab[None], self.small, **told, **tone)

    def mixed(self, seed: int) -> Tensor:
        """(1, 2 or 3, h, w): `chroma` of the answer of a seed, with the strokes of others painted over it; at the size
        of `fields`, so that a page that mixes those paints the same."""
        answers = self.answers(list(dict.fromkeys([seed, *(stroke.seed for stroke in self.strokes)])))
        ab = {answer.seed: no_larger(self.chroma(answer), self.size) for answer in answers}
        mixed = ab[seed]
        for stroke in self.strokes:
            share = torch.from_numpy(coverage(stroke, self.size, mixed.shape[-2:]))
            mixed = torch.lerp(mixed, ab[stroke.seed], share)
        return mixed

    def fields(self, answer: Answer) -> Tensor:
        """(7, h, w): everything that a page needs to make the picture itself, at any saturation s and warmth w.

        Channels: L; change of L; a and b of the answer; a and b of the hints; share of the hints. In Lab units,
        ab = s * answer + w * (0, 1 - share) + hints. The size is that of the working picture, or of the photo if that
        is smaller.
        """
        constants = self.colorizer.model.ab_mean.cpu(), self.colorizer.model.ab_std.cpu()
        ab = answer.ab[None, -2:]
        if self.border is not None:
            ab = color.saturate(ab, *constants, 1 - self.border)
        ab = color.to_lab_units(ab, *constants)
        change = color.level(answer.ab[:-2]) - color.level(torch.zeros(())) if len(answer.ab) == 3 else ab[0, :1] * 0
        shares, spots = self.shares(), self.spots
        told, share = ab[0] * 0, ab[0, :1] * 0
        if shares is not None:
            ab = loosened(ab, shares)
            told = torch.einsum("khw,kc->chw", shares, torch.tensor([spot.ab for spot in spots]))
            share = shares.sum(dim=0, keepdim=True)
        fields = torch.cat([color.level(self.lightness.guide(self.small)[0]), change, ab[0], told, share])
        return no_larger(fields[None], self.size)[0]

    # -- what it knows -----------------------------------------------------------------------------------------------

    @property
    def knows(self) -> bool:
        """Whether the model itself predicts how likely colours are: suggestions then need no denoising."""
        return self._distribution(()) is not None

    def _distribution(self, spots: Sequence[Spot]) -> tuple[Tensor, Tensor] | None:
        return self.colorizer.distribution(self.small, self.maps, spots)

    def _samples(self) -> Tensor:
        """(K, 2, h, w) in Lab units: answers that stand in for a distribution."""
        there = [answer for (_, hints, _), answer in self._answers.items() if hints == self._told()][-2 * _SAMPLES :]
        if len(there) >= _SAMPLES:
            return self._in_lab(there)
        fast = {"steps": FAST_STEPS, "candidates": 1} if "steps" in self.colorizer.model.OPTIONS else {}
        return self._in_lab(self.answers(range(_SAMPLES), **fast))

    def _in_lab(self, answers: Sequence[Answer]) -> Tensor:
        ab = torch.stack([answer.ab[-2:] for answer in answers])
        return color.to_lab_units(ab, self.colorizer.model.ab_mean.cpu(), self.colorizer.model.ab_std.cpu())

    def suggest(self, x: float, y: float, count: int = 6) -> list[tuple[str, float]]:
        """Distinct colours that are likely at the pixel (x, y), at its lightness: "#rrggbb" and the probability of
        each. Hints elsewhere are taken into account; a hint at this pixel is not."""
        (here,) = find_spots([(x, y, "#808080")], self.size, self.small)
        others = [spot for spot in self.spots if max(abs(spot.row - here.row), abs(spot.column - here.column)) > 2]
        if (found := self._distribution(others)) is not None:
            logits, colours = found
            h, w = logits.shape[-2:]
            row, column = (here.row * h // self.small.shape[-2], here.column * w // self.small.shape[-1])
            shares = torch.softmax(logits[0, :, row, column], dim=0)
        else:
            samples = self._samples()
            colours, shares = samples[:, :, here.row, here.column], torch.full((len(samples),), 1 / len(samples))
        level = color.level(self.small[0, 0, here.row, here.column])
        lab = torch.cat([level.expand(len(colours), 1), colours], dim=1).T[..., None]  # (3, Q, 1)
        shown = color.into_gamut(lab)[1:, :, 0].T
        likely = unlike_colours(shares, shown, count, _APART)
        return [(as_hex(float(level), ab), share) for ab, share in likely]

    def doubt(self) -> Tensor:
        """(h, w) in Lab units: the spread of the likely colours of each place around their mean, less near a hint."""
        spots = self.spots
        if (found := self._distribution(spots)) is not None:
            spread = F.interpolate(class_spread(*found), self.small.shape[-2:], mode="bilinear")[0, 0]
        else:
            spread = self._samples().var(dim=0, correction=0).sum(dim=0).sqrt()
        return spread * (1 - torch.stack([self.near(spot) for spot in spots]).amax(dim=0)) if spots else spread

    def ambiguity(self) -> np.ndarray:
        """(H, W) float32 in Lab units: `doubt` at full size."""
        return F.interpolate(self.doubt()[None, None], self.size, mode="bilinear")[0, 0].numpy()

    def best_click(self) -> tuple[int, int]:
        """The pixel (x, y) where one hint removes the most doubt: the sum of the squared doubt over its surface."""
        square = self.doubt().square()
        h, w = square.shape
        side = max(1, min(h, w) // 8)
        peaks, places = F.max_pool2d(square[None, None], side, ceil_mode=True, return_indices=True)
        _, order = peaks.flatten().topk(min(_CLICKS, peaks.numel()))
        spots = [Spot(place // w, place % w, (0.0, 0.0)) for place in places.flatten()[order].tolist()]
        best = max(spots, key=lambda spot: float((square * self.near(spot)).sum()))
        return self.pixel(best)

    def pixel(self, spot: Spot) -> tuple[int, int]:
        """(x, y) of the middle of a spot in the photo."""
        (height, width), (h, w) = self.size, self.small.shape[-2:]
        return int((spot.column + 0.5) * width / w), int((spot.row + 0.5) * height / h)

    # -- pictures ----------------------------------------------------------------------------------------------------

    def picture(self, seed: int | None = None, *, deep: bool = False) -> np.ndarray:
        """(H, W, 3) uint8: the answer of a seed at full size; uint16 if `deep` and the photo has 16 bits."""
        chroma = self.mixed(self.seed if seed is None else seed)
        constants = self.colorizer.model.ab_mean.cpu(), self.colorizer.model.ab_std.cpu()
        rgb = self.lightness.paint(self.small, chroma, *constants, deep=deep)
        return marked(rgb) if self.mark else rgb

    def image(self, seed: int | None = None) -> PIL.Image.Image:
        return to_image(self.picture(seed), alpha=self.photo.alpha)

    def provenance(self, seed: int | None = None) -> Provenance:
        """How the picture of a seed is made, as its file says."""
        settings = {name: getattr(self, name) for name in (*TONE, "working_size", "options", "strokes")}
        seed = self.seed if seed is None else seed
        return provenance(self.colorizer, self.size, self.digest, seed, hints=self.hints, **settings)

    def save(self, path: str | Path, seed: int | None = None) -> None:
        """Writes the picture at full size; the file also says how it was made."""
        picture = self.picture(seed, deep=Path(path).suffix in DEEP_SUFFIXES)
        save_photo(Path(path), picture, text=self.provenance(seed).as_text(), **carried_over(self.photo))

    def _repr_png_(self) -> bytes:
        """What a notebook shows, at most 1,024 pixels wide or high."""
        image, content = self.image(), io.BytesIO()
        image.thumbnail((_SHOWN, _SHOWN))
        image.save(content, "PNG")
        return content.getvalue()


def as_hex(level: float, ab: Sequence[float]) -> str:
    """L (0 to 100) and ab in Lab units -> "#rrggbb"."""
    rgb = color.show(torch.tensor([level, *ab])[:, None, None])[:, 0, 0]
    return "#" + "".join(f"{value:02x}" for value in rgb.tolist())
