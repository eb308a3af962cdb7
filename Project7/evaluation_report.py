"""What an evaluation shows: the table of measures, sheets of pictures, the worst photos and the classes."""

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

_FINE = ("ssim", "seconds_per_photo", "lpips", "frechet_judge")  # measures shown to a thousandth


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of a result as columns. In brackets: half the width of the 95 % interval."""
    columns = ("psnr", "ssim", "ab_rmse", "ciede2000", "colorfulness", "colorfulness_difference")
    networks = ("lpips", "fid", "frechet_judge")  # n/a if their weights are missing
    more = ("tint_a", "tint_b", "energy_score", "best_psnr", "ab_rmse_of_mean", "diversity", *networks)
    names = [*columns, *more, "ab_rmse_dark", "ab_rmse_middle", "ab_rmse_light", "seconds_per_photo"]
    shown = [name for name in names if any(row.get(name) is not None for row in rows) or name in networks]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for row in rows:
        table.add_column(Text(row["model"]), justify="right")
    for name in shown:
        label = "frechet distance (JudgeResNet)" if name == "frechet_judge" else name.replace("_", " ")
        table.add_row(label, *(_measure(row, name) for row in rows))
    return table


def _measure(row: dict[str, Any], name: str) -> str:
    value, interval = row.get(name), row.get("intervals", {}).get(name)
    if value is None:
        return "n/a"
    around = f" ({(interval[1] - interval[0]) / 2:.2g})" if interval and None not in interval else ""
    return f"{value:.3f}" if name in _FINE else f"{value:.2f}{around}"


def write_evaluation_pictures(
    folder: Path, answers: Sequence[Answer], photos: ImageSet, found: dict[str, Measures]
) -> Iterator[Path]:
    """sheet.png (gray | each model | truth), worst-MODEL.png, and classes-MODEL.json where photos have classes.

    answers: the two baselines first. found: the measures of each answer, by its name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth = np.array(photos.images)
    shown = [answers[0], *answers[2:]]

    def write(name: str, places) -> Path:
        columns = [answer.pictures[0][places] for answer in shown]
        save_png(folder / name, sheet([*columns, truth[places]], smallest=128))
        return folder / name

    yield write("sheet.png", slice(0, 16))
    for answer in answers[2:]:
        yield write(f"worst-{answer.name}.png", worst(found[answer.name]))
        if rows := class_bias(found[answer.name], photos.labels):
            table = folder / f"classes-{answer.name}.json"
            write_text(table, json.dumps(rows, indent=1) + "\n")
            yield table
