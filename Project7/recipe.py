"""What the training scripts share: the flags, the model's folder, and the loop over the trainer.

A script names its settings and calls `main`. Nothing here imports torch before the last question is answered.
"""

import argparse
import contextlib
import math
import shutil
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from Project7 import flags, model_folder
from Project7.config import RunConfig
from Project7.console import make_console
from Project7.counting import counted
from Project7.invocation import command
from Project7.loss_config import LOSS_TRAINING, LossConfig
from Project7.model_config import ENCODER, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.preparation import (
    confirmed,
    describe,
    look_at,
    open_images,
    refuse_gray,
    settle,
    starting_weights,
    warnings,
)
from Project7.processes import check_launch, is_main_process, reaching_the_others
from Project7.program import StopSignals
from Project7.request import STRATEGIES, Recipe, Request, can_ask, gather
from Project7.settings import Sections, parse_settings, with_defaults
from Project7.training_config import DataConfig, TrainingConfig

_BY_NETWORK = "see that GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for GPUs) names the network that joins their machines"


def main(recipe: Recipe, argv: list[str] | None = None) -> int:
    """Trains a model. Returns the exit code."""
    arguments = make_parser(recipe).parse_args(argv)
    check_launch()
    request = gather(recipe, arguments)
    if not is_main_process():
        return train_request(recipe, request, arguments)
    created = model_folder.create(request.folder)
    try:
        with model_folder.locked(request.folder) as reserved:
            if not reserved:
                said = "does not support locks: make sure that no second training runs in this folder"
                make_console(wrap=False).print(f"The file system of {request.folder.path} {said}.", style="yellow")
            return train_request(recipe, request, arguments)
    finally:
        if created and not request.folder.config.exists():  # nothing was trained: leave nothing behind
            shutil.rmtree(request.folder.path, ignore_errors=True)


def make_parser(recipe: Recipe) -> argparse.ArgumentParser:
    lines = ("", "--name m --data PATH --yes", "--resume m")
    shown = flags.examples(*(f"python {recipe.script} {line}".rstrip() for line in lines))
    parser = flags.Parser(description=recipe.description, epilog=shown)
    run = parser.add_argument_group("the run")
    run.add_argument("--name", metavar="NAME", help="name of the new model; with --resume, continue in a copy")
    run.add_argument(
        "--resume", metavar="NAME", help="continue this model; settings that are not given stay as they are"
    )
    run.add_argument(
        "--start-from",
        metavar="NAME|PATH",
        help="begin a new model with the weights of this one, to train it on your own images",
    )
    run.add_argument("--yes", action="store_true", help="take the default for every question")
    run.add_argument(
        "--models-dir", type=Path, default=model_folder.default_models_dir(), metavar="DIR",
        help="folder that holds the models (models/)",
    )  # fmt: skip
    run.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="folder for decoded images ($PROJECT7_CACHE or ~/.cache/project7)"
    )
    run.add_argument(
        "--replan", action="store_true", help="with --resume and --epochs: allow the run to end earlier than planned"
    )
    run.add_argument("--allow-data-change", action="store_true", help="allow resuming on other images than before")
    if recipe.stages:
        run.add_argument(
            "--strategy", choices=STRATEGIES, help="two-stage: first the squared error alone, then all terms"
        )
        run.add_argument(
            "--stage2-epochs", default=argparse.SUPPRESS, metavar="N", help="epochs of the second stage, with all terms"
        )
    for section, config in recipe.sections.items():
        flags.add_settings(parser.add_argument_group(section), config)
    return parser


def regression(script: str, description: str, *, loss: str, outputs: str) -> Recipe:
    """The recipe of direct regression, whose training settings follow from the loss. loss, outputs: their defaults."""

    def following(given: dict[str, Any]) -> Sections:
        brought = LOSS_TRAINING.get(given.get("loss", loss).strip(), {})
        asked = {"weight_decay": "Weight decay", "lr_schedule": "Course of the learning rate"}
        return {
            "loss": with_defaults(LossConfig, loss=loss),
            "model": with_defaults(RegressionConfig, outputs=outputs, encoder=ENCODER, chroma_scale=4),
            "data": with_defaults(DataConfig, ask={"image_size": "Image size"}, image_size=256),
            "training": with_defaults(TrainingConfig, ask=asked, **brought),
        }

    return Recipe(script, description, following({}), following=following)


# -- training it -----------------------------------------------------------------------------------------------------


def train_request(recipe: Recipe, request: Request, arguments: argparse.Namespace) -> int:
    console = make_console(quiet=not is_main_process(), wrap=False)
    if request.source is None:
        return train_new(recipe, request, arguments, console)

    from Project7 import resume

    if not request.source.has_weights():
        return train_anew(recipe, request, arguments, console)
    checkpoint, notes = resume.load_for_resume(request.source)
    for note in notes:
        console.print(note, style="yellow")
    sections = recipe.sections_with(request.settings)
    config = resume.merge(checkpoint, request.source.config, request.settings, sections, replan=arguments.replan)
    planned = checkpoint["config"]["training"]["epochs"]
    if config.training.epochs != planned:
        console.print(f"epochs     {planned} were planned, now {config.training.epochs}")
    complete = resume.check_remaining(checkpoint, config, new_schedule="lr_schedule" in request.settings)
    if complete:
        if is_main_process() and resume.mend_history(request.source, checkpoint):
            console.print(f"{request.source.history.name} was written again from the checkpoint.")
        console.print(f"{request.source.name} is {complete}")
        return 0
    if request.folder != request.source and is_main_process():
        copy_best(request.source, request.folder)
    return train_and_show(recipe, request.folder, config, checkpoint, arguments, console)


def train_anew(recipe: Recipe, request: Request, arguments: argparse.Namespace, console: Console) -> int:
    """Starts a run again that ended before its first save, from the configuration that it left."""
    from Project7 import resume

    source = request.source
    assert source is not None
    stored = model_folder.read_config(source)
    nothing = {"config": stored.model_dump(mode="json"), "epoch": 0}
    sections = recipe.sections_with(request.settings)
    config = resume.merge(nothing, source.config, request.settings, sections, replan=True)
    console.print(
        f"{source.name} ended before anything was saved; it begins anew with the settings in its config.json.",
        style="yellow",
    )  # fmt: skip
    return train_and_show(recipe, request.folder, config, None, arguments, console)


def train_new(recipe: Recipe, request: Request, arguments: argparse.Namespace, console: Console) -> int:
    kinds = recipe.sections_with(request.settings)
    known, start = None, None
    if arguments.start_from:
        from Project7.resume import starting_point

        weights = model_folder.find_weights(arguments.start_from, arguments.models_dir, flag="--start-from")
        known, start = starting_point(weights, kinds["model"], _of(kinds["model"], request.settings))
        console.print(f"weights    those of {weights}")
    sections = {
        name: known if known and name == "model" else parse_settings(config, _of(config, request.settings))
        for name, config in kinds.items()
    }
    if known is None:
        sections["model"] = sections["model"].fitted(sections["data"].image_size, request.settings)
    return train_and_show(recipe, request.folder, parse_settings(RunConfig, sections), None, arguments, console, start)


def _of(config: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in config.model_fields}


def copy_best(source: ModelFolder, target: ModelFolder) -> None:
    """The copy starts with the best weights so far, which it then has to beat. The source is left as it is."""
    from Project7.atomic_file import copy_file

    if source.best.exists():
        copy_file(source.best, target.best)


def train_and_show(
    recipe: Recipe,
    folder: ModelFolder,
    config: RunConfig,
    checkpoint: dict[str, Any] | None,
    arguments: argparse.Namespace,
    console: Console,
    start: dict[str, Any] | None = None,
) -> int:
    """Opens the images, trains, shows. Returns the exit code. start: the weights of another model to begin with."""
    with console.status("Starting ..."):  # torch and diffusers take seconds to import
        from Project7.precision import settle_precision
        from Project7.resume import check_data
        from Project7.trainer import make_accelerator, train

        with reaching_the_others(_BY_NETWORK):
            config, said = settle_precision(config)
            accelerator = make_accelerator(config.training)
    if said:
        console.print(said)
    config = settle(config, arguments.cache_dir, console, checkpoint, asking=can_ask(arguments))
    images = open_images(config, arguments.cache_dir, console)
    refuse_gray(images[0])
    if checkpoint:
        check_data(checkpoint, images, allowed=arguments.allow_data_change)

    if not checkpoint and not start:
        start = starting_weights(config, images, console)
    begin = checkpoint["model_state_dict"] if checkpoint else start or {}
    features = look_at(config, images[0], begin, arguments.cache_dir, console)
    console.print(describe(folder, config, images, accelerator))
    how = {"accelerator": accelerator, "resume": checkpoint, "start": start, "features": features}
    for line in warnings(config, images[0], arguments.cache_dir, accelerator, checkpoint):
        console.print(line, style="yellow")
    if can_ask(arguments) and not confirmed(config, images, how, console):
        console.print("Nothing was trained.")
        return 0
    run = train(config, folder, images, **how)
    report, stop = watch(run, folder, config, accelerator, console)
    if stop.requested:
        console.print(f"\nStopped at step {report.step}; all is saved. Go on with:")
        console.print(f"  python {recipe.script} --resume {folder.name}")
        return stop.exit_code
    summarize(folder, report, console)
    return 0


def watch(run, folder: ModelFolder, config: RunConfig, accelerator, console: Console, *, seconds: float = math.inf):
    """Trains and shows the progress until the run ends, a person or the system stops it, or the `seconds` are over.

    Returns the report.Report, and the program.StopSignals that says whether it was stopped.
    """
    from Project7.report import Report

    begin = time.monotonic()
    lost = reaching_the_others(f"start all of them again with --resume {folder.name}, which goes on from the last save")
    with StopSignals() as stop, lost, contextlib.closing(run), Report(folder, config, console) as report:
        for progress in run:
            report.show(progress)
            enough = time.monotonic() - begin > seconds and folder.best.exists()
            if stop_together(stop, accelerator) or enough:
                break
    return report, stop


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
    """Prints where the results of the run are."""
    summary = model_folder.summarize(folder)
    best = "" if summary.best_val_loss is None else f", best validation loss {summary.best_val_loss:.4f}"
    console.print(f"\nDone: {counted(summary.epochs, 'epoch')}{best}.")
    places = {
        "weights": folder.best,
        "history": folder.history,
        "pictures": report.last_picture,
        "TensorBoard": folder.logs,
    }
    for name, path in places.items():
        if path and path.exists():
            console.print(f"  {name:<12}{path}")
    console.print(
        f"Colour a photo with it: {command()} colorize PHOTO --model {folder.name} --output outputs",
    )
