"""What a person wants to train: the flags, and questions for what they leave open. No torch here."""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from Project7 import flags, model_folder, prompts
from Project7.config import for_recipe
from Project7.console import make_console
from Project7.errors import UsageError
from Project7.model_folder import ModelFolder
from Project7.photo_source import SAMPLES, scan
from Project7.processes import is_main_process, several_processes
from Project7.settings import Sections, with_defaults
from Project7.training_config import DataConfig

STRATEGIES = ("resume", "new", "two-stage")


@dataclass(frozen=True)
class Recipe:
    """A training script."""

    script: str  # its path, as in the command that a person types
    description: str
    sections: Sections  # its settings
    stages: bool = False  # whether it can train in two stages
    following: Callable[[dict[str, Any]], Sections] | None = None  # sections whose defaults follow from the answers

    def sections_with(self, given: dict[str, Any]) -> Sections:
        """The settings, with the defaults that follow from the given ones."""
        return self.following(given) if self.following else self.sections


@dataclass(frozen=True)
class Request:
    """What a person wants: a new model, or an old one continued."""

    folder: ModelFolder
    settings: dict[str, Any]  # those given by flags and answers
    source: ModelFolder | None  # the model to resume


def gather(recipe: Recipe, arguments: argparse.Namespace) -> Request:
    """Collects the request from the flags, and from questions for what they leave open. "<" goes back to the previous
    question.

    Raises UsageError if an answer is missing and nobody can be asked.
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
        make_console().print("Enter takes the default in brackets; < goes back to the previous question.")
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
    """Whether the script can resume a model. If its settings cannot be read, it is refused later, with the reason."""
    try:
        return model.config is None or bool(for_recipe(model.config, recipe.sections))
    except UsageError:
        return False


def gather_new(
    recipe: Recipe, arguments: argparse.Namespace, given: dict[str, Any], two_stages: bool, asking: bool
) -> Request:
    if two_stages:
        given |= {"epochs": None}  # asked for and counted per stage
    open_sections = left_open(recipe, arguments)
    missing = prompts.missing_flags(given, arguments.name, open_sections(given))
    if two_stages:
        there = vars(arguments) | given
        missing += ["--" + n.replace("_", "-") for n in prompts.STAGE_EPOCHS if n not in there]
    if missing and not asking and not arguments.yes:
        raise UsageError(
            f"There is no terminal to ask in, and no answer for {', '.join(missing)}; give these flags, or --yes."
        )
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
    """The settings to ask for: without those of the network if it comes from another model (--start-from)."""
    if not arguments.start_from:
        return recipe.sections_with
    return lambda given: {name: config for name, config in recipe.sections_with(given).items() if name != "model"}


def wants_two_stages(arguments: argparse.Namespace, given: dict[str, Any]) -> bool:
    """Whether the flags ask for two-stage training. Raises UsageError if they contradict each other."""
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
        raise UsageError("--epochs does not divide into two stages; use --stage1-epochs and --stage2-epochs.")
    if strategy == "resume" and not arguments.resume:
        raise UsageError("--strategy resume needs the model to continue: --resume NAME.")
    if strategy == "new" and arguments.resume:
        raise UsageError("--strategy new trains a new model; leave out --resume.")
    return strategy == "two-stage"


def stage_epochs(arguments: argparse.Namespace, given: dict[str, Any], asking: bool) -> dict[str, str]:
    """The settings for the epochs of the first stage, and of both stages together."""
    flags_given = {name: value for name, value in (vars(arguments) | given).items() if name in prompts.STAGE_EPOCHS}
    rest = prompts.ask_stage_epochs(flags_given) if asking else {}
    epochs = {name: default for name, (_, default) in prompts.STAGE_EPOCHS.items()} | flags_given | rest
    for name, value in epochs.items():
        if not (value.strip().isdecimal() and int(value) > 0):
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: the number of epochs must be a whole number above 0."
            )
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
    if shipped and not name:  # the shipped model stays unchanged, and is continued in a copy
        name = prompts.ask_name(arguments.models_dir, f"my-{resume}") if asking else f"my-{resume}"
    folder = model_folder.open_folder(arguments.models_dir, name) if name else source
    if name and folder.exists() and is_main_process():
        raise UsageError(
            f"There is a model {name!r} already; continue it with --resume {name}, or choose another --name for the "
            f"copy of {resume!r}."
        )
    stored: Any = summary.config
    if shipped and "data" not in given:  # the photos that it was trained on are on another machine
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
    """The photos that a shipped model is to be continued with, which are not those that it was trained on."""
    if asking:
        section = {"data": with_defaults(recipe.sections["data"], image_size=stored.image_size)}
        return {"data": SAMPLES} | prompts.ask_settings(given, lambda _: section)
    try:
        for source in stored.data:
            scan(source)
    except UsageError:
        raise UsageError(
            f"{resume} comes with the toolkit; say which photos to continue it with: --data PATH."
        ) from None
    return {}
