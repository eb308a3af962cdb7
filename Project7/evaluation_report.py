"""The report on an evaluation: the table of measures, sheets of pictures, the worst photos and the classes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from Project7.atomic_file import write_text
from Project7.evaluate import Answer, Measures, class_bias, worst
from Project7.image_set import ImageSet
from Project7.photo import save_png
from Project7.sheet import sheet

_FINE = ("ssim", "seconds_per_photo", "lpips", "frechet_judge")  # measures shown with three decimals
_HIGHER = ("psnr", "ssim", "best_psnr")  # higher is better; for the others with a direction, lower is better
_NO_DIRECTION = ("colorfulness", "tint_a", "tint_b", "diversity")
_NETWORKS = ("lpips", "fid", "frechet_judge")  # n/a if their weights are missing
_MAIN = [
    "psnr", "ab_rmse", "ciede2000", "energy_score", "colorfulness", "colorfulness_difference", "lpips", "frechet_judge",
]  # fmt: skip
_ALL = [
    "psnr", "ssim", "ab_rmse", "ciede2000", "colorfulness", "colorfulness_difference", "tint_a", "tint_b",
    "energy_score", "best_psnr", "ab_rmse_of_mean", "diversity", "lpips", "fid", "frechet_judge", "ab_rmse_dark",
    "ab_rmse_middle", "ab_rmse_light", "seconds_per_photo",
]  # fmt: skip
_WITH_INTERVALS = 4  # columns that fit beside their intervals
_STRENGTHS = ((0.6, "much paler than"), (0.85, "paler than"), (1.15, "as strong as"), (1.4, "stronger than"))


def evaluation_table(rows: list[dict[str, Any]], *, whole: bool = True, unicode: bool = True) -> Table:
    """A table with the rows of a result as columns, with all measures or the eight that matter. Brackets hold half the
    width of the 95 % interval; an arrow shows which direction is better, * the best column."""
    names = _ALL if whole else _MAIN
    shown = [name for name in names if any(row.get(name) is not None for row in rows) or name in _NETWORKS]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(Text(row["model"]), justify="right", overflow="fold")
    for name in shown:
        label = "frechet distance" if name == "frechet_judge" else name.replace("_", " ")
        label += " (JudgeResNet)" if name == "frechet_judge" and whole else ""
        arrow = "" if name in _NO_DIRECTION else ("↑↓" if unicode else "+-")[name not in _HIGHER]
        best = best_of(rows, name)
        bare = not whole and len(rows) > _WITH_INTERVALS
        cells = (_measure(row, name, bare=bare) + (" *" if row is best else "  ") for row in rows)
        table.add_row(f"{label} {arrow}", *cells)
    return table


def best_of(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The best row by a measure; None if the measure has no direction, or only one row has it."""
    there = [row for row in rows if row.get(name) is not None]
    if name in _NO_DIRECTION or len(there) < 2:
        return None
    return (max if name in _HIGHER else min)(there, key=lambda row: row[name])


def in_words(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence per model on the strength of its colours and whether they are in the right place, and if gray beats
    a model in PSNR, why that can happen."""
    gray = next((row for row in rows if row["model"] == "gray"), None)
    models = [row for row in rows if "model_sha256" in row]
    if gray is None or not models:
        return []
    truth = gray["colorfulness"] + gray["colorfulness_difference"]
    said = []
    for row in models:
        ratio = row["colorfulness"] / max(truth, 1e-6)
        strength = next((words for most, words in _STRENGTHS if ratio < most), "much stronger than")
        nearer = row["ab_rmse"] < gray["ab_rmse"]
        where = "and nearer to them than gray is" if nearer else "but in the wrong place so often that gray is nearer"
        said.append(
            f"{row['model']}: colours {strength} the truth's ({row['colorfulness']:.0f} against {truth:.0f}), "
            f"{where} (ab rmse {row['ab_rmse']:.1f} against {gray['ab_rmse']:.1f})."
        )
    if beaten := [row["model"] for row in models if row["psnr"] < gray["psnr"]]:
        said.append(
            f"Gray has a higher PSNR than {', '.join(beaten)}: PSNR punishes a vivid colour in the wrong place by the "
            "square, and no colour much less; look at colorfulness, at the Fréchet distance and at --pictures as well."
        )
    return said


def reasons(missing: dict[str, str]) -> list[str]:
    """One line per measure that is n/a, with the reason."""
    return [f"{name.replace('_', ' ')} is n/a: {reason}" for name, reason in missing.items()]


def _measure(row: dict[str, Any], name: str, *, bare: bool = False) -> str:
    value, interval = row.get(name), row.get("intervals", {}).get(name)
    if value is None:
        return "n/a"
    around = f" ({(interval[1] - interval[0]) / 2:.2g})" if interval and None not in interval and not bare else ""
    return f"{value:.3f}" if name in _FINE else f"{value:.2f}{around}"


def write_evaluation_pictures(
    folder: Path, answers: Sequence[Answer], photos: ImageSet, found: dict[str, Measures]
) -> Iterator[Path]:
    """Writes sheet.png (gray | each model | truth), worst-MODEL.png, and classes-MODEL.json if photos have classes.

    answers: the two baselines first. found: the measures of each answer, by its name. Yields the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = np.array(photos.images)
    shown = [answers[0], *answers[2:]]

    def write(name: str, places) -> Path:
        columns = [answer.pictures[0][places] for answer in shown]
        titles = [*(answer.name for answer in shown), "original"]
        save_png(folder / name, sheet([*columns, truth[places]], smallest=128, titles=titles))
        return folder / name

    yield write("sheet.png", slice(0, 16))
    for answer in answers[2:]:
        yield write(f"worst-{answer.name}.png", worst(found[answer.name]))
        if rows := class_bias(found[answer.name], photos.labels):
            table = folder / f"classes-{answer.name}.json"
            write_text(table, json.dumps(rows, indent=1) + "\n")
            yield table
