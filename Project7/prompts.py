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

from Project7.errors import UsageError
from Project7.flags import default_text
from Project7.model_folder import ModelSummary, check_name, list_models, open_folder
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
_EXPLANATIONS = {  # shown before that question
    "mse_weight": """How much each objective counts. Good values to start with:
  MSE          1.0    the prediction itself; keep it at 1.0
  perceptual   0.1    colours that look right, by the features of VGG16; 0.2 to 0.5 if they stay wrong
  adversarial  0.01   colours that a discriminator takes for real; up to 0.05, and less stable""",
    "loss": """What is minimised:
  simple     LPIPS + Lab + twice ab: stable, with the features of a trained network to guide it
  weighted   ab alone, saturated colours counting more than gray: needs no other network
  enhanced   LPIPS + L + much ab + saturation, in presets: against sepia and purple""",
}
_ORDER = ("loss", "model", "training", "data", "objective")
STAGE_EPOCHS = {  # two-stage training asks for these instead of `epochs`: question and default
    "stage1_epochs": ("Epochs of stage 1 (squared error alone)", "30"),
    "stage2_epochs": ("Epochs of stage 2 (all terms)", "15"),
}


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
        if name not in given and not _idle(name, given) and default_of(name, sections[section], given) is not None
    ]
    return ["--" + q.replace("_", "-") for q in ([] if name else ["name"]) + open_questions]


def _idle(question: str, answers: dict[str, Any]) -> bool:
    """Whether a question has no meaning after these answers: the weight of a discriminator that is not there."""
    return question == "adversarial_weight" and not _yes(answers.get("gan", False))


def default_of(name: str, config: type, answers: dict[str, Any]) -> Any:
    """What a setting is if it is not given, after the answers so far; None: there is no such thing then."""
    known = {n: value for n, value in answers.items() if n in config.model_fields}
    try:
        return getattr(parse_settings(config, known), name)
    except UsageError:  # said where the settings are built
        return config.model_fields[name].default


def _yes(answer: Any) -> bool:
    return answer is True or str(answer).strip().lower() in ("y", "yes", "true", "1", "on", "t")


def ask_model(models_dir: Path, *, stages: bool = False) -> tuple[str | None, bool]:
    """Which model to resume, None to create a new one; and whether to train it in two stages, where there are any."""
    models = list_models(models_dir)
    if not models:
        message = f"There are no models in {models_dir} yet: this will be the first."
        Console().print(message, highlight=False, markup=False)
        if not stages:
            return None, False
    lines = [_model_line(model) for model in models] + [CREATE] + [CREATE_IN_STAGES] * stages
    answers = [(m.name, False) for m in models] + [(None, False)] + [(None, True)] * stages
    question = "Do you want to resume from an existing model?" if models else "What shall be trained?"
    return _choose(question, dict(zip(lines, answers, strict=True)), default=lines[-1])


def _choose(question: str, choices: dict[str, Any], default: str | None = None) -> Any:
    """A numbered list: line -> value. The number keys work while there are nine or fewer."""
    keys = len(choices) <= 9  # questionary then shows the numbers itself
    lines = [
        questionary.Choice(line if keys else f"{n}. {line}", value=value, shortcut_key=str(n) if keys else None)
        for n, (line, value) in enumerate(choices.items(), start=1)
    ]
    chosen = next((line for line, text in zip(lines, choices, strict=True) if text == default), None)
    instruction = "(arrow keys or number)" if keys else "(arrow keys)"
    return questionary.select(question, lines, default=chosen, use_shortcuts=keys, instruction=instruction).unsafe_ask()


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
        taken = open_folder(models_dir, name).exists()
        return f"There is a model {name!r} already; choose another name." if taken else True

    return _ask(f"Model name [{default}]:", free) or default


def free_name(models_dir: Path) -> str:
    """model-1, or the first number after it that is free."""
    return next(n for i in range(1, 10_000) if not open_folder(models_dir, n := f"model-{i}").exists())


def ask_settings(
    given: dict[str, Any], sections_with: Callable[[dict[str, Any]], Sections], current: Any = None
) -> dict[str, str]:
    """Asks for each setting that has a question and was not given as a flag. An empty answer takes the default.

    sections_with: the settings, with the defaults that the answers so far bring along. current: the settings of the
    model so far, which are then the defaults.
    """
    answers: dict[str, str] = {}
    heading = None
    for name, (section, field) in questions(sections_with(given)).items():
        so_far = {**given, **answers}
        config = sections_with(so_far)[section]
        known = (inherited(current, so_far) if current else {}) | so_far
        default = default_of(name, config, known)
        if name in given or default is None or _idle(name, known):
            continue
        if section != heading:
            heading = section
            Console().print(f"\n[bold]{_HEADINGS[section]}[/bold]")
        if name in _EXPLANATIONS:
            Console().print(_EXPLANATIONS[name], highlight=False)
        answer = ask_setting(name, field, config, known, default=default)
        if answer and not (current and answer == default_text(default)):  # a repetition changes nothing
            answers[name] = answer
    return answers


def ask_setting(name: str, field: FieldInfo, config: type, known: dict[str, Any], *, default: Any) -> str:
    """known: the answers so far, without some of which this one has no meaning."""
    yes_or_no = f"(y/n) [{'y' if default else 'n'}]"
    shown = yes_or_no if isinstance(default, bool) else f"[{default_text(default)}]"

    def valid(text: str) -> bool | str:
        try:
            if text.strip():
                beside = {n: known[n] for n in declared(field, "follows") or () if n in known}
                parse_settings(config, beside | {name: text})
        except UsageError as error:
            return str(error).removeprefix(f"--{name.replace('_', '-')} ")
        return True

    return _ask(f"{declared(field, 'ask')} {shown}:", valid)


def ask_stage_epochs(given: dict[str, Any]) -> dict[str, str]:
    """The epochs of both stages, where they were not given."""
    asked = {name: question for name, question in STAGE_EPOCHS.items() if name not in given}
    return {
        name: _ask(f"{question} [{default}]:", _is_number_of_epochs) or default
        for name, (question, default) in asked.items()
    }


def ask_perceptual(reason: str, network: str, tiny: bool) -> dict[str, str]:
    """The weights of the network of the perceptual term cannot be had: what to do. Returns settings of that term.

    tiny: whether the small network that comes with the toolkit can stand in.
    """
    Console(soft_wrap=True).print(f"\n{reason}", style="yellow", highlight=False, markup=False)
    choices = {"Compare the features of the small network that comes with the toolkit": "tiny"} if tiny else {}
    choices |= {
        "Take the weights from a file of mine": "file",
        "Compare untrained, random features (weaker)": "random",
        "Train without the perceptual term": "none",
    }
    answer = _choose("How shall it go on?", choices)
    if answer == "file":
        return {"perceptual_weights": _ask(f"File with the weights of {network}:", _is_file)}
    if answer in ("tiny", "random"):
        return {"perceptual_net": answer, "perceptual_weights": "none"}
    return {"perceptual_weight": "0"}


def _is_file(text: str) -> bool | str:
    path = Path(text.strip()).expanduser()
    return path.is_file() or f"There is no file {text.strip()!r}; type the path of one."


def _is_number_of_epochs(text: str) -> bool | str:
    whole = text.strip().isdecimal() and int(text) > 0
    return whole or not text.strip() or f"{text.strip()!r} is not a number of epochs; type a whole number above 0."


def ask_epochs_to_add(model: str, done: int) -> str:
    return _ask(f"{model} has finished its {done} epochs. How many more? [10]:", _is_number_of_epochs) or "10"


def ask_schedule(schedule: str) -> str:
    """The course of the learning rate in added epochs, where that of the run so far has come to its end."""
    choices = {"cosine: falls to nothing again": "cosine", "constant": "constant", "one-cycle": "one-cycle"}
    return _choose(f"The {schedule} learning rate has ended. Which course shall the new epochs have?", choices)


def _ask(message: str, validate: Callable[[str], bool | str]) -> str:
    return questionary.text(message, validate=validate).unsafe_ask().strip()
