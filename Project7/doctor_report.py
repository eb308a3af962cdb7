"""What the doctor shows about a run: small curves, curves as a picture, and the table of findings."""

import io
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from Project7.health import Finding, Record, number


def show_diagnosis(record: Record, findings: list[Finding], console: Console) -> None:
    """Prints small curves, then a table of the findings."""
    epochs = "1 epoch" if len(record.history) == 1 else f"{len(record.history)} epochs"
    console.print(f"{record.name}: {epochs}, {record.step} steps", style="bold", highlight=False, markup=False)
    curves = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, values in curves_of(record).items():
        if values:
            curves.add_row(name, sparkline(values, console.encoding), f"{values[0]:.3g} -> {values[-1]:.3g}")
    console.print(curves)
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


def curves_of(record: Record) -> dict[str, list[float]]:
    """The curves that the doctor draws: name -> values in order."""
    curves: dict[str, list[Any]] = {
        "training loss": [window.loss for window in record.windows],
        "validation loss": [entry.get("val_loss") for entry in record.history],
        "gradient norm": [window.grad_norm for window in record.windows],
        "colorfulness": [entry.get("colorfulness") for entry in record.history],
    }
    return {name: [v for v in values if number(v) is not None] for name, values in curves.items()}


def sparkline(values: list[float], encoding: str, *, width: int = 40) -> str:
    """A curve of at most `width` characters, each for the mean of its part of the values; in plain ASCII if the
    encoding has no block characters."""
    steps = "▁▂▃▄▅▆▇█" if encoding.lower().startswith("utf") else "_.-~=+*#"
    parts = [float(np.mean(part)) for part in np.array_split(values, min(width, len(values)))]
    low, high = min(parts), max(parts)
    places = [round((value - low) / (high - low) * 7) if high > low else 0 for value in parts]
    return "".join(steps[place] for place in places)


def draw_curves(record: Record) -> bytes:
    """The curves of a run, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, norm, colours = figure.subplots(3, 1, sharex=True)
    steps = [window.step for window in record.windows]
    means, spread = (np.array([getattr(w, name) for w in record.windows]) for name in ("loss", "loss_std"))
    loss.plot(steps, means, label="training", linewidth=1)
    loss.fill_between(steps, means - spread, means + spread, alpha=0.15)
    entries = [entry for entry in record.history if isinstance(entry.get("step"), int)]
    places = [entry["step"] for entry in entries]
    for axes, keys in ((loss, ["val_loss"]), (colours, ["colorfulness", "colorfulness_truth"])):
        for key in keys:
            values = [np.nan if number(entry.get(key)) is None else entry[key] for entry in entries]
            axes.plot(places, values, marker=".", label={"val_loss": "validation"}.get(key, key.replace("_", ", ")))
    norms = [window.grad_norm for window in record.windows]
    norm.plot(steps, norms, linewidth=1)
    norm.set(ylabel="gradient norm", yscale="log" if min(norms) > 0 and max(norms) > 30 * min(norms) else "linear")
    loss.set(ylabel="loss", title=record.name)
    colours.set(xlabel="step", ylabel="colorfulness")
    for axes in (loss, colours):
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
