"""The doctor's report on a run: small curves, curves as a picture, and the table of findings."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from Project7.counting import counted
from Project7.health import MATURE, Finding, Record, number


def show_diagnosis(record: Record, findings: list[Finding], stages: Sequence[Record], console: Console) -> None:
    """Prints small curves, with the losses of each stage apart, then a table of the findings of `record`."""
    size = f"{counted(len(record.history), 'epoch')}, {counted(record.step, 'step')}"
    console.print(f"{record.name}: {size}", style="bold")
    curves = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, values in curves_of(stages).items():
        if values:
            curves.add_row(name, sparkline(values, console.encoding), f"{values[0]:.3g} -> {values[-1]:.3g}")
    console.print(curves)
    if not findings and record.step < MATURE:
        console.print(
            f"Too early to tell: {counted(record.step, 'step')}, and pictures are judged only after {MATURE:,}. "
            "Nothing was found in the curves so far.",
            style="yellow",
        )
        return
    if not findings:
        console.print("Nothing found: the run looks healthy.", style="green")
        return
    table = Table(show_lines=True)
    for heading in ("what", "seen", "it means", "cure", "how sure"):
        table.add_column(heading, overflow="fold", ratio=None if heading in ("what", "how sure") else 1)
    for finding in findings:
        cells = (finding.ailment, finding.seen, finding.meaning, finding.cure, finding.sure)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)


def curves_of(stages: Sequence[Record]) -> dict[str, list[float]]:
    """The curves that the doctor draws: name -> values in order."""
    curves: dict[str, list[Any]] = {}
    for count, stage in enumerate(stages, start=1):
        which = f" {count}" if len(stages) > 1 else ""
        curves[f"training loss{which}"] = [window.loss for window in stage.windows]
        curves[f"validation loss{which}"] = [entry.get("val_loss") for entry in stage.history]
    curves["gradient norm"] = [window.grad_norm for stage in stages for window in stage.windows]
    curves["colorfulness"] = [entry.get("colorfulness") for stage in stages for entry in stage.history]
    return {name: [v for v in values if number(v) is not None] for name, values in curves.items()}


def sparkline(values: list[float], encoding: str, *, width: int = 40) -> str:
    """A curve of at most `width` characters, each showing the mean of its part of the values; plain ASCII if the
    encoding has no block characters."""
    steps = "▁▂▃▄▅▆▇█" if encoding.lower().startswith("utf") else "_.-~=+*#"
    parts = [float(np.mean(part)) for part in np.array_split(values, min(width, len(values)))]
    low, high = min(parts), max(parts)
    places = [round((value - low) / (high - low) * 7) if high > low else 0 for value in parts]
    return "".join(steps[place] for place in places)


def draw_curves(stages: Sequence[Record]) -> bytes:
    """The curves of a run as a PNG. The losses of each stage have their own scale, because they differ in size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    names = [f"loss {count}" for count in range(1, len(stages) + 1)]
    rows: list[Any] = [names, ["norm"] * len(names), ["colours"] * len(names)]
    axes = figure.subplot_mosaic(rows)
    for count, (name, stage) in enumerate(zip(names, stages, strict=True), start=1):
        draw_loss(axes[name], stage)
        axes[name].set(title=f"{stage.name}, stage {count}" if len(stages) > 1 else stage.name)
    axes[names[0]].set(ylabel="loss")
    windows = [window for stage in stages for window in stage.windows]
    norms = [window.grad_norm for window in windows]
    axes["norm"].plot([window.step for window in windows], norms, linewidth=1)
    scale = "log" if min(norms) > 0 and max(norms) > 30 * min(norms) else "linear"
    axes["norm"].set(ylabel="gradient norm", yscale=scale)
    entries = [entry for stage in stages for entry in stage.history]
    for key in ("colorfulness", "colorfulness_truth"):
        axes["colours"].plot(*epoch_curve(entries, key), marker=".", label=key.replace("_", ", "))
    axes["colours"].set(xlabel="step", ylabel="colorfulness")
    axes["colours"].legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def draw_loss(axes: Any, stage: Record) -> None:
    steps = [window.step for window in stage.windows]
    means, spread = (np.array([getattr(w, name) for w in stage.windows]) for name in ("loss", "loss_std"))
    axes.plot(steps, means, label="training", linewidth=1)
    axes.fill_between(steps, means - spread, means + spread, alpha=0.15)
    axes.plot(*epoch_curve(stage.history, "val_loss"), marker=".", label="validation")
    axes.legend()


def epoch_curve(history: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a measure of each epoch."""
    entries = [entry for entry in history if isinstance(entry.get("step"), int)]
    values = [np.nan if number(entry.get(key)) is None else entry[key] for entry in entries]
    return [entry["step"] for entry in entries], values
