"""Shows a run: rich progress in a terminal, plain lines in a pipe, TensorBoard scalars, comparison pictures."""

import contextlib
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn
from rich.table import Column

from Project7.config import RunConfig
from Project7.errors import sentence
from Project7.health import Finding
from Project7.model_folder import ModelFolder
from Project7.photo import save_png
from Project7.processes import is_main_process
from Project7.run_history import WEIGHTED
from Project7.sheet import sheet

_SCALAR_INTERVAL = 10  # steps between the points of a TensorBoard curve


class Report:
    """Shows each `Progress` of a run.

    If a picture or a curve cannot be written, this is reported once, and training continues.
    """

    def __init__(self, folder: ModelFolder, config: RunConfig, console: Console):
        self.folder, self.config, self.console = folder, config, console
        self.troubles: set[str] = set()
        self.last_picture: Path | None = None
        self.psnr = math.nan
        self.step = 0
        self.writer: Any = None
        self.task: TaskID | None = None

    def __enter__(self):
        self.bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=self.console,
            transient=True,
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
            self.console.print(note, style="yellow")
        if progress.comparison:
            self.psnr = progress.comparison.psnr
            self.try_to("comparison picture", self.write_comparison, progress)
        point = progress.entry or progress.comparison or progress.step % _SCALAR_INTERVAL == 0
        if point and is_main_process():  # all processes have the same measures
            self.try_to("TensorBoard log", self.write_scalars, progress)
        self.move_bar(progress)
        if progress.entry:
            self.console.print(self.epoch_line(progress))
        elif progress.comparison and not self.console.is_terminal:
            self.console.print(f"step {progress.step}/{progress.total_steps}  {numbers(progress, self.psnr)}")

    def try_to(self, what: str, write, progress) -> None:
        try:
            write(progress)
        except OSError as error:
            if what not in self.troubles:
                message = f"No {what}: {sentence(error)}. Training goes on."
                self.console.print(message, style="yellow")
            self.troubles.add(what)

    def move_bar(self, progress) -> None:
        if self.task is None:
            self.task = self.bar.add_task("", total=progress.total_steps)
        line = step_line(progress, self.psnr, self.console.width)
        self.bar.update(self.task, description=line, completed=progress.step, total=progress.total_steps)

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
        """Writes gray | colour | truth, one row per photo, to pictures/ and to TensorBoard."""
        shown = progress.comparison
        picture = sheet([shown.gray, shown.colour, shown.truth])
        self.folder.pictures.mkdir(exist_ok=True)
        path = self.folder.pictures / f"step-{progress.step:07d}.png"
        save_png(path, picture)
        self.last_picture = path
        self.tensorboard().add_image("gray | colour | truth", picture, progress.step, dataformats="HWC")

    def write_scalars(self, progress) -> None:
        """Writes losses and rates every few steps, and the measures of the validation once per epoch."""
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

            # Points that a killed run wrote after its last save are dropped, so that no step is shown twice.
            self.writer = SummaryWriter(str(self.folder.logs), purge_step=self.step)
        return self.writer


def step_line(progress, psnr: float, width: int) -> str:
    """Where a run stands, in one line shorter than `width` characters. Parts without room are left out, the learning
    rate and the terms of the loss first."""
    phase = "validating" if progress.phase == "validate" else f"epoch {progress.epoch}/{progress.epochs}"
    losses = progress.losses
    texts = {
        "phase": phase,
        "bar": bar(progress.step / max(1, progress.total_steps), 20),
        "step": f"step {progress.step}/{progress.total_steps}",
        "loss": f"loss {losses['loss']:.4f}" if "loss" in losses else "",
        "terms": terms(losses, only_loss=True),
        "psnr": f"PSNR {psnr:.1f} dB" if math.isfinite(psnr) else "",
        "short": f"PSNR {psnr:.1f}" if math.isfinite(psnr) else "",
        "rate": f"lr {progress.learning_rate:.1e}",
        "speed": f"{progress.images_per_second:.0f} img/s",
        "left": f"{clock(progress.seconds_left)} left" if math.isfinite(progress.seconds_left) else "",
    }
    for names in (
        ("phase", "bar", "step", "terms", "psnr", "rate", "speed", "left"),
        ("phase", "step", "terms", "psnr", "speed", "left"),
        ("phase", "bar", "step", "loss", "psnr", "speed", "left"),
    ):
        line = "  ".join(texts[name] for name in names if texts[name])
        if len(line) < width:
            return line
    return "  ".join(texts[name] for name in ("phase", "step", "loss", "short", "speed", "left") if texts[name])


def bar(share: float, width: int) -> str:
    return "[" + "#" * round(share * width) + "." * (width - round(share * width)) + "]"


def numbers(progress, psnr: float) -> str:
    """The numbers of a step in one line."""
    losses = terms(progress.losses, only_loss=True)
    shown = f"  PSNR {psnr:.1f} dB" if math.isfinite(psnr) else ""
    left = f"  {clock(progress.seconds_left)} left" if math.isfinite(progress.seconds_left) else ""
    return f"{losses}{shown}  lr {progress.learning_rate:.1e}  {progress.images_per_second:.0f} images/s{left}"


def terms(losses: dict[str, float], *, only_loss: bool = False) -> str:
    """loss 0.2893 = mse 0.2711 + perceptual 0.0182 (0.1823) ...: each term weighted, with its unweighted value in
    brackets if that differs.

    The other measures follow (such as the outputs of the discriminator), unless only_loss.
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


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
