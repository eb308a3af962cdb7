"""Evaluates saved models on a set of photos: measures per photo, their means with intervals, and the protocol.

Two more rows are always added for comparison: gray (ab = 0), and the mean colour of the photos. A model that does not
beat them has learnt nothing. Everything is measured on 8-bit sRGB, as a person sees it.
"""

import dataclasses
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from Project7 import color, metrics
from Project7.answer_config import EvaluateConfig
from Project7.answer_options import model_options
from Project7.atomic_file import as_json, write_text
from Project7.batch import keyed_generator
from Project7.colorize import Colorizer
from Project7.counting import Counting
from Project7.errors import ProjectError, UsageError
from Project7.feature_networks import FeaturesMissing
from Project7.frechet import FRECHET, find_inception, find_networks, frechet
from Project7.hints import Spot
from Project7.image_set import ImageSet
from Project7.methods import METHODS
from Project7.painting import paint, shrink

BANDS = {"dark": (0.0, 33.0), "middle": (33.0, 67.0), "light": (67.0, 100.1)}  # of the true L
RESAMPLES = 1000  # of the bootstrap
PROTOCOL = 3  # to be raised when the same photos and answers give other numbers
_TOGETHER = 64  # photos, or resamples, that are measured at a time
Measures = dict[str, np.ndarray]  # name -> one value per photo (N,)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One model's colour pictures of all photos."""

    name: str
    pictures: np.ndarray  # (K, N, H, W, 3) uint8: K samples
    seconds: float  # per photo and sample; NaN if no network was used
    sha256: str = ""  # of the file of weights; "" if there is none
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # method, sampler, steps ...


# -- answers ---------------------------------------------------------------------------------------------------------


def baselines(photos: ImageSet) -> list[Answer]:
    """The two answers that need no model: gray, and the mean ab of all these photos in every pixel."""
    L, ab = lab_of(np.array(photos.images))
    mean = ab.mean(axis=(0, 2, 3), keepdims=True)
    answers = []
    for name, chroma in (("gray", np.zeros_like(mean)), ("mean-colour", mean)):
        lab = torch.from_numpy(np.concatenate([L, np.broadcast_to(chroma, ab.shape)], axis=1).astype(np.float32))
        answers.append(Answer(name, color.channels_last(color.show(lab))[None], math.nan))
    return answers


@torch.no_grad()
def answer(
    colorizer: Colorizer, photos: ImageSet, settings: EvaluateConfig, progress: Counting | None = None
) -> Answer:
    """Colours every photo `settings.samples` times. The noise of a sample is keyed by seed, sample and photo, so that
    neither the order of the photos nor the size of the batches matters."""
    check_hints(settings, [colorizer])
    model = colorizer.model
    options = model_options(model, settings, settings.samples)
    count, together = len(photos.images), settings.batch_size
    pictures = np.empty((settings.samples, *photos.images.shape), np.uint8)
    spent = 0.0
    for start in range(0, count, together):
        rgb = color.channels_first(np.array(photos.images[start : start + together]))
        names = photos.names[start : start + together]
        begin = time.perf_counter()
        for k in range(settings.samples):
            noise = [generator(settings.seed, k, n) for n in names]
            pictures[k, start : start + together] = colour(colorizer, rgb, noise, names, settings, options)
        spent += time.perf_counter() - begin
        if progress:
            progress(f"colouring with {colorizer.name}", min(start + together, count), count)
    used = {"method": colorizer.config.model.method, **options}
    if settings.hints:
        used["hints"] = settings.hints
    return Answer(colorizer.name, pictures, spent / settings.samples / count, colorizer.sha256, used)


def colour(
    colorizer: Colorizer,
    rgb: Tensor,
    noise: list[torch.Generator],
    names: Sequence[str],
    settings: EvaluateConfig,
    options: dict[str, Any],
) -> np.ndarray:
    """Colours photos (B, 3, H, W) uint8 from their lightness as `colorize` does: (B, H, W, 3) uint8."""
    constants = colorizer.model.ab_mean.cpu(), colorizer.model.ab_std.cpu()
    L, ab_truth = color.split(rgb, *constants)
    size = colorizer.working_shape(L.shape[-2:], None)
    options = options | {"saturation": settings.saturation}
    if settings.hints:  # hints belong to one photo each
        told = color.to_lab_units(shrink(ab_truth, size), *constants)
        parts = [
            colorizer.chroma([L[[k]]], [noise[k]], spots=draw_spots(told[k], settings, name), **options)
            for k, name in enumerate(names)
        ]
        small, ab = (torch.cat(part) for part in zip(*parts, strict=True))
    else:
        small, ab = colorizer.chroma(L.split(1), noise, **options)
    if tuple(L.shape[-2:]) == size:
        return color.channels_last(color.show(color.join(L, ab, *constants)))
    rows = zip(L.split(1), small.split(1), ab.split(1), strict=True)
    return np.stack([paint(*row, *constants) for row in rows])


def draw_spots(ab: Tensor, settings: EvaluateConfig, name: str) -> list[Spot]:
    """The true colours at `settings.hints` random pixels of a photo, the same pixels for every sample and model.

    ab: (2, h, w) in Lab units, the truth; name: of the photo.
    """
    places = torch.randperm(ab[0].numel(), generator=generator(settings.seed, -1, name))[: settings.hints].tolist()
    rows = [divmod(place, ab.shape[-1]) for place in places]
    return [Spot(row, column, (float(ab[0, row, column]), float(ab[1, row, column]))) for row, column in rows]


def generator(seed: int, sample: int, name: str) -> torch.Generator:
    """The source of the noise for one sample of the photo `name`."""
    return keyed_generator(f"{seed}/{sample}/{name}")


# -- measures --------------------------------------------------------------------------------------------------------


def measure(pictures: np.ndarray, truth: np.ndarray, lpips: torch.nn.Module | None = None) -> Measures:
    """pictures (K, N, H, W, 3) and truth (N, H, W, 3), uint8 -> the measures of each photo.

    `best_psnr`, `energy_score`, `diversity` and `mean_ab_mse` use all K samples, the others the first one.
    """
    parts = [
        measure_some(pictures[:, i : i + _TOGETHER], truth[i : i + _TOGETHER], lpips)
        for i in range(0, len(truth), _TOGETHER)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def measure_some(pictures: np.ndarray, truth: np.ndarray, lpips: torch.nn.Module | None) -> Measures:
    first, count = pictures[0], len(pictures)
    L, ab_truth = lab_of(truth)
    ab = np.stack([lab_of(sample)[1] for sample in pictures])  # (K, N, 2, H, W)
    squared = np.square(ab[0] - ab_truth)
    found = {
        "psnr": metrics.psnr(first, truth),
        "ssim": metrics.ssim(first, truth),
        "ab_mse": squared.mean(axis=(1, 2, 3)),
        "ciede2000": metrics.ciede2000(first, truth),
        "colorfulness": metrics.colorfulness(first),
        "colorfulness_truth": metrics.colorfulness(truth),
        "tint_a": (ab[0] - ab_truth)[:, 0].mean(axis=(1, 2)),
        "tint_b": (ab[0] - ab_truth)[:, 1].mean(axis=(1, 2)),
        "energy_score": metrics.energy_score(ab, ab_truth),
    }
    for name, (low, high) in BANDS.items():
        inside = (L[:, 0] >= low) & (L[:, 0] < high)
        found[f"pixels_{name}"] = inside.sum(axis=(1, 2)).astype(float)
        found[f"squared_{name}"] = (squared.mean(axis=1) * inside).sum(axis=(1, 2))
    if count > 1:
        found["best_psnr"] = np.max([metrics.psnr(sample, truth) for sample in pictures], axis=0)
        found["mean_ab_mse"] = np.square(ab.mean(axis=0) - ab_truth).mean(axis=(1, 2, 3))
        found["diversity"] = metrics.diversity(ab)
    if lpips is not None:
        with torch.no_grad():
            both = [color.channels_first(p).float() / 255 for p in (first, truth)]
            found["lpips"] = lpips(*both).numpy()
    return found


def lab_of(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, H, W, 3) uint8 -> L (N, 1, H, W) and ab (N, 2, H, W), Lab units."""
    lab = color.rgb_to_lab(color.channels_first(rgb)).numpy()
    return lab[:, :1], lab[:, 1:]


def summarize(found: Measures) -> dict[str, float]:
    """The numbers of a row of the table: means over the photos, and roots of means."""
    return {name: float(value) for name, value in means(found).items()}


def means(found: Measures) -> dict[str, np.ndarray]:
    """The numbers of a row for measures (..., N), as means over the last axis."""
    mean = {name: values.mean(axis=-1).astype(float) for name, values in found.items()}
    row = {name: mean[name] for name in ("psnr", "ssim", "ciede2000", "colorfulness", "energy_score")}
    row["ab_rmse"] = np.sqrt(mean["ab_mse"])
    row["colorfulness_difference"] = np.abs(mean["colorfulness"] - mean["colorfulness_truth"])
    row["colorfulness_error"] = np.abs(found["colorfulness"] - found["colorfulness_truth"]).mean(axis=-1)
    row |= {"tint_a": mean["tint_a"], "tint_b": mean["tint_b"]}
    for band in BANDS:
        with np.errstate(invalid="ignore"):  # 0 / 0 where no photo has such pixels
            row[f"ab_rmse_{band}"] = np.sqrt(
                found[f"squared_{band}"].sum(axis=-1) / found[f"pixels_{band}"].sum(axis=-1)
            )
    row |= {name: mean[name] for name in ("best_psnr", "diversity", "lpips") if name in mean}
    if "mean_ab_mse" in mean:
        row["ab_rmse_of_mean"] = np.sqrt(mean["mean_ab_mse"])
    return row


def intervals(found: Measures, other: Measures | None = None, *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals by the bootstrap over photos (Efron 1979); of the difference from `other` if given.

    Both are resampled with the same photos, because the difference of two models on the same photos is far better known
    than either model alone. scipy.stats.bootstrap would give NaN if a resample has no dark or light pixels.
    """
    count = len(found["psnr"])
    random = np.random.default_rng(seed)
    rows: list[dict[str, np.ndarray]] = []
    for start in range(0, RESAMPLES, _TOGETHER):
        photos = random.integers(0, count, (min(_TOGETHER, RESAMPLES - start), count))
        row = means({name: values[photos] for name, values in found.items()})
        if other is not None:
            second = means({name: values[photos] for name, values in other.items()})
            row = {name: row[name] - second[name] for name in row if name in second}
        rows.append(row)
    resampled = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return {name: tuple(np.nanquantile(values, (0.025, 0.975)).tolist()) for name, values in resampled.items()}


# -- results ---------------------------------------------------------------------------------------------------------


def evaluate(
    answers: Sequence[Answer],
    photos: ImageSet,
    settings: EvaluateConfig,
    *,
    split: str | None = None,
    progress: Counting | None = None,
) -> tuple[dict[str, Any], dict[str, Measures]]:
    """{"protocol": ..., "rows": [...], "differences": [...]}, as `--json` writes it, and the measures of all photos by
    the name of each answer.

    A difference is between a model and the first model: its interval, and whether the interval excludes 0.
    """
    truth = np.array(photos.images)
    lpips, reason = find_lpips(settings.lpips_weights, truth.shape[1])
    missing = {"lpips": reason} if reason else {}
    networks = find_networks(settings, truth, missing)
    protocol = make_protocol(photos, settings, split=split)
    protocol |= {key: networks[key].about if key in networks else None for key in FRECHET} | {"missing": missing}
    found: dict[str, Measures] = {}
    rows = []
    for number, answer in enumerate(answers, start=1):
        found[answer.name] = measure(answer.pictures, truth, lpips)
        distances = {key: frechet(network, answer.pictures[0]) for key, network in networks.items()}
        rows.append(make_row(answer, found[answer.name], distances))
        if progress:
            progress("measuring", number, len(answers))
    models = [answer.name for answer in answers if answer.sha256]
    differences = []
    for name in models[1:]:
        between = intervals(found[name], found[models[0]])
        differences += [
            {"model": name, "to": models[0], "measure": key, "interval": [low, high], "differs": not low <= 0 <= high}
            for key, (low, high) in between.items()
        ]
    return {"protocol": protocol, "rows": rows, "differences": differences}, found


def make_row(answer: Answer, found: Measures, distances: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"model": answer.name, **summarize(found), **dict.fromkeys(FRECHET), **distances}
    row.setdefault("lpips", None)
    row["intervals"] = {name: list(interval) for name, interval in intervals(found).items()}
    row["seconds_per_photo"] = None if math.isnan(answer.seconds) else answer.seconds
    if answer.sha256:
        row |= {"model_sha256": answer.sha256, "settings": answer.settings}
    return row


def find_lpips(weights: str | None, size: int) -> tuple[torch.nn.Module | None, str]:
    """LPIPS with AlexNet, from the file `weights` or torchvision's cache, and ""; or None and the reason. Nothing is
    downloaded."""
    from Project7.perceptual_loss import cached, load_lpips

    if size < 32:
        return None, f"photos of {size} px are too small for AlexNet"
    if weights is None and not cached("AlexNet").exists():
        return None, f"no {cached('AlexNet').name} in torchvision's cache; give --lpips-weights FILE"
    return load_lpips("alex", weights), ""


def make_protocol(photos: ImageSet, settings: EvaluateConfig, *, split: str | None) -> dict[str, Any]:
    """Everything that the numbers depend on, except the models and the networks that measure."""
    options = [name for method in METHODS.values() for name in method.OPTIONS]
    method_settings = [name for name in options if name in EvaluateConfig.model_fields]
    libraries = ("torch", "diffusers", "numpy", "scikit-image", "torchmetrics")
    versions = {name: importlib.metadata.version(name) for name in libraries}
    return {
        "version": PROTOCOL,
        "photos": len(photos.images),
        "fingerprint": photos.fingerprint,
        "split": split,
        "size": int(photos.images.shape[1]),
        "crop": "centre square, antialiased",
        "gray": "the photo's own Lab L, unrounded",
        "working size": "as colorize: the model's own; of a smaller photo its own, half of the model's at least",
        **{name: getattr(settings, name) for name in ("samples", "seed", "saturation", *method_settings)},
        "precision": settings.precision,
        **({"hints": settings.hints} if settings.hints else {}),
        "psnr": f"8-bit RGB, a photo, at most {metrics.PSNR_CAP:g} dB, then the mean",  # results are compared by it
        "energy_norm": "root mean square over a photo's ab, K (K - 1) pairs",
        "versions": versions,
    }


def check_hints(settings: EvaluateConfig, colorizers: Sequence[Colorizer]) -> None:
    """Raises UsageError if hints are asked for but a model was trained without them."""
    deaf = [colorizer.name for colorizer in colorizers if not colorizer.takes_hints]
    if settings.hints and deaf:
        raise UsageError(f"--hints {settings.hints}: {', '.join(deaf)} trained without colour hints; leave it out.")


def check_colours(photos: ImageSet, data: str) -> None:
    """Raises UsageError if all photos are gray, so that there is no true colour to compare with."""
    starts = range(0, len(photos.images), _TOGETHER)
    if all((metrics.colorfulness(photos.images[i : i + _TOGETHER]) < metrics.ALL_GRAY).all() for i in starts):
        raise UsageError(f"All {len(photos.images)} photos of --data {data} are gray; measure with photos in colour.")


def check_files(settings: EvaluateConfig) -> None:
    """Raises UsageError if a named file of weights cannot be used, before minutes are spent on colouring."""
    for name in ("lpips_weights", "inception_weights"):
        path = getattr(settings, name)
        if path and not Path(path).expanduser().is_file():
            raise UsageError(f"--{name.replace('_', '-')} {path} does not exist; name another, or leave it out.")
    if settings.inception_weights:
        try:
            find_inception(settings.inception_weights)
        except FeaturesMissing as error:
            raise UsageError(f"--inception-weights {settings.inception_weights}: {error}.") from None


# -- files -----------------------------------------------------------------------------------------------------------


def write_result(path: Path, result: dict[str, Any]) -> None:
    write_text(path, json.dumps(as_json(result), indent=1) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file that `--json` wrote. Raises ProjectError for any other file."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        usable = isinstance(result["protocol"], dict) and all(isinstance(row["model"], str) for row in result["rows"])
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a file that `project7 evaluate --json FILE` wrote.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ProjectError(f"{path} is not a result of `project7 evaluate --json`; measure anew.") from None
    if not usable:
        raise ProjectError(f"{path} is not a result of `project7 evaluate --json`.")
    return result


def joined(results: Sequence[tuple[str, dict[str, Any]]], *, despite: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of several results (file, result) for one table.

    Raises UsageError, with what differs, if the protocols differ in more than the versions and the keys in `despite`.
    """
    first_file, first = results[0]
    for file, result in results[1:]:
        keys = (set(first["protocol"]) | set(result["protocol"])) - {"versions", "missing", *despite}
        pairs = {k: (first["protocol"].get(k), result["protocol"].get(k)) for k in keys}
        unlike = sorted(k for k, pair in pairs.items() if pair[0] != pair[1] and not (k in FRECHET and None in pair))
        if unlike:
            said = "; ".join(f"{k}: {pairs[k][0]!r} and {pairs[k][1]!r}" for k in unlike)
            raise UsageError(
                f"{first_file} and {file} were not measured alike ({said}); measure them anew with the same settings, "
                f"or name what may differ: --despite {' '.join(unlike)}."
            )
    rows: list[dict[str, Any]] = []
    for file, result in results:
        for row in result["rows"]:
            name = row["model"] if "model_sha256" not in row else f"{row['model']} ({Path(file).name})"
            if name not in {r["model"] for r in rows}:  # gray and mean-colour are the same in every result
                rows.append({**row, "model": name})
    return rows


def verdicts(differences: Sequence[dict[str, Any]]) -> list[str]:
    """One sentence per pair of models, for each of the measures that matter most."""
    lines = []
    for found in differences:
        if found["measure"] in ("energy_score", "psnr", "ab_rmse"):
            low, high = found["interval"]
            word = "differ" if found["differs"] else "do not differ beyond chance"
            pair = f"{found['model']} and {found['to']}"
            lines.append(f"{pair} {word} in {found['measure']}: {low:+.3f} to {high:+.3f} (95 %, the same photos)")
    return lines


# -- pictures --------------------------------------------------------------------------------------------------------


def worst(found: Measures, count: int = 10) -> np.ndarray:
    """The indices of the photos with the largest error of ab in the first sample, the worst first."""
    return np.argsort(-found["ab_mse"])[:count]


def class_bias(found: Measures, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class of Tiny ImageNet with the errors of its mean colour and colorfulness, the worst class first."""
    rows: list[dict[str, Any]] = []
    for label in sorted(set(labels) - {""}):
        inside = np.array(labels) == label
        row = {name: float(found[name][inside].mean()) for name in ("tint_a", "tint_b", "psnr")}
        truth = float(found["colorfulness_truth"][inside].mean())
        less = float(found["colorfulness"][inside].mean()) - truth
        rows.append({"class": label, "photos": int(inside.sum()), **row, "colorfulness": less, "truth": truth})
    return sorted(rows, key=lambda row: -math.hypot(row["tint_a"], row["tint_b"]))
