"""The questions of the training scripts: they fill the same settings as the flags, and skip what a flag has said.

No torch here: the first question appears at once. Ctrl-C at a question raises KeyboardInterrupt; nothing is written.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import questionary
from pydantic.fields import FieldInfo
from rich.console import Console

from Project7.config import SECTIONS, build, extra, setting_fields
from Project7.errors import UsageError
from Project7.flags import default_text
from Project7.model_folder import ModelSummary, check_name, list_models, open_folder

CREATE = "Create new model"
_HEADINGS = {"model": "Model architecture", "training": "Training", "data": "Images"}
_ORDER = ("model", "training", "data")


def can_ask() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))  # None: closed


def questions() -> dict[str, tuple[str, FieldInfo]]:
    """The settings that are asked for, in order: name -> (section, field)."""
    asked = {name: place for name, place in setting_fields().items() if extra(place[1], "ask")}
    return dict(sorted(asked.items(), key=lambda item: _ORDER.index(item[1][0])))


def missing_flags(given: dict[str, Any], name: str | None) -> list[str]:
    """The flags whose answers a new model still needs."""
    open_questions = [question for question in questions() if question not in given]
    return ["--" + q.replace("_", "-") for q in ([] if name else ["name"]) + open_questions]


def ask_model(models_dir: Path) -> str | None:
    """Which model to resume; None to create a new one."""
    models = list_models(models_dir)
    if not models:
        Console().print(f"There are no models in {models_dir} yet: this will be the first.", highlight=False)
        return None
    lines = [_model_line(number, model) for number, model in enumerate(models, start=1)]
    lines.append(f"{len(models) + 1}. {CREATE}")
    choices = [
        questionary.Choice(line, value=value, shortcut_key=str(number) if number <= 9 else None)
        for number, (line, value) in enumerate(zip(lines, [*(m.name for m in models), ""], strict=True), start=1)
    ]
    question = questionary.select(
        "Do you want to resume from an existing model?",
        choices,
        default=choices[-1],
        use_shortcuts=len(choices) <= 9,
        instruction="(arrow keys or number)",
    )
    return question.unsafe_ask() or None


def _model_line(number: int, model: ModelSummary) -> str:
    loss = "no validation yet" if model.best_val_loss is None else f"best loss {model.best_val_loss:.4f}"
    date = f"{model.changed:%Y-%m-%d %H:%M}" if model.changed else "no weights yet"
    state = "" if model.complete else ", unfinished"
    return f"{number}. {model.name}  (epoch {model.epochs}{state}, {loss}, {date})"


def ask_name(models_dir: Path, default: str) -> str:
    def free(text: str) -> bool | str:
        try:
            name = check_name(text.strip() or default)
        except UsageError as error:
            return str(error)
        taken = open_folder(models_dir, name).exists()
        return f"There is a model {name!r} already; choose another name." if taken else True

    return _ask(f"Model name [{default}]:", free) or default


def free_name(models_dir: Path) -> str:
    """model-1, or the first number after it that is free."""
    return next(n for i in range(1, 10_000) if not open_folder(models_dir, n := f"model-{i}").exists())


def ask_settings(given: dict[str, Any]) -> dict[str, str]:
    """Asks for each setting that has a question and was not given as a flag. An empty answer takes the default."""
    answers, heading = {}, None
    for name, (section, field) in questions().items():
        if name in given:
            continue
        if section != heading:
            heading = section
            Console().print(f"\n[bold]{_HEADINGS[section]}[/bold]")
        answer = ask_setting(name, field, SECTIONS[section])
        if answer:
            answers[name] = answer
    return answers


def ask_setting(name: str, field: FieldInfo, config: type) -> str:
    def valid(text: str) -> bool | str:
        try:
            if text.strip():
                build(config, {name: text})
        except UsageError as error:
            return str(error).removeprefix(f"--{name.replace('_', '-')} ")
        return True

    return _ask(f"{extra(field, 'ask')} [{default_text(field)}]:", valid)


def ask_epochs_to_add(model: str, done: int) -> str:
    def valid(text: str) -> bool | str:
        whole = text.strip().isdecimal() and int(text) > 0
        return whole or not text.strip() or f"{text.strip()!r} is not a number of epochs; type a whole number above 0."

    return _ask(f"{model} has finished its {done} epochs. How many more? [10]:", valid) or "10"


def _ask(message: str, validate: Callable[[str], bool | str]) -> str:
    return questionary.text(message, validate=validate).unsafe_ask().strip()
