"""Makes command-line flags from the configuration models: a field gives the flag, its help, its default, its check."""

import argparse
import difflib
import sys
from collections.abc import Collection, Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from Project7.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError with one sentence instead of printing its usage, suggests the flag or command
    that was meant, and accepts underscores in flags."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **settings)

    def error(self, message: str):
        see = " See" if message.endswith("?") else "; see"
        raise UsageError(f"{message[0].upper()}{message[1:]}{see} {self.prog} --help.")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, extra = super().parse_known_args(hyphenated(sys.argv[1:] if args is None else args), namespace)
        if strange := next((word for word in extra if word.startswith("-")), None):
            flag = strange.split("=")[0]
            self.error(f"there is no flag {flag}{meant(flag, self._option_string_actions)}")
        if any(word.endswith(".tar") for word in extra):
            self.error("--data takes one value; put its braces in quotes, so that the shell leaves them alone")
        return found, extra

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            self.error(f"there is no command {value}{meant(value, action.choices)}")
        super()._check_value(action, value)

    def format_help(self) -> str:
        self.usage = self.usage or self._short_usage()
        return super().format_help()

    def _short_usage(self) -> str:
        """The usage with the required arguments only; the flags are listed below it."""
        words = []
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return f"{self.prog} COMMAND ..."
            if action.required:
                more = " ..." if action.nargs == "+" else ""
                words.append(" ".join([*action.option_strings[:1], f"{action.metavar}{more}"]))
        return " ".join([self.prog, *words, "[flags]"])


def meant(word: str, known: Iterable[str]) -> str:
    """The most similar known word as a question; "" if none is similar."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Text of several lines, such as examples, is not refilled."""
        return text if "\n" in text else super()._fill_text(text, width, indent)


def examples(*lines: str) -> str:
    """The epilog under the flags: example commands."""
    return "\n".join(["examples:", *(f"  {line}" for line in lines)])


def hyphenated(arguments: Iterable[str]) -> list[str]:
    """The arguments with --batch_size as --batch-size. What follows a lone `--` is not a flag."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [
        "=".join([flag.replace("_", "-"), *value]) if argument.startswith("--") else argument
        for argument in arguments[:end]
        for flag, *value in [argument.split("=", 1)]
    ] + arguments[end:]


def add_settings(
    parser: argparse._ActionsContainer, config: type[BaseModel], *, only: Collection[str] | None = None
) -> None:
    """Adds a flag for each field, or only for the fields in `only`.

    A flag that was not given is absent from the namespace, so that its default can come from elsewhere.
    """
    for name, field in config.model_fields.items():
        if name == "method" or (only is not None and name not in only):
            continue
        flag, about = "--" + name.replace("_", "-"), f"{field.description} {_default(field)}".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=about)
        else:
            action = "append" if repeatable(field) else "store"
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, metavar=_metavar(field), help=about)


def repeatable(field: FieldInfo) -> bool:
    """Whether the flag may be given several times: texts such as paths cannot be separated by commas."""
    items = get_args(field.annotation)
    return get_origin(field.annotation) is tuple and (get_args(items[0]) or items)[0] is str


def given(namespace: argparse.Namespace, config: type[BaseModel]) -> dict[str, Any]:
    """The settings of `config` that were given as flags."""
    return {name: value for name, value in vars(namespace).items() if name in config.model_fields}


def default_text(value: Any) -> str:
    """A value as a person would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def _default(field: FieldInfo) -> str:
    return "" if field.default is None else f"({default_text(field.default)})"


def _metavar(field: FieldInfo) -> str:
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(c, str | int) for c in choices):
        return "|".join(map(str, choices))
    if repeatable(field):
        return "PATH"
    kind = str(field.annotation)
    if "tuple" in kind:
        return "N,N,..."
    return "X" if "float" in kind else "N" if "int" in kind else "TEXT"
