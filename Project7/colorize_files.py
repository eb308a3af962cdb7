"""Colours files and folders with a Colorizer: where each answer is written, and what happened to each photo."""

import dataclasses
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from Project7.array_color import in_colour
from Project7.errors import UsageError, sentence
from Project7.photo import DEEP_SUFFIXES, Photo, carried_over, open_photo, photo_digest, save_photo, save_png
from Project7.provenance import OPTIONS, TONE, Provenance, differences, provenance, read_provenance
from Project7.sheet import contact_sheet

Colorizer: TypeAlias = Any  # colorize.Colorizer, or onnx_colorizer.OnnxColorizer where there is no torch

_PIXELS_TOGETHER = 16_000_000  # at most, of all photos that wait for one batch
_SHEET_SIDE = 512  # pixels of the long side of each answer on the contact sheet
LEFT_IN_COLOUR = "it is in colour already (--skip-colour)"


@dataclasses.dataclass(frozen=True)
class Job:
    """One photo, and the files that its answers are written to."""

    source: Path
    targets: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened to a job: "done", "exists" (made in the same way already), "left" or "failed"."""

    job: Job
    kind: str
    text: str = ""  # the reason, or a note
    files: tuple[Path, ...] = ()  # that were written: the answers, and maps and sheets beside them
    seconds: float = 0.0


# -- where to --------------------------------------------------------------------------------------------------------


def plan_outputs(
    found: Sequence[tuple[Path, Path]], output: Path, *, variants: int, confidence: bool = False, suffix: str = ".png"
) -> list[Job]:
    """Jobs for `found`, a list of (file, path relative to its folder), one per photo.

    The answer is written to OUTPUT/<subfolder>/<stem><suffix>, several variants to <stem>-1<suffix> and so on. Photos
    with the same stem keep their full names (a.jpg.png), and folders that hold photos of one name their own
    (OUTPUT/holiday/, OUTPUT/scans/), so that no answer overwrites another. Raises UsageError if an output would
    overwrite an input.
    """
    found = apart(found)
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


def apart(found: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """`found`, with the folders' names before the relative paths if several folders hold photos of the same name."""
    names = Counter(relative for _, relative in found)
    roots = [Path(os.path.abspath(file)).parents[len(relative.parts) - 1] for file, relative in found]
    clashing = {root for root, (_, relative) in zip(roots, found, strict=True) if names[relative] > 1}
    depth = 1  # names of the path that tell the folders apart: holiday, or alps/holiday
    while len({root.parts[-depth:] for root in clashing}) < len(clashing):
        depth += 1
    return [
        (file, Path(*(part for part in root.parts[-depth:] if part != root.anchor), relative))
        if root in clashing
        else (file, relative)
        for root, (file, relative) in zip(roots, found, strict=True)
    ]


def companion_path(job: Job, word: str, suffix: str = ".png") -> Path:
    """The path of a picture beside the answers, such as robin-confidence.png beside robin.png or robin-1.png."""
    first = job.targets[0]
    stem = first.stem.removesuffix("-1") if len(job.targets) > 1 else first.stem
    return first.with_name(f"{stem}-{word}{suffix}")


def confidence_path(job: Job) -> Path:
    return companion_path(job, "confidence")


def targets(folder: Path, name: str, variants: int, suffix: str) -> tuple[Path, ...]:
    if variants == 1:
        return (folder / f"{name}{suffix}",)
    return tuple(folder / f"{name}-{k}{suffix}" for k in range(1, variants + 1))


def settle(
    job: Job, made: Sequence[Provenance], planned: Collection[Path] = (), *, also: Collection[str] = ()
) -> Job | Outcome:
    """Where the answers with these recipes are written. An existing picture stays: an answer that would be the same is
    skipped, and any other gets a name that says what differs (robin-seed1.png). planned: the files of all jobs, whose
    names this one must not take. also: the companions that are wanted (robin-both.png)."""
    ways = [
        differences(before, how) if (before := read_provenance(path)) else None
        for path, how in zip(job.targets, made, strict=True)
        if path.exists()
    ]
    if not ways:
        return job
    if None in ways:
        return Outcome(job, "exists", f"{job.targets[0]} exists, and does not say how it was made; --force replaces it")
    words = next((words for words in ways if words), [])
    if not words:
        if len(ways) < len(job.targets) or not all(companion_path(job, word).exists() for word in also):
            return job
        return Outcome(job, "exists", f"{job.targets[0]} exists, made in the same way; --force makes it anew")
    first, suffix = job.targets[0], job.targets[0].suffix
    name = renamed(companion_path(job, "").stem.removesuffix("-"), "-".join(words))
    while set(others := targets(first.parent, name, len(job.targets), suffix)) & set(planned):
        name += "-again"
    return settle(Job(job.source, others), made, planned, also=also)


def renamed(stem: str, words: str) -> str:
    """robin, hints -> robin-hints; robin-hints, hints -> robin-hints-2, because that name is taken."""
    again = re.fullmatch(rf"(.*-{re.escape(words)})(?:-(\d+))?", stem)
    return f"{again[1]}-{int(again[2] or 1) + 1}" if again else f"{stem}-{words}"


# -- colouring -------------------------------------------------------------------------------------------------------


def colorize_files(
    colorizer: Colorizer,
    jobs: Sequence[Job],
    *,
    seed: int,
    batch_size: int,
    force: bool,
    skip_colour: bool = False,
    **options: Any,
) -> Iterator[Outcome]:
    """Colours files batch by batch. options: those of Colorizer.colorize_photos, and `confidence`.

    A file that cannot be read or written gives an Outcome that says so, and the other files are still coloured.
    """
    planned = {path for job in jobs for path in job.targets}
    batch: list[tuple[Job, Photo]] = []
    for job in jobs:
        try:
            ready = prepared(colorizer, job, planned, seed=seed, force=force, skip_colour=skip_colour, **options)
        except Exception as error:  # whatever is wrong with one photo, the others are coloured
            ready = Outcome(job, "failed", reason(error))
        if isinstance(ready, Outcome):
            yield ready
            continue
        most = batch_size // (len(job.targets) * options.get("candidates", 1))
        if batch and not fits(colorizer, batch, ready[1], most, options.get("working_size")):
            yield from surely(colorizer, batch, seed=seed, batch_size=batch_size, **options)
            batch = []
        batch.append(ready)
    if batch:
        yield from surely(colorizer, batch, seed=seed, batch_size=batch_size, **options)


def surely(
    colorizer: Colorizer, batch: list[tuple[Job, Photo]], *, seed: int, batch_size: int, **options: Any
) -> Iterator[Outcome]:
    """Colours a batch; if that fails, photo by photo and then answer by answer, so that only those photos fail that
    cannot be coloured."""
    done = 0
    try:
        for outcome in colorize_batch(colorizer, batch, seed=seed, batch_size=batch_size, **options):
            done += 1
            yield outcome
    except UsageError:  # what was asked for is wrong for every photo
        raise
    except Exception as error:
        if len(batch) == 1 and (batch_size == 1 or not short_of_memory(error)):
            yield Outcome(batch[0][0], "failed", reason(error))
            return
        for one in batch[done:]:
            size = 1 if len(batch) == 1 else batch_size
            yield from surely(colorizer, [one], seed=seed, batch_size=size, **options)


def reason(error: Exception) -> str:
    """Why a photo could not be coloured, and the cure if there is one."""
    if short_of_memory(error):
        return "there is not enough memory for it; give --batch-size 1, fewer --candidates or a smaller photo"
    return sentence(error)


def short_of_memory(error: Exception) -> bool:
    """Whether an error is a lack of memory: NumPy, and PyTorch on CUDA and on the CPU, each have their own message."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def prepared(
    colorizer: Colorizer,
    job: Job,
    planned: Collection[Path],
    *,
    seed: int,
    force: bool,
    skip_colour: bool,
    **options: Any,
) -> tuple[Job, Photo] | Outcome:
    """The photo and where its answers are written, or why it is not coloured. Raises PhotoError or OSError."""
    photo = None
    if not force:
        newer = any(path.exists() and path.stat().st_mtime < job.source.stat().st_mtime for path in job.targets)
        photo = open_photo(job.source) if newer else None  # else the answer was made from this photo
        made = recipes(colorizer, photo, range(seed, seed + len(job.targets)), **options)
        settled = settle(job, made, planned, also=["confidence"] if options.get("confidence") else [])
        if isinstance(settled, Outcome):
            return settled
        job = settled
    photo = photo or open_photo(job.source)
    if skip_colour and in_colour(photo.rgb):
        return Outcome(job, "left", LEFT_IN_COLOUR)
    return job, photo


def recipes(colorizer: Colorizer, photo: Photo | None, seeds: Sequence[int], **options: Any) -> list[Provenance]:
    """How the answers of these seeds are made. options: those of colorize_photos. photo: None if it was not read."""
    how: dict[str, Any] = {name: options[name] for name in (*TONE, "working_size") if name in options}
    how["hints"] = options.get("hints", ())
    how["options"] = {name: options[name] for name in OPTIONS if name in options}
    digest = photo_digest(photo) if photo else ""
    size = photo.rgb.shape[:2] if photo else (1, 1)
    return [provenance(colorizer, size, digest, seed, **how) for seed in seeds]


def fits(
    colorizer: Colorizer, batch: list[tuple[Job, Photo]], photo: Photo, most: int, working_size: int | None
) -> bool:
    """Whether a photo fits in the batch of waiting photos: the same working shape, and a bounded number of pixels."""
    first, size = batch[0][1].rgb.shape[:2], photo.rgb.shape[:2]
    pixels = sum(p.rgb.shape[0] * p.rgb.shape[1] for _, p in batch) + size[0] * size[1]
    same = colorizer.shapes(size, working_size) == colorizer.shapes(first, working_size)
    return same and len(batch) < most and pixels <= _PIXELS_TOGETHER


def colorize_batch(
    colorizer: Colorizer,
    batch: list[tuple[Job, Photo]],
    *,
    seed: int,
    batch_size: int,
    confidence: bool = False,
    **options: Any,
) -> Iterator[Outcome]:
    """Colours photos together; the network sees at most `batch_size` pictures at a time, except that the candidates of
    one answer stay together."""
    begin = time.perf_counter()
    count = len(batch[0][0].targets)
    seeds = range(seed, seed + count)
    made = [recipes(colorizer, photo, seeds, **options) for _, photo in batch]
    sure: list[Any] = []
    if confidence:
        options["watch_confidence"] = sure.append
    deep = batch[0][0].targets[0].suffix in DEEP_SUFFIXES
    photos = [photo for _, photo in batch]
    answers: list[list[np.ndarray]] = [[] for _ in batch]
    together = max(1, batch_size // (len(batch) * options.get("candidates", 1)))
    for first in range(0, count, together):
        found = colorizer.colorize_photos(photos, seeds=seeds[first : first + together], deep=deep, **options)
        for pictures, more in zip(answers, found, strict=True):
            pictures += more
    seconds = (time.perf_counter() - begin) / len(batch)
    for place, ((job, photo), pictures, how) in enumerate(zip(batch, answers, made, strict=True)):
        begin = time.perf_counter()
        maps = {}
        if confidence:
            mine = sure[0][[place * min(count, together)]]
            maps[confidence_path(job)] = colorizer.at_full_size(mine, photo.rgb.shape[:2])
        said = advice(colorizer, photo, options.get("levels", "off"))
        outcome = write(job, photo, pictures, how, maps, said=said)
        yield dataclasses.replace(outcome, seconds=seconds + time.perf_counter() - begin)


def write(
    job: Job,
    photo: Photo,
    pictures: Sequence[np.ndarray],
    made: Sequence[Provenance],
    maps: Mapping[Path, np.ndarray] | None = None,
    *,
    said: Sequence[str] = (),
) -> Outcome:
    """Writes the answers to a photo, the maps (H, W) in [0, 1], and a contact sheet of several answers.

    said: notes for the user besides those of the photo.
    """
    files = list(job.targets)
    try:
        for path, rgb, how in zip(job.targets, pictures, made, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_photo(path, rgb, text=how.as_text(), **carried_over(photo))
        for path, values in (maps or {}).items():
            save_png(path, np.repeat((values * 255).round().astype(np.uint8)[..., None], 3, axis=2))
            files.append(path)
        if len(pictures) > 1:
            path = companion_path(job, "sheet")
            save_png(path, contact_sheet(pictures, [f"seed {how.seed}" for how in made], side=_SHEET_SIDE))
            files.append(path)
    except Exception as error:  # this photo fails alone
        return Outcome(job, "failed", reason(error))
    return Outcome(job, "done", "; ".join([*photo.notes, *said]), tuple(files))


def advice(colorizer: Colorizer, photo: Photo, levels: str) -> list[str]:
    """Notes on flags that suit this photo."""
    said = []
    if in_colour(photo.rgb):
        said.append("it is in colour already, and its colours were replaced (--skip-colour leaves such photos)")
    if levels == "off" and colorizer.faded(photo):
        said.append("low contrast: --levels auto")
    return said
