"""The questions of the training scripts: they fill in the same settings as the flags, and skip those that were given.

No torch here, so that the first question appears at once. Ctrl-C at a question raises KeyboardInterrupt; nothing is
written.
"""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import questionary
from prompt_toolkit.key_binding import KeyBindings
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from Project7.console import make_console
from Project7.counting import counted
from Project7.errors import UsageError
from Project7.flags import default_text
from Project7.model_folder import ModelSummary, check_name, list_models, open_folder
from Project7.photo_source import scan
from Project7.settings import Sections, declared, inherited, parse_settings, setting_fields

CREATE = "Create new model"
CREATE_IN_STAGES = "Create new model, in two stages (recommended: the squared error first, then all terms)"
_HEADINGS = {
    "loss": "Loss",
    "model": "Model architecture",
    "training": "Training",
    "data": "Images",
    "objective": "Loss weights",
}
_EXPLANATIONS = {  # shown before the question of this setting
    "mse_weight": """How much each objective counts. Good values to start with:
  MSE          1.0    the prediction itself; keep it at 1.0
  perceptual   0.1    colours that look right, by the features of VGG16; 0.2 to 0.5 if they stay wrong
  adversarial  0.01   colours that a discriminator takes for real; up to 0.05, and less stable""",
    "loss": """What is minimised:
  simple     LPIPS + Lab + twice ab: stable, with the features of a trained network to guide it
  weighted   ab alone, with more weight on saturated colours than on gray: needs no other network
  enhanced   LPIPS + L + much ab + saturation, with presets: against sepia and purple""",
}
_ORDER = ("loss", "model", "training", "data", "objective")
BACK = "<"  # typed instead of an answer
STAGE_EPOCHS = {  # two-stage training asks for these instead of `epochs`: question and default
    "stage1_epochs": ("Epochs of stage 1 (squared error alone)", "30"),
    "stage2_epochs": ("Epochs of stage 2 (all terms)", "15"),
}


class Back(Exception):
    """A person wants to go back to the previous question."""


def can_ask() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))  # None: closed


def questions(sections: Sections) -> dict[str, tuple[str, FieldInfo]]:
    """The settings that are asked for, in order: name -> (section, field)."""
    asked = {name: place for name, place in setting_fields(sections).items() if declared(place[1], "ask")}
    return dict(sorted(asked.items(), key=lambda item: _ORDER.index(item[1][0])))


def missing_flags(given: dict[str, Any], name: str | None, sections: Sections) -> list[str]:
    """The flags whose answers a new model still needs."""
    open_questions = [
        name
        for name, (section, _) in questions(sections).items()
        if name not in given
        and name != "image_size"  # its default suits every set, and older scripts do not give it
        and not _idle(name, given)
        and default_of(name, sections[section], given) is not None
    ]
    return ["--" + q.replace("_", "-") for q in ([] if name else ["name"]) + open_questions]


def _idle(question: str, answers: dict[str, Any]) -> bool:
    """Whether these answers make a question meaningless, such as the weight of a discriminator that is not used."""
    return question == "adversarial_weight" and not _yes(answers.get("gan", False))


def default_of(name: str, config: type[BaseModel], answers: dict[str, Any]) -> Any:
    """The default of a setting after the answers so far; None if they leave no such setting."""
    known = {n: value for n, value in answers.items() if n in config.model_fields}
    try:
        return getattr(parse_settings(config, known), name)
    except UsageError:  # reported later, when the settings are built
        return config.model_fields[name].default


def _yes(answer: Any) -> bool:
    return answer is True or str(answer).strip().lower() in ("y", "yes", "true", "1", "on", "t")


def ask_model(
    models_dir: Path, continues: Callable[[ModelSummary], bool] | None = None, *, stages: bool = False
) -> tuple[str | None, bool]:
    """Asks which model to resume. Returns its name, or None for a new one, and whether to train that in two stages.

    A person's own models come first, then those that come with the toolkit. continues: whether a model can be resumed
    by this script; the others are named but not offered. stages: whether the script can train in two stages.
    """
    found = list_models(models_dir)
    models = [model for model in found if continues is None or continues(model)]
    models.sort(key=lambda model: bool(model.config and model.config.shipped))
    if others := [model.name for model in found if model not in models]:
        message = f"Models of other scripts, which cannot be resumed here (see `project7 models`): {', '.join(others)}."
        make_console().print(message)
    if not found:
        message = f"There are no models in {models_dir} yet: this will be the first."
        make_console().print(message)
    if not models and not stages:
        return None, False
    lines = [_model_line(model) for model in models] + [CREATE] + [CREATE_IN_STAGES] * stages
    answers = [(m.name, False) for m in models] + [(None, False)] + [(None, True)] * stages
    question = "Do you want to resume from an existing model?" if models else "What shall be trained?"
    return _choose(question, dict(zip(lines, answers, strict=True)), default=lines[-1])


def _choose(question: str, choices: dict[str, Any], default: str | None = None, *, under: str = "") -> Any:
    """Asks for one of a numbered list (line -> value) and returns its value. under: text below the list. The number
    keys work if there are at most nine lines."""
    keys = len(choices) <= 9  # questionary then shows the numbers itself
    lines = [
        questionary.Choice(line if keys else f"{n}. {line}", value=value, shortcut_key=str(n) if keys else None)
        for n, (line, value) in enumerate(choices.items(), start=1)
    ]
    chosen = next((line for line, text in zip(lines, choices, strict=True) if text == default), None)
    if under:
        width = shutil.get_terminal_size().columns - 1  # the menu cuts off what is longer
        whole = re.sub(r"(--[\w-]+) ", "\\1\0", under)  # a flag and its value stay on one line
        lines.append(
            questionary.Separator("\n" + textwrap.fill(whole, width, break_on_hyphens=False).replace("\0", " "))
        )
    instruction = "(arrow keys or number)" if keys else "(arrow keys)"
    asked = questionary.select(question, lines, default=chosen, use_shortcuts=keys, instruction=instruction)
    return _answer(asked)


def _model_line(model: ModelSummary) -> str:
    loss = "no validation yet" if model.best_val_loss is None else f"best loss {model.best_val_loss:.4f}"
    date = f"{model.changed:%Y-%m-%d %H:%M}" if model.changed else "no weights yet"
    state = "" if model.complete else ", unfinished"
    return f"{model.name}  (epoch {model.epochs}{state}, {loss}, {date})"


def ask_name(models_dir: Path, default: str) -> str:
    def free(text: str) -> bool | str:
        try:
            name = check_name(text.strip() or default)
        except UsageError as error:
            return str(error)
        taken = open_folder(models_dir, name).has_weights()
        return f"There is a model {name!r} already; choose another name." if taken else True

    return _ask(f"Model name [{default}]:", free) or default


def free_name(models_dir: Path) -> str:
    """model-1, or the first number after it that is free."""
    return next(n for i in range(1, 10_000) if not open_folder(models_dir, n := f"model-{i}").exists())


def ask_settings(
    given: dict[str, Any], sections_with: Callable[[dict[str, Any]], Sections], current: Any = None
) -> dict[str, str]:
    """Asks for each setting that has a question and was not given as a flag. An empty answer takes the default, and "<"
    goes back to the previous question; at the first question it raises Back.

    sections_with: gives the settings with the defaults that follow from the answers so far. current: the present
    settings of a resumed model, which then are the defaults.
    """
    answers: dict[str, str] = {}
    asked: list[str] = []
    heading = None
    while True:
        so_far = {**given, **answers}
        known = (inherited(current, so_far) if current else {}) | so_far
        sections = sections_with(so_far)
        found = next_question(sections, known, skip={*given, *asked})
        if not found:
            return answers
        name, section, field, default = found
        if section != heading:
            heading = section
            make_console().print(f"\n{_HEADINGS[section]}", style="bold")
        if name in _EXPLANATIONS:
            make_console().print(_EXPLANATIONS[name])
        try:
            answer = ask_setting(name, field, sections[section], known, default=default)
        except Back:
            if not asked:
                raise
            answers.pop(asked.pop(), None)
            continue
        asked.append(name)
        if answer and not (current and answer == default_text(default)):  # repeating the present value changes nothing
            answers[name] = answer


def next_question(
    sections: Sections, known: dict[str, Any], skip: Collection[str]
) -> tuple[str, str, FieldInfo, Any] | None:
    """The name, section, field and default of the next meaningful question; None if there is none left."""
    for name, (section, field) in questions(sections).items():
        default = default_of(name, sections[section], known)
        if name not in skip and default is not None and not _idle(name, known):
            return name, section, field, default
    return None


def ask_setting(name: str, field: FieldInfo, config: type, known: dict[str, Any], *, default: Any) -> str:
    """Asks for one setting and returns the answer. known: the answers so far, which the check may depend on."""
    yes_or_no = f"(y/n) [{'y' if default else 'n'}]"
    shown = yes_or_no if isinstance(default, bool) else f"[{default_text(default)}]"
    cleaned = _path if name == "data" else str.strip

    def valid(text: str) -> bool | str:
        flag = f"--{name.replace('_', '-')} "
        try:
            if text.strip():
                followed = {n: known[n] for n in declared(field, "follows") or () if n in known}
                parse_settings(config, followed | {name: cleaned(text)})
                if name == "data":
                    scan(cleaned(text))
        except UsageError as error:
            return str(error).removeprefix(flag).split("; give")[0]  # there is only one line under a question
        return True

    return cleaned(_ask(f"{declared(field, 'ask')} {shown}:", valid))


def _path(text: str) -> str:
    """A path as a person types or drops it into the terminal: in quotes, or with ~ for the home folder."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return str(Path(text).expanduser()) if text.startswith("~") else text


def ask_stage_epochs(given: dict[str, Any]) -> dict[str, str]:
    """Asks for the epochs of both stages, unless they were given."""
    asked = {name: question for name, question in STAGE_EPOCHS.items() if name not in given}
    return {
        name: _ask(f"{question} [{default}]:", _is_number_of_epochs) or default
        for name, (question, default) in asked.items()
    }


def ask_perceptual(reason: str, network: str, tiny: bool) -> dict[str, str]:
    """Asks how to go on if the weights of the perceptual term's network are not available. Returns settings of that
    term.

    reason: shown below the choices, with the flags that answer the question. tiny: whether the small network that comes
    with the toolkit can stand in.
    """
    make_console().print(f"\nThe weights of {network} are not here.", style="yellow")
    choices = {"Compare the features of the small network that comes with the toolkit": "tiny"} if tiny else {}
    choices |= {
        "Take the weights from a file of mine": "file",
        "Compare untrained, random features (weaker)": "random",
        "Train without the perceptual term": "none",
    }
    answer = _choose("How shall it go on?", choices, under=reason)
    if answer == "file":
        return {"perceptual_weights": _path(_ask(f"File with the weights of {network}:", _is_file))}
    if answer in ("tiny", "random"):
        return {"perceptual_net": answer, "perceptual_weights": "none"}
    return {"perceptual_weight": "0"}


def agreed(question: str = "Start?", *, default: bool = True) -> bool:
    """Asks a yes-or-no question."""

    def valid(text: str) -> bool | str:
        return text.strip().lower() in ("", "y", "yes", "n", "no") or "Answer y or n."

    answer = _ask(f"{question} [{'Y/n' if default else 'y/N'}]:", valid, back=False).lower()
    return answer in ("y", "yes") or (default and not answer)


def _is_file(text: str) -> bool | str:
    path = Path(_path(text))
    return path.is_file() or f"There is no file {text.strip()!r}; type the path of one."


def _is_number_of_epochs(text: str) -> bool | str:
    whole = text.strip().isdecimal() and int(text) > 0
    return whole or not text.strip() or f"{text.strip()!r} is not a number of epochs; type a whole number above 0."


def ask_epochs_to_add(model: str, done: int) -> str:
    return (
        _ask(f"{model} has finished its {counted(done, 'epoch')}. How many more? [10]:", _is_number_of_epochs) or "10"
    )


def ask_schedule(schedule: str) -> str:
    """Asks for the learning-rate schedule of added epochs when that of the run so far has ended."""
    choices = {"cosine: falls to 0 again": "cosine", "constant": "constant", "one-cycle": "one-cycle"}
    return _choose(f"The {schedule} schedule has ended. Which schedule shall the new epochs have?", choices)


def _ask(message: str, validate: Callable[[str], bool | str], *, back: bool = True) -> str:
    """The answer, checked when Enter is pressed. Raises Back if a person types "<"."""

    def valid(text: str) -> bool | str:
        return (back and text.strip() == BACK) or validate(text)

    answer = _answer(questionary.text(message, validate=valid, validate_while_typing=False)).strip()
    if back and answer == BACK:
        raise Back
    return answer


def _answer(question: questionary.Question) -> Any:
    """The answer to a question. Ctrl-D, the end of the input, means the same as Ctrl-C."""
    bindings = question.application.key_bindings
    if isinstance(bindings, KeyBindings):  # those of a list of choices, where Ctrl-D is not bound
        bindings.add("c-d")(lambda event: event.app.exit(exception=EOFError))
    try:
        return question.unsafe_ask()
    except EOFError:
        raise KeyboardInterrupt from None
