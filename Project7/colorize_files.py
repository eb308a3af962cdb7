"""Colours files and folders with a Colorizer: where each answer is written, and what happened to each photo."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from Project7.colorize import Colorizer, at_full_size
from Project7.errors import ProjectError, UsageError, sentence
from Project7.opened import provenance
from Project7.painting import photo_digest
from Project7.photo import Photo, open_photo, save_photo, save_png
from Project7.provenance import OPTIONS, TONE, Provenance

_PIXELS_TOGETHER = 16_000_000  # of the photos that wait for one batch


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo, and the files that its answers are written to."""

    source: Path
    targets: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to a job: "done", "exists" (the file was not replaced) or "failed". text: the reason, or a note."""

    job: Job
    kind: str
    text: str = ""


def plan_outputs(
    found: Sequence[tuple[Path, Path]], output: Path, *, variants: int, confidence: bool = False, suffix: str = ".png"
) -> list[Job]:
    """Jobs for `found`, which is (file, path relative to its folder) of each photo.

    The answer is written to OUTPUT/<subfolder>/<stem><suffix>, several variants to <stem>-1<suffix> and so on. Photos
    with the same stem keep their full names (a.jpg.png), so that no answer overwrites another. Raises UsageError if
    even these are the same, or if an output would overwrite an input.
    """
    short = [targets(output / relative.parent, relative.stem, variants, suffix) for _, relative in found]
    names = Counter(path for paths in short for path in paths)
    jobs = [
        Job(
            file,
            paths
            if all(names[p] == 1 for p in paths)
            else targets(output / relative.parent, relative.name, variants, suffix),
        )
        for (file, relative), paths in zip(found, short, strict=True)
    ]
    sources = {file.resolve() for file, _ in found}
    taken: set[Path] = set()
    for job in jobs:
        for path in (*job.targets, confidence_path(job)) if confidence else job.targets:
            if path in taken:
                raise UsageError(
                    f"{job.source}: another photo would be written to {path} as well; use another --output for it."
                )
            if path.resolve() in sources:
                raise UsageError(f"{path} is one of the photos to be coloured; use another --output.")
            taken.add(path)
    return jobs


def confidence_path(job: Job) -> Path:
    return job.targets[0].with_name(f"{job.targets[0].stem}-confidence.png")


def targets(folder: Path, name: str, variants: int, suffix: str) -> tuple[Path, ...]:
    if variants == 1:
        return (folder / f"{name}{suffix}",)
    return tuple(folder / f"{name}-{k}{suffix}" for k in range(1, variants + 1))


def colorize_files(
    colorizer: Colorizer, jobs: Sequence[Job], *, seed: int, batch_size: int, force: bool, **options: Any
) -> Iterator[Outcome]:
    """Colours files batch by batch. options: those of Colorizer.colorize_photos, and `confidence`.

    A file that cannot be read or written gives an Outcome that says so, and the other files are coloured all the same.
    """
    batch: list[tuple[Job, Photo]] = []
    for job in jobs:
        if not force and all(path.exists() for path in job.targets):
            yield Outcome(job, "exists", f"{job.targets[0]} exists; --force makes it anew")
            continue
        try:
            photo = open_photo(job.source)
        except (ProjectError, OSError) as error:
            yield Outcome(job, "failed", sentence(error))
            continue
        most = batch_size // (len(job.targets) * options.get("candidates", 1))
        if batch and not fits(colorizer, batch, photo, most, options.get("working_size")):
            yield from colorize_batch(colorizer, batch, seed=seed, **options)
            batch = []
        batch.append((job, photo))
    if batch:
        yield from colorize_batch(colorizer, batch, seed=seed, **options)


def fits(
    colorizer: Colorizer, batch: list[tuple[Job, Photo]], photo: Photo, most: int, working_size: int | None
) -> bool:
    """Whether a photo fits in the batch of waiting photos: the same working shape, and little memory in all."""
    first, size = batch[0][1].rgb.shape[:2], photo.rgb.shape[:2]
    pixels = sum(p.rgb.shape[0] * p.rgb.shape[1] for _, p in batch) + size[0] * size[1]
    same = colorizer.shapes(size, working_size) == colorizer.shapes(first, working_size)
    return same and len(batch) < most and pixels <= _PIXELS_TOGETHER


def colorize_batch(
    colorizer: Colorizer, batch: list[tuple[Job, Photo]], *, seed: int, confidence: bool = False, **options: Any
) -> Iterator[Outcome]:
    count = len(batch[0][0].targets)
    seeds = range(seed, seed + count)
    how = {name: options[name] for name in (*TONE, "working_size") if name in options}
    how["options"] = {name: options[name] for name in OPTIONS if name in options}
    sure: list[Tensor] = []
    if confidence:
        options["watch_confidence"] = sure.append
    answers = colorizer.colorize_photos([photo for _, photo in batch], seeds=seeds, **options)
    for place, ((job, photo), pictures) in enumerate(zip(batch, answers, strict=True)):
        digest = photo_digest(photo)
        made = [provenance(colorizer, photo, digest, seed, **how) for seed in seeds]
        maps = {}
        if confidence:
            maps[confidence_path(job)] = at_full_size(sure[0][[place * count]], photo.rgb.shape[:2])
        yield write(job, photo, pictures, made, maps)


def write(
    job: Job,
    photo: Photo,
    pictures: Sequence[np.ndarray],
    made: Sequence[Provenance],
    maps: Mapping[Path, np.ndarray] | None = None,
) -> Outcome:
    """Writes the answers to a photo, and maps (H, W) in [0, 1] beside them."""
    try:
        for path, rgb, how in zip(job.targets, pictures, made, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_photo(path, rgb, alpha=photo.alpha, exif=photo.exif, text=how.as_text())
        for path, values in (maps or {}).items():
            save_png(path, np.repeat((values * 255).round().astype(np.uint8)[..., None], 3, axis=2))
    except (ProjectError, OSError) as error:
        return Outcome(job, "failed", sentence(error))
    return Outcome(job, "done", "; ".join(photo.notes))
