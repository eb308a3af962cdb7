"""Colours files one by one with a person's hints, an earlier picture's recipe, or a reference photo.

`colorize_files` is for many photos at once; this module keeps each one open, and can write maps and comparisons beside
it.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from Project7 import color
from Project7.array_color import in_colour
from Project7.colorize import Colorizer
from Project7.colorize_files import (
    LEFT_IN_COLOUR,
    Job,
    Outcome,
    advice,
    companion_path,
    confidence_path,
    reason,
    settle,
    write,
)
from Project7.hints import Hint
from Project7.opened import OpenPhoto
from Project7.photo import DEEP_SUFFIXES, Photo, open_photo, save_png
from Project7.provenance import Provenance
from Project7.reference import Hinted, hints_from
from Project7.sheet import side_by_side

_DOUBT = 40.0  # Lab units of doubt that are shown white in a map of ambiguity


@dataclasses.dataclass(frozen=True)
class Retouch:
    hints: Sequence[Hint] = ()
    like: Provenance | None = None  # its noise, hints and strokes are used if the photo has the same size
    reference: Photo | None = None
    hinted: Hinted | None = None  # its hints are carried over to places that are alike
    side_by_side: bool = False
    ambiguity: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in dataclasses.fields(self))


def retouch_files(
    colorizer: Colorizer,
    jobs: Sequence[Job],
    retouch: Retouch,
    *,
    seed: int,
    force: bool,
    skip_colour: bool = False,
    confidence: bool = False,
    saturation: float = 1.0,
    warmth: float = 0.0,
    mark: bool = False,
    **settings: Any,
) -> Iterator[Outcome]:
    """Like colorize_files, with a `retouch`. settings: further arguments of OpenPhoto."""
    planned = {path for job in jobs for path in job.targets}
    wanted = {"both": retouch.side_by_side, "ambiguity": retouch.ambiguity, "confidence": confidence}
    also = [word for word, asked in wanted.items() if asked]
    for job in jobs:
        begin = time.perf_counter()
        try:
            photo = open_photo(job.source)
            if skip_colour and in_colour(photo.rgb):
                yield Outcome(job, "left", LEFT_IN_COLOUR)
                continue
            opened = open_retouched(colorizer, photo, retouch, **settings)
            opened.saturation, opened.warmth, opened.mark = saturation, warmth, mark
            seeds = range(seed, seed + len(job.targets))
            ready = job if force else settle(job, [opened.provenance(k) for k in seeds], planned, also=also)
            if isinstance(ready, Job):
                ready = answered(ready, opened, retouch, seeds, confidence=confidence)
                ready = dataclasses.replace(ready, seconds=time.perf_counter() - begin)
            yield ready
        except Exception as error:  # concerns only this photo
            yield Outcome(job, "failed", reason(error))


def open_retouched(colorizer: Colorizer, photo: Photo, retouch: Retouch, **settings: Any) -> OpenPhoto:
    """The photo with the hints that are meant for it. Raises UsageError if one lies outside it."""
    like = retouch.like if retouch.like and (retouch.like.height, retouch.like.width) == photo.rgb.shape[:2] else None
    opened = OpenPhoto(colorizer, photo, digest=like.noise if like else None, **settings)
    hints = [hint.as_hint() for hint in like.hints] if like else []
    opened.strokes = like.strokes if like else ()
    opened.tell([*hints, *retouch.hints])
    if retouch.reference is not None:
        opened.tell([*hints_from(opened, retouch.reference), *opened.hints])
    if retouch.hinted is not None:
        opened.tell([*retouch.hinted.hints_for(opened), *opened.hints])
    return opened


def answered(job: Job, opened: OpenPhoto, retouch: Retouch, seeds: Sequence[int], *, confidence: bool) -> Outcome:
    opened.answers(seeds)
    deep = job.targets[0].suffix in DEEP_SUFFIXES
    pictures = [opened.picture(seed, deep=deep) for seed in seeds]
    maps = {}
    if retouch.ambiguity:
        maps[companion_path(job, "ambiguity")] = (opened.ambiguity() / _DOUBT).clip(0, 1)
    if confidence:
        found = opened.colorizer.confidence(opened.photo, working_size=opened.working_size)
        maps[confidence_path(job)] = found
    made = [opened.provenance(seed) for seed in seeds]
    known = advice(opened.colorizer, opened.photo, opened.levels)
    outcome = write(job, opened.photo, pictures, made, maps, said=known)
    if retouch.hinted is not None and not opened.hints:
        unlike = "nothing in it is like the hinted places of --hints-from"
        outcome = dataclasses.replace(outcome, text="; ".join(filter(None, [outcome.text, unlike])))
    if not (retouch.side_by_side and outcome.kind == "done"):
        return outcome
    gray = color.channels_last(color.gray(color.channels_first(opened.photo.rgb)[None]))[0]
    save_png(companion_path(job, "both"), side_by_side([gray, *(opened.picture(seed) for seed in seeds)]))
    return dataclasses.replace(outcome, files=(*outcome.files, companion_path(job, "both")))
