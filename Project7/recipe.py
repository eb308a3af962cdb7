"""What the training scripts share: flags, questions, the model's folder, the images, and the loop over the trainer.

A script names its settings and calls `main`. Nothing here imports torch before the last question is answered.
"""

import argparse
import contextlib
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from Project7 import flags, model_folder, prompts
from Project7.config import SECTIONS, RunConfig, build
from Project7.errors import StopSignals, UsageError
from Project7.model_folder import ModelFolder
from Project7.processes import is_main_process, several_processes, start_missing_processes


@dataclass(frozen=True)
class Request:
    """What a person wants: a new model, or an old one continued."""

    folder: ModelFolder
    settings: dict[str, Any]  # as given: flags and answers
    source: ModelFolder | None  # the model to resume


def main(script: str, description: str, argv: list[str] | None = None) -> int:
    """Trains a model. Returns the exit code."""
    arguments = make_parser(description).parse_args(argv)
    start_missing_processes()
    request = gather(arguments)
    if not is_main_process():
        return train_request(script, request, arguments)
    created = not request.folder.path.exists()
    model_folder.create(request.folder)
    try:
        with model_folder.locked(request.folder):
            return train_request(script, request, arguments)
    finally:
        if created and not request.folder.exists():  # nothing was trained: leave nothing behind
            shutil.rmtree(request.folder.path, ignore_errors=True)


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = flags.Parser(description=description)
    run = parser.add_argument_group("the run")
    run.add_argument("--name", metavar="NAME", help="name of the new model; with --resume, continue in a copy")
    run.add_argument("--resume", metavar="NAME", help="continue this model; settings not given are inherited")
    run.add_argument("--yes", action="store_true", help="take the default for every question")
    run.add_argument("--models-dir", type=Path, default=model_folder.default_models_dir(), metavar="DIR")
    run.add_argument("--cache-dir", type=Path, metavar="DIR", help="where decoded images are kept (~/.cache/project7)")
    run.add_argument("--allow-data-change", action="store_true", help="resume on other images than before")
    for section, config in SECTIONS.items():
        flags.add_settings(parser.add_argument_group(section), config)
    return parser


# -- what to train ---------------------------------------------------------------------------------------------------


def gather(arguments: argparse.Namespace) -> Request:
    """Flags, and questions for what they leave open.

    Raises UsageError where an answer is missing and nobody can be asked.
    """
    given = {name: value for config in SECTIONS.values() for name, value in flags.given(arguments, config).items()}
    asking = prompts.can_ask() and not arguments.yes and is_main_process() and not several_processes()
    resume, name = arguments.resume, arguments.name
    if not (resume or name) and asking:
        resume = prompts.ask_model(arguments.models_dir)
    if resume:
        return gather_resume(arguments, resume, given, asking)

    missing = prompts.missing_flags(given, name)
    if missing and not asking and not arguments.yes:
        raise UsageError(f"No terminal to ask in, and no answer for {', '.join(missing)}; give these flags, or --yes.")
    if not name:
        default = prompts.free_name(arguments.models_dir)
        name = prompts.ask_name(arguments.models_dir, default) if asking else default
    folder = model_folder.open_folder(arguments.models_dir, name)
    if folder.exists() and is_main_process():
        raise UsageError(
            f"There is a model {name!r} already; continue it with --resume {name}, or choose another --name."
        )
    if asking:
        given |= prompts.ask_settings(given)
    return Request(folder, given, None)


def gather_resume(arguments: argparse.Namespace, resume: str, given: dict[str, Any], asking: bool) -> Request:
    source = model_folder.existing_folder(arguments.models_dir, resume)
    summary = model_folder.summarize(source)
    name = arguments.name
    if summary.config and summary.config.shipped and not name:
        if not asking:
            raise UsageError(
                f"{resume!r} came with the toolkit and stays as it is; continue it in a copy with --name NEW."
            )
        name = prompts.ask_name(arguments.models_dir, f"my-{resume}")
    folder = model_folder.open_folder(arguments.models_dir, name) if name else source
    if name and folder.exists() and is_main_process():
        raise UsageError(f"There is a model {name!r} already; choose another --name for the copy.")
    if summary.complete and "epochs" not in given and asking:
        given["epochs"] = prompts.ask_epochs_to_add(resume, summary.epochs)
    return Request(folder, given, source)


# -- training it -----------------------------------------------------------------------------------------------------


def train_request(script: str, request: Request, arguments: argparse.Namespace) -> int:
    console = Console(quiet=not is_main_process(), soft_wrap=True)
    if request.source is None:
        sections = {name: build(config, _of(config, request.settings)) for name, config in SECTIONS.items()}
        return fit(script, request.folder, RunConfig(**sections), None, arguments, console)

    from Project7 import resume

    checkpoint, notes = resume.load_for_resume(request.source)
    for note in notes:
        console.print(f"[yellow]{note}[/yellow]", highlight=False)
    config = resume.merge(checkpoint, request.source.config, request.settings)
    complete = resume.plan(checkpoint, config, new_schedule="lr_schedule" in request.settings)
    if complete:
        console.print(f"{request.source.name} is {complete}", highlight=False)
        return 0
    if request.folder != request.source and is_main_process():
        copy_best(request.source, request.folder)
    return fit(script, request.folder, config, checkpoint, arguments, console)


def _of(config: type, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in config.model_fields}


def copy_best(source: ModelFolder, target: ModelFolder) -> None:
    """The copy starts with the best weights so far, which it then has to beat. The source is left as it is."""
    from Project7.atomic_file import replacing

    if source.best.exists():
        with open(source.best, "rb") as old, replacing(target.best) as new:
            shutil.copyfileobj(old, new)


def fit(
    script: str,
    folder: ModelFolder,
    config: RunConfig,
    checkpoint: dict[str, Any] | None,
    arguments: argparse.Namespace,
    console: Console,
) -> int:
    """Opens the images, trains, shows. Returns the exit code."""
    with console.status("Starting ..."):  # torch and diffusers take seconds to import
        from Project7.resume import check_data
        from Project7.trainer import make_accelerator, train

        accelerator = make_accelerator(config.training)
    images = open_images(config, arguments.cache_dir, console)
    if checkpoint:
        check_data(checkpoint, images, allowed=arguments.allow_data_change)

    run = train(config, folder, images, accelerator=accelerator, resume=checkpoint)
    console.print(describe(folder, config, images, accelerator))
    report, stop = watch(run, folder, config, accelerator, console)
    if stop.requested:
        console.print(
            f"\nStopped at step {report.step}; all is saved. Go on with:\n  python {script} --resume {folder.name}",
            highlight=False,
        )
        return stop.exit_code
    summarize(folder, report, console)
    return 0


def watch(run, folder: ModelFolder, config: RunConfig, accelerator, console: Console, *, seconds: float = math.inf):
    """Trains, and shows it, to the end of the run, until a person or the system stops it, or for so many seconds.

    Returns the report.Report, and the errors.StopSignals that says whether it was stopped.
    """
    from Project7.report import Report

    begin = time.monotonic()
    with StopSignals() as stop, contextlib.closing(run), Report(folder, config, console) as report:
        for progress in run:
            report.show(progress)
            enough = time.monotonic() - begin > seconds and folder.best.exists()
            if stop_together(stop, accelerator) or enough:
                break
    return report, stop


def open_images(config: RunConfig, cache_dir: Path | None, console: Console):
    from Project7.dataset import open_dataset
    from Project7.report import counting

    with counting(console) as progress:
        images = open_dataset(config.data, seed=config.training.seed, cache_dir=cache_dir, progress=progress)
    for part in images:
        for line in part.summary.lines():
            console.print(line, highlight=False)
    return images


def describe(folder: ModelFolder, config: RunConfig, images, accelerator):
    from Project7.report import run_table

    return run_table(
        folder, config, training=len(images[0].images), validation=len(images[1].images), device=str(accelerator.device)
    )


def stop_together(stop: StopSignals, accelerator) -> bool:
    """Whether to stop now. Several processes agree on it, so that none waits for one that has left."""
    if accelerator.num_processes == 1:
        return stop.requested is not None
    import torch

    votes = accelerator.reduce(torch.tensor(float(stop.requested or 0), device=accelerator.device), "sum")
    if votes.item() and stop.requested is None:
        stop.requested = int(votes.item())
    return bool(votes.item())


def summarize(folder: ModelFolder, report, console: Console) -> None:
    """Where everything is, at the end."""
    summary = model_folder.summarize(folder)
    best = "" if summary.best_val_loss is None else f", best validation loss {summary.best_val_loss:.4f}"
    console.print(f"\nDone: {summary.epochs} epochs{best}.", highlight=False)
    places = {
        "weights": folder.best,
        "history": folder.history,
        "pictures": report.last_picture,
        "TensorBoard": folder.logs,
    }
    for name, path in places.items():
        if path and path.exists():
            console.print(f"  {name:<12}{path}", highlight=False)
    console.print(
        f"Colour a photo with it: project7 colorize PHOTO --model {folder.name} --output outputs", highlight=False
    )
