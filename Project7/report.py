"""What a run shows: rich progress in a terminal, plain lines in a pipe, TensorBoard scalars, comparison pictures."""

import contextlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table
from rich.text import Text

from Project7.atomic_file import write_text
from Project7.config import RunConfig
from Project7.errors import sentence
from Project7.health import Finding, Record, number
from Project7.model_folder import ModelFolder
from Project7.photo import save_png, side_by_side
from Project7.trainer import WEIGHTED

_FINE = ("ssim", "seconds_per_photo", "lpips", "frechet_judge")  # measures shown to a thousandth
_SCALAR_INTERVAL = 10  # steps between the points of a TensorBoard curve


class Report:
    """Shows each `Progress` of a run.

    A picture or a curve that cannot be written is said once, and training goes on.
    """

    def __init__(self, folder: ModelFolder, config: RunConfig, console: Console):
        self.folder, self.config, self.console = folder, config, console
        self.troubles: set[str] = set()
        self.last_picture = None
        self.psnr = math.nan
        self.step = 0
        self.writer = self.task = None

    def __enter__(self):
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=10)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bar.start()
        return self

    def __exit__(self, *error):
        self.bar.stop()
        if self.writer:
            with contextlib.suppress(OSError):
                self.writer.close()

    def show(self, progress) -> None:
        """Shows a trainer.Progress."""
        self.step = progress.step
        for note in progress.notes:
            self.console.print(note, style="yellow", highlight=False, markup=False)
        if progress.comparison:
            self.psnr = progress.comparison.psnr
            self.try_to("comparison picture", self.write_comparison, progress)
        if progress.entry or progress.comparison or progress.step % _SCALAR_INTERVAL == 0:
            self.try_to("TensorBoard log", self.write_scalars, progress)
        self.move_bar(progress)
        if progress.entry:
            self.console.print(self.epoch_line(progress), highlight=False)
        elif progress.comparison and not self.console.is_terminal:
            self.console.print(f"step {progress.step}/{progress.total_steps}  {numbers(progress, self.psnr)}")

    def try_to(self, what: str, write, progress) -> None:
        try:
            write(progress)
        except OSError as error:
            if what not in self.troubles:
                message = f"No {what}: {sentence(error)}. Training goes on."
                self.console.print(message, style="yellow", highlight=False, markup=False)
            self.troubles.add(what)

    def move_bar(self, progress) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=progress.total_steps, numbers="")
        phase = "validating" if progress.phase == "validate" else f"epoch {progress.epoch}/{progress.epochs}"
        self.bar.update(
            self.task,
            description=phase,
            completed=progress.step,
            total=progress.total_steps,
            numbers=numbers(progress, self.psnr),
        )

    def epoch_line(self, progress) -> str:
        entry, shown = progress.entry, progress.comparison
        line = f"epoch {entry['epoch']}/{progress.epochs}  step {entry['step']}  train {_number(entry['train_loss'])}"
        if len(entry["weighted_terms"]) > 1:
            weighted = {WEIGHTED + name: value for name, value in entry["weighted_terms"].items()}
            line += f" ({terms({**entry['terms'], **weighted}).removeprefix(' = ')})"
        line += f"  val {_number(entry['val_loss'])}{' (best)' if progress.is_best else ''}"
        if shown:
            line += f"  PSNR {shown.psnr:.2f} dB"
            line += f"  colorfulness {shown.colorfulness:.1f} (truth {shown.colorfulness_truth:.1f})"
        if entry["skipped_steps"]:
            line += f"  {entry['skipped_steps']} steps skipped"
        return f"{line}  {entry['images_per_second']:.0f} images/s"

    def write_comparison(self, progress) -> None:
        """gray | colour | truth, a row a photo, to pictures/ and TensorBoard."""
        shown = progress.comparison
        picture = sheet([shown.gray, shown.colour, shown.truth])
        self.folder.pictures.mkdir(exist_ok=True)
        path = self.folder.pictures / f"step-{progress.step:07d}.png"
        save_png(path, picture)
        self.last_picture = path
        self.tensorboard().add_image("gray | colour | truth", picture, progress.step, dataformats="HWC")

    def write_scalars(self, progress) -> None:
        """Losses and rates every few steps, the validation's measures once an epoch."""
        values = {f"train/{name}": value for name, value in progress.losses.items()}
        values |= {
            "train/learning_rate": progress.learning_rate,
            "train/grad_norm": progress.grad_norm,
            "speed/images_per_second": progress.images_per_second,
        }
        if progress.entry:
            values["validation/loss"] = progress.entry["val_loss"]
        if progress.comparison:
            shown = progress.comparison
            values |= {"validation/psnr": shown.psnr, "validation/colorfulness": shown.colorfulness}
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.tensorboard().add_scalar(name, value, progress.step)
        for finding in (progress.entry or {}).get("findings", []):
            self.tensorboard().add_text("health", Finding(**finding).line(), progress.step)

    def tensorboard(self) -> Any:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder.logs))
        return self.writer


# -- evaluation ------------------------------------------------------------------------------------------------------


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of a result as columns; in brackets half the width of the 95 % interval."""
    columns = ("psnr", "ssim", "ab_rmse", "ciede2000", "colorfulness", "colorfulness_difference")
    networks = ("lpips", "fid", "frechet_judge")  # n/a where their weights are not there
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


def write_evaluation_pictures(folder: Path, answers: Sequence[Any], photos: Any) -> Iterator[Path]:
    """sheet.png (gray | each model | truth), worst-MODEL.png, and classes-MODEL.json where photos have classes.

    answers: of evaluate.Answer, the two baselines first. photos: a dataset.ImageSet.
    """
    from Project7.evaluate import class_bias, worst

    folder.mkdir(parents=True, exist_ok=True)
    truth = np.array(photos.images)
    shown = [answers[0], *answers[2:]]

    def write(name: str, places) -> Path:
        columns = [answer.pictures[0][places] for answer in shown]
        save_png(folder / name, sheet([*columns, truth[places]], smallest=128))
        return folder / name

    yield write("sheet.png", slice(0, 16))
    for answer in answers[2:]:
        yield write(f"worst-{answer.name}.png", worst(answer, truth))
        rows = list(class_bias(answer, photos))
        if rows:
            table = folder / f"classes-{answer.name}.json"
            write_text(table, json.dumps(rows, indent=1) + "\n")
            yield table


# -- the doctor's report -----------------------------------------------------------------------------------------------


def show_diagnosis(record: Record, findings: list[Finding], console: Console) -> None:
    """The curves in small, then a table of the findings."""
    epochs = f"{len(record.history)} epoch{'s' * (len(record.history) != 1)}"
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
    """What the doctor draws: name -> values, in order."""
    curves = {
        "training loss": [window.loss for window in record.windows],
        "validation loss": [entry.get("val_loss") for entry in record.history],
        "gradient norm": [window.grad_norm for window in record.windows],
        "colorfulness": [entry.get("colorfulness") for entry in record.history],
    }
    return {name: [v for v in values if number(v) is not None] for name, values in curves.items()}


def sparkline(values: list[float], encoding: str, *, width: int = 40) -> str:
    """A curve of at most `width` characters, each the mean of its part; plain ASCII where blocks cannot be shown."""
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


def sheet(columns: list[np.ndarray], *, smallest: int = 128) -> np.ndarray:
    """Pictures of one size, (K, H, W, 3) uint8 a column -> one sheet, a row a photo, small pictures enlarged in
    whole steps."""
    scale = max(1, smallest // columns[0].shape[1])
    rows = [
        side_by_side([np.kron(p, np.ones((scale, scale, 1), np.uint8)) for p in row])
        for row in zip(*columns, strict=True)
    ]
    return np.concatenate(rows)


def numbers(progress, psnr: float) -> str:
    """The figures of a step, in one line."""
    losses = terms(progress.losses, only_loss=True)
    shown = f"  PSNR {psnr:.1f} dB" if math.isfinite(psnr) else ""
    left = f"  {clock(progress.seconds_left)} left" if math.isfinite(progress.seconds_left) else ""
    return f"{losses}{shown}  lr {progress.learning_rate:.1e}  {progress.images_per_second:.0f} images/s{left}"


def terms(losses: dict[str, float], *, only_loss: bool = False) -> str:
    """loss 0.2893 = mse 0.2711 + perceptual 0.0182 (0.1823) ...: each term as it counts, in brackets unweighted.

    Then what is measured besides (the discriminator's answers), unless only the loss is wanted.
    """
    weighted = {n.removeprefix(WEIGHTED): v for n, v in losses.items() if n.startswith(WEIGHTED)}
    parts = []
    for name, value in weighted.items():
        plain = losses.get(name, value)
        parts.append(f"{name} {value:.4f}" + (f" ({plain:.4f})" if abs(plain - value) > 5e-5 else ""))
    shown = {"loss", *weighted, *(WEIGHTED + name for name in weighted)}
    skip_rest = only_loss and bool(weighted)
    rest = [] if skip_rest else [f"{name} {value:.4f}" for name, value in losses.items() if name not in shown]
    total = f"loss {losses['loss']:.4f}" if "loss" in losses else ""
    return "  ".join(part for part in [f"{total} = {' + '.join(parts)}" if parts else total, *rest] if part)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def run_table(folder: ModelFolder, config: RunConfig, *, training: int, validation: int, device: str) -> Table:
    """What is about to be trained, before it begins."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    model, settings = config.model, config.training
    rows = {
        "model": f"{folder.path}, {config.model.network_in_words()}",
        model.method: config.model.method_in_words(),
        "images": f"{training:,} + {validation:,} for validation, {config.data.image_size} px, from "
        + ", ".join(config.data.data),
        "objective": objective_text(config),
        "training": f"{settings.epochs} epochs, batch {settings.batch_size}, learning rate {settings.learning_rate:g}",
        "device": f"{device}, {'full precision' if settings.mixed_precision == 'no' else settings.mixed_precision}",
    }
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), Text(value))
    return table


def objective_text(config: RunConfig) -> str:
    """The weights of the terms, before any network is loaded."""
    objective = config.objective
    if config.loss:
        return loss_text(config.loss)
    if objective is None:
        return config.model.loss_in_words()
    parts = [f"{objective.mse_weight:g} {config.model.own_loss}"]
    if objective.perceptual_weight:
        net = _net(objective)
        parts.append(f"{objective.perceptual_weight:g} perceptual ({net})")
    if objective.gan:
        parts.append(f"{objective.adversarial_weight:g} adversarial")
        if objective.feature_matching_weight:
            parts.append(f"{objective.feature_matching_weight:g} feature matching")
    epochs = "1 epoch" if objective.stage1_epochs == 1 else f"{objective.stage1_epochs} epochs"
    stages = f", after {epochs} of mse alone" if objective.stage1_epochs else ""
    return " + ".join(parts) + stages


def loss_text(loss) -> str:
    """enhanced: 0.5 perceptual + 0.3 l + ..."""
    weights = {n.removesuffix("_weight"): getattr(loss, n) for n in type(loss).model_fields if n.endswith("_weight")}
    parts = [f"{weight:g} {name}" for name, weight in weights.items() if weight and name not in ("a", "b")]
    balance = f", a : b = {loss.a_weight:g} : {loss.b_weight:g}" if loss.a_weight != loss.b_weight else ""
    net = f" ({loss.perceptual_weights or loss.perceptual_net})" if loss.perceptual_weight else ""
    return f"{loss.loss}: {' + '.join(parts)}{balance}{net}"


def _net(objective) -> str:
    if objective.perceptual_net == "random":
        return "random VGG16, untrained"
    network = "tiny-vgg" if objective.perceptual_net == "tiny" else "VGG16"
    return f"{network} from {objective.perceptual_weights}" if objective.perceptual_weights else network


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
