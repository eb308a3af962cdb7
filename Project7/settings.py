"""A setting is a field of a frozen pydantic model: its flag, question, help line, default, bounds and JSON key.

No torch here, so that `--help` and the first question appear at once.
"""

import re
from collections.abc import Iterable
from copy import copy
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from Project7.errors import UsageError

SETTINGS = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def setting(
    default: Any,
    about: str,
    *,
    ask: str | None = None,
    fixed: bool = True,
    follows: tuple[str, ...] = (),
    **bounds: Any,
) -> Any:
    """A field of a settings model. about: its help line. ask: its question. fixed: whether a model keeps the value for
    life (a resumed run inherits it). follows: the settings that determine its value when they change."""
    said: dict[str, Any] = {"ask": ask, "fixed": fixed, "follows": follows}
    return Field(default, description=about, json_schema_extra=said, **bounds)


Sections = dict[str, type[BaseModel]]  # the settings of one recipe: parts of RunConfig by their names there


def with_defaults(
    config: type[BaseModel], *, hide: tuple[str, ...] = (), ask: dict[str, str] | None = None, **defaults: Any
) -> type[BaseModel]:
    """`config` with other defaults, for a recipe. hide: settings that are flags but not asked for. ask: setting ->
    question, for settings that are to be asked for."""
    changed: dict[str, Any] = {}
    asked = dict.fromkeys(hide) | (ask or {})
    for name in {*asked, *defaults}:
        field = copy(config.model_fields[name])
        field.default = defaults.get(name, field.default)
        if name in asked:
            said: Any = field.json_schema_extra
            field.json_schema_extra = {**said, "ask": asked[name]}
        changed[name] = (field.annotation, field)
    return create_model(config.__name__, __base__=config, **changed)


def setting_fields(sections: Sections) -> dict[str, tuple[str, Any]]:
    """name -> (section of RunConfig, pydantic FieldInfo), for all settings of a recipe."""
    return {
        name: (section, field)
        for section, config in sections.items()
        for name, field in config.model_fields.items()
        if name != "method"
    }


def declared(field: Any, key: str) -> Any:
    """What a field made by `setting` declares: its `ask`, `fixed` or `follows`."""
    return (field.json_schema_extra or {}).get(key)


def inherited(stored: BaseModel, new: Iterable[str]) -> dict[str, Any]:
    """The stored settings that stay valid beside `new` ones: all except those that follow from one of them."""
    fields, names = type(stored).model_fields, set(new)
    return {n: v for n, v in stored.model_dump().items() if not set(declared(fields[n], "follows") or ()) & names}


def parse_text(text: str, kind: Any) -> Any:
    """Reads what a person types for a value of type `kind`: commas separate the numbers of a list, and 'none' means no
    value; pydantic does the rest."""
    text = text.strip()
    choices = get_args(kind)
    if type(None) in choices:
        if text.lower() == "none":
            return None
        kind = next(choice for choice in choices if choice is not type(None))
    if get_origin(kind) is tuple:  # a single number is a list, too
        item = get_args(kind)[0]
        is_text = (get_args(item) or (item,))[0] is str  # a path may hold commas
        return text if is_text else [part.strip() for part in text.strip("[]() ").split(",")]
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    return text


def parse_settings(config: type[BaseModel], values: dict[str, Any]) -> Any:
    """`config(**values)`, with texts read as a person types them. Raises UsageError, which says on one line everything
    that is wrong."""
    kinds = {name: field.annotation for name, field in config.model_fields.items()}
    values = {name: parse_text(v, kinds.get(name)) if isinstance(v, str) else v for name, v in values.items()}
    try:
        return config(**values)
    except ValidationError as error:
        raise UsageError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """A pydantic error as one line: each flag, what was given, and the rule."""
    parts: dict[str, str] = {}
    for item in error.errors():
        rule = (
            "answer y or n"
            if item["type"] == "bool_parsing"
            else item["msg"].removeprefix("Value error, ").split(", unable to parse")[0]
        )
        if isinstance(item["input"], str) and re.fullmatch(r"-?\d+,\d+", item["input"]):
            rule += f"; write {item['input'].replace(',', '.')}, with a point"
        flag = next((str(p) for p in reversed(item["loc"]) if isinstance(p, str)), "")
        given = item["input"]
        shown = f" {given}" if isinstance(given, str | int | float | bool) else ""
        line = f"--{flag.replace('_', '-')}{shown}: {rule[0].lower()}{rule[1:]}" if flag else rule
        parts.setdefault(flag or line, line)  # further faults of the same value are left out
    return "; ".join(parts.values())
