"""What the training scripts share: flags, questions, the model's folder, the images, and the loop over the trainer.

A script names its settings and calls `main`. Nothing here imports torch before the last question is answered.
"""

import argparse
import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from Project7 import flags, model_folder, prompts
from Project7.config import RunConfig, for_recipe
from Project7.console import make_console
from Project7.counting import counted
from Project7.errors import UsageError
from Project7.invocation import command
from Project7.loss_config import LOSS_TRAINING, LossConfig
from Project7.model_config import ENCODER, RegressionConfig
from Project7.model_folder import ModelFolder
from Project7.photo_source import SAMPLES, scan
from Project7.processes import is_main_process, several_processes, start_missing_processes
from Project7.program import StopSignals
from Project7.settings import Sections, parse_settings, with_defaults
from Project7.training_config import DataConfig, TrainingConfig

STRATEGIES = ("resume", "new", "two-stage")


@dataclass(frozen=True)
class Recipe:
    """A training script."""

    script: str  # how a person calls it
    description: str
    sections: Sections  # its settings
    stages: bool = False  # whether it can train in two stages
    following: Callable[[dict[str, Any]], Sections] | None = None  # the sections, with defaults that answers bring

    def sections_with(self, given: dict[str, Any]) -> Sections:
        """The settings, once these are known."""
        return self.following(given) if self.following else self.sections


@dataclass(frozen=True)
class Request:
    """What a person wants: a new model, or an old one continued."""

    folder: ModelFolder
    settings: dict[str, Any]  # as given: flags and answers
    source: ModelFolder | None  # the model to resume


def main(recipe: Recipe, argv: list[str] | None = None) -> int:
    """Trains a model. Returns the exit code."""
    arguments = make_parser(recipe).parse_args(argv)
    start_missing_processes()
    request = gather(recipe, arguments)
    if not is_main_process():
        return train_request(recipe, request, arguments)
    created = model_folder.create(request.folder)
    try:
        with model_folder.locked(request.folder):
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
    run.add_argument("--resume", metavar="NAME", help="continue this model; settings not given are inherited")
    run.add_argument(
        "--start-from", metavar="NAME|PATH", help="a new model that begins with this one's weights: on your own images"
    )
    run.add_argument("--yes", action="store_true", help="take the default for every question")
    run.add_argument("--models-dir", type=Path, default=model_folder.default_models_dir(), metavar="DIR")
    run.add_argument("--cache-dir", type=Path, metavar="DIR", help="where decoded images are kept (~/.cache/project7)")
    run.add_argument("--replan", action="store_true", help="with --resume and --epochs: end before what was planned")
    run.add_argument("--allow-data-change", action="store_true", help="resume on other images than before")
    if recipe.stages:
        run.add_argument("--strategy", choices=STRATEGIES, help="two-stage: the squared error alone, then all terms")
        run.add_argument("--stage2-epochs", default=argparse.SUPPRESS, metavar="N", help="epochs with all terms")
    for section, config in recipe.sections.items():
        flags.add_settings(parser.add_argument_group(section), config)
    return parser


def regression(script: str, description: str, *, loss: str, outputs: str) -> Recipe:
    """The recipe of direct regression: its training settings are those that go with the loss. The defaults differ."""

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


# -- what to train ---------------------------------------------------------------------------------------------------


def gather(recipe: Recipe, arguments: argparse.Namespace) -> Request:
    """Flags, and questions for what they leave open. "<" goes back to the question before.

    Raises UsageError where an answer is missing and nobody can be asked.
    """
    given = {
        name: value for config in recipe.sections.values() for name, value in flags.given(arguments, config).items()
    }
    asking = can_ask(arguments)
    resume, two_stages = arguments.resume, recipe.stages and wants_two_stages(arguments, given)
    if resume and arguments.start_from:
        raise UsageError("--resume continues a run, --start-from begins a new one; leave out one of them.")
    named = resume or arguments.name or two_stages or arguments.start_from
    decided = named or (recipe.stages and arguments.strategy)
    if asking:
        make_console().print("Enter takes what stands in brackets; < goes back to the question before.")
    while True:
        if asking and not decided:
            stages = recipe.stages and "epochs" not in given
            continues = functools.partial(can_continue, recipe)
            resume, two_stages = prompts.ask_model(arguments.models_dir, continues, stages=stages)
        try:
            if resume:
                return gather_resume(recipe, arguments, resume, dict(given), asking)
            return gather_new(recipe, arguments, dict(given), two_stages, asking)
        except prompts.Back:
            continue


def can_continue(recipe: Recipe, model: model_folder.ModelSummary) -> bool:
    """Whether the script can resume a model. One whose settings cannot be read is refused later, with the reason."""
    try:
        return model.config is None or bool(for_recipe(model.config, recipe.sections))
    except UsageError:
        return False


def gather_new(
    recipe: Recipe, arguments: argparse.Namespace, given: dict[str, Any], two_stages: bool, asking: bool
) -> Request:
    if two_stages:
        given |= {"epochs": None}  # asked for, and counted, stage by stage
    open_sections = left_open(recipe, arguments)
    missing = prompts.missing_flags(given, arguments.name, open_sections(given))
    if two_stages:
        there = vars(arguments) | given
        missing += ["--" + n.replace("_", "-") for n in prompts.STAGE_EPOCHS if n not in there]
    if missing and not asking and not arguments.yes:
        raise UsageError(f"No terminal to ask in, and no answer for {', '.join(missing)}; give these flags, or --yes.")
    while True:
        name, settings = arguments.name, dict(given)
        if not name:
            default = prompts.free_name(arguments.models_dir)
            name = prompts.ask_name(arguments.models_dir, default) if asking else default
        folder = model_folder.open_folder(arguments.models_dir, name)
        if folder.has_weights() and is_main_process():
            raise UsageError(
                f"There is a model {name!r} already; continue it with --resume {name}, or choose another --name."
            )
        try:
            if two_stages:
                settings |= stage_epochs(arguments, settings, asking)
            if asking:
                settings |= prompts.ask_settings(settings, open_sections)
            return Request(folder, settings, None)
        except prompts.Back:
            continue


def left_open(recipe: Recipe, arguments: argparse.Namespace) -> Callable[[dict[str, Any]], Sections]:
    """The settings to ask for: not those of the network where it is another model's."""
    if not arguments.start_from:
        return recipe.sections_with
    return lambda given: {name: config for name, config in recipe.sections_with(given).items() if name != "model"}


def wants_two_stages(arguments: argparse.Namespace, given: dict[str, Any]) -> bool:
    """Whether the flags ask for two-stage training. Raises UsageError where they contradict each other."""
    staged = "stage1_epochs" in given or "stage2_epochs" in arguments
    strategy = arguments.strategy or ("two-stage" if staged else None)
    if staged and strategy != "two-stage":
        raise UsageError(f"--strategy {strategy} has no stages; leave out --stage1-epochs and --stage2-epochs.")
    if strategy == "two-stage" and arguments.resume:
        raise UsageError(
            "Two stages begin with a new model. A model trained with the squared error has its first stage behind it: "
            f"--resume {arguments.resume} --epochs N, without the flags of stages, is the second."
        )
    if strategy == "two-stage" and "epochs" in given:
        raise UsageError("--epochs says nothing about two stages; use --stage1-epochs and --stage2-epochs.")
    if strategy == "resume" and not arguments.resume:
        raise UsageError("--strategy resume needs the model to continue: --resume NAME.")
    if strategy == "new" and arguments.resume:
        raise UsageError("--strategy new trains a new model; leave out --resume.")
    return strategy == "two-stage"


def stage_epochs(arguments: argparse.Namespace, given: dict[str, Any], asking: bool) -> dict[str, str]:
    """The epochs of the first stage and of both, as settings."""
    flags_given = {name: value for name, value in (vars(arguments) | given).items() if name in prompts.STAGE_EPOCHS}
    rest = prompts.ask_stage_epochs(flags_given) if asking else {}
    epochs = {name: default for name, (_, default) in prompts.STAGE_EPOCHS.items()} | flags_given | rest
    for name, value in epochs.items():
        if not (value.strip().isdecimal() and int(value) > 0):
            raise UsageError(f"--{name.replace('_', '-')} {value}: epochs are a whole number above 0.")
    first, second = int(epochs["stage1_epochs"]), int(epochs["stage2_epochs"])
    return {"stage1_epochs": str(first), "epochs": str(first + second)}


def can_ask(arguments: argparse.Namespace) -> bool:
    return prompts.can_ask() and not arguments.yes and is_main_process() and not several_processes()


def gather_resume(
    recipe: Recipe, arguments: argparse.Namespace, resume: str, given: dict[str, Any], asking: bool
) -> Request:
    source = model_folder.existing_folder(arguments.models_dir, resume)
    summary = model_folder.summarize(source)
    name = arguments.name
    if summary.config and asking:
        for_recipe(summary.config, recipe.sections)  # refused before anything is asked
    shipped = bool(summary.config and summary.config.shipped)
    if shipped and not name:  # it stays as it is
        name = prompts.ask_name(arguments.models_dir, f"my-{resume}") if asking else f"my-{resume}"
    folder = model_folder.open_folder(arguments.models_dir, name) if name else source
    if name and folder.exists() and is_main_process():
        raise UsageError(
            f"There is a model {name!r} already; continue it with --resume {name}, or choose another --name for the "
            f"copy of {resume!r}."
        )
    stored: Any = summary.config
    if shipped and "data" not in given:  # what it was trained on lies elsewhere
        given |= own_photos(recipe, resume, stored.data, given, asking)
    if summary.complete and "epochs" not in given and asking:
        given["epochs"] = prompts.ask_epochs_to_add(resume, summary.epochs)
        schedule = stored.training.lr_schedule
        if schedule != "constant" and "lr_schedule" not in given:
            given["lr_schedule"] = prompts.ask_schedule(schedule)
    part = next((name for name in ("objective", "loss") if name in recipe.sections), None)
    current = getattr(summary.config, part, None) if part else None
    if asking and part and (current is None or not arguments.resume):
        section: Sections = {part: recipe.sections[part]}
        given |= prompts.ask_settings(given, lambda _: section, current=current)
    return Request(folder, given, source)


def own_photos(recipe: Recipe, resume: str, stored: DataConfig, given: dict[str, Any], asking: bool) -> dict[str, Any]:
    """The photos that a shipped model is to go on with: not those of the machine that it was trained on."""
    if asking:
        section = {"data": with_defaults(recipe.sections["data"], image_size=stored.image_size)}
        return {"data": SAMPLES} | prompts.ask_settings(given, lambda _: section)
    try:
        for source in stored.data:
            scan(source)
    except UsageError:
        raise UsageError(f"{resume} comes with the toolkit; say which photos to go on with: --data PATH.") from None
    return {}


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
    complete = resume.plan(checkpoint, config, new_schedule="lr_schedule" in request.settings)
    if complete:
        if is_main_process() and resume.mend_history(request.source, checkpoint):
            console.print(f"{request.source.history.name} is written anew, from the checkpoint.")
        console.print(f"{request.source.name} is {complete}")
        return 0
    if request.folder != request.source and is_main_process():
        copy_best(request.source, request.folder)
    return fit(recipe, request.folder, config, checkpoint, arguments, console)


def train_anew(recipe: Recipe, request: Request, arguments: argparse.Namespace, console: Console) -> int:
    """Begins a run again that ended before its first save, from the configuration that it has left."""
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
    return fit(recipe, request.folder, config, None, arguments, console)


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
    return fit(recipe, request.folder, parse_settings(RunConfig, sections), None, arguments, console, start)


def _of(config: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in config.model_fields}


def copy_best(source: ModelFolder, target: ModelFolder) -> None:
    """The copy starts with the best weights so far, which it then has to beat. The source is left as it is."""
    from Project7.atomic_file import copy_file

    if source.best.exists():
        copy_file(source.best, target.best)


def fit(
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

        config, said = settle_precision(config)
        accelerator = make_accelerator(config.training)
    if said:
        console.print(said)
    config = settle_perceptual(config, console, asking=can_ask(arguments))
    images = open_images(config, arguments.cache_dir, console)
    refuse_gray(images[0])
    if checkpoint:
        check_data(checkpoint, images, allowed=arguments.allow_data_change)

    if not checkpoint and not start:
        start = starting_weights(config, images, console)
    features = look_at(config, images[0], arguments.cache_dir, console)
    console.print(describe(folder, config, images, accelerator))
    how = {"accelerator": accelerator, "resume": checkpoint, "start": start, "features": features}
    for line in warnings(config, len(images[0].images), accelerator.num_processes, checkpoint):
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


def confirmed(config: RunConfig, images, how: dict[str, Any], console: Console) -> bool:
    """Says how long it will take, and asks whether to start."""
    from rich.text import Text

    from Project7.run_time import in_words, measure

    with console.status("Measuring a few steps ..."):
        measured = measure(config, images, **how)
    console.print(Text.assemble(("time", "bold"), f"       {in_words(measured)}\n"))
    return prompts.agreed()


def refuse_gray(training) -> None:
    """Raises UsageError where all photos are gray: there is no colour in them to learn."""
    from Project7.metrics import ALL_GRAY, colorfulness

    some = training.images[:: max(1, len(training.images) // 256)]
    if (colorfulness(some) < ALL_GRAY).all():
        raise UsageError(
            f"All {len(some)} of the {len(training.images)} training photos that were looked at are gray: there is no "
            "colour in them to learn; give photos in colour with --data."
        )


def settle_perceptual(config: RunConfig, console: Console, *, asking: bool) -> RunConfig:
    """Sees that the perceptual term has its features before anything else is done.

    Where they cannot be had, a person is asked how to go on; where nobody can be asked, WeightsMissing ends the run.
    """
    from Project7.perceptual_loss import WeightsMissing, load_lpips, load_perceptual

    part, load = ("loss", load_lpips) if config.loss else ("objective", load_perceptual)
    while (settings := getattr(config, part)) and settings.perceptual_weight:
        try:
            with console.status("Loading the features of the perceptual term ..."):
                load(settings.perceptual_net, settings.perceptual_weights)
            break
        except WeightsMissing as error:
            if not asking:
                raise
            network = {"alex": "AlexNet", "tiny": "TinyVGG"}.get(settings.perceptual_net, "VGG16")
            tiny = part == "objective" and settings.perceptual_net != "tiny"
            answers = prompts.ask_perceptual(str(error), network, tiny)
            config = config.model_copy(update={part: parse_settings(type(settings), settings.model_dump() | answers)})
    return config


def starting_weights(config: RunConfig, images, console: Console) -> dict[str, Any] | None:
    """What a new model begins with besides random weights: a palette, an encoder from elsewhere; None for nothing."""
    from Project7.methods import METHODS

    method = METHODS[config.model.method]
    return method.first_weights(config.model, lambda: make_palette(config, images, console)) or None


def make_palette(config: RunConfig, images, console: Console):
    """That of a file, or fitted to the training images."""
    from Project7.counting import counting
    from Project7.palette import fit_palette, load_palette

    model = config.model
    if model.palette:
        return load_palette(Path(model.palette).expanduser(), bins=model.bins)
    with counting(console) as progress:
        palette = fit_palette(images[0].images, model.bins, seed=config.training.seed, progress=progress)
    line = f"palette: {model.bins} colours, from {palette.counts.sum():,.0f} pixels of the training images"
    console.print(line)
    return palette


def look_at(config: RunConfig, images, cache_dir: Path | None, console: Console):
    """What the encoder sees in the training images, where that is to be computed once and kept; else None."""
    if not config.training.cache_features:
        return None
    from Project7.counting import counting
    from Project7.encoder import Encoder
    from Project7.feature_cache import open_features

    encoder = Encoder(config.model.encoder, config.model.encoder_size)
    with counting(console) as progress:
        mirror = config.training.mirror
        return open_features(encoder, images, mirror=mirror, cache_dir=cache_dir, progress=progress)


def watch(run, folder: ModelFolder, config: RunConfig, accelerator, console: Console, *, seconds: float = math.inf):
    """Trains, and shows it, to the end of the run, until a person or the system stops it, or for so many seconds.

    Returns the report.Report, and the program.StopSignals that says whether it was stopped.
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
    from Project7.counting import counting
    from Project7.dataset import open_dataset

    with counting(console) as progress:
        images = open_dataset(config.data, seed=config.training.seed, cache_dir=cache_dir, progress=progress)
    for part in images:
        for line in part.summary.lines():
            console.print(line)
    return images


def warnings(config: RunConfig, training: int, processes: int, checkpoint: dict[str, Any] | None) -> list[str]:
    from Project7.run_summary import warnings_of

    done = checkpoint.get("epoch", 0) if checkpoint else 0
    return warnings_of(config, training=training, processes=processes, done=done)


def describe(folder: ModelFolder, config: RunConfig, images, accelerator):
    from Project7.run_summary import run_table

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
