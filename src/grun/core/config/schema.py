"""Declaration, reading and checking of settings; the settings themselves are in `jobs`."""

from __future__ import annotations

__all__ = [
    "GROUPS",
    "check_choice",
    "check_fields",
    "flag",
    "from_mapping",
    "from_text",
    "option",
    "text_of",
    "without_none",
]

import dataclasses
import datetime
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from grun.core.choices import KINDS
from grun.core.config.checks import FORMS, check_choice, check_fields, flag, shown
from grun.core.errors import UserError, nearest

C = TypeVar("C")
NAME = 100  # characters of an unknown name that are compared with the known ones
SCALARS = (str, bool, int, float, type(None))
WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    list: "list of texts",
    dict: "mapping of names to values",
}
# Headings of `--help` pages, in their order; the main settings of a job come before all of them.
GROUPS = (
    "request",
    "guarantee",
    "method",
    "gate",
    "training",
    "model from scratch",
    "measuring",
    "data",
    "machine",
    "run",
)


def option(
    default: Any,
    help: str,
    *,
    group: str,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    choices_from: str | None = None,
    form: str = "line",
    pattern: tuple[str, str] | None = None,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: value where none is given.
        help: documentation, with the unit.
        group: heading that it is listed under, one of `GROUPS`.
        minimum, maximum, above: range that is checked when a value is given; `above` is a lower bound that is no value
            itself. Every number has bounds on both sides.
        choices: its values, where they are known here.
        choices_from: registry whose names are its values, a key of `grun.core.choices.KINDS`; the help lists them, and the
            registry refuses any other name.
        form: of a text or of the items of a list, one of `grun.core.config.checks.FORMS`.
        pattern: regular expression of the whole text, and what it matches, for messages.
    """
    assert group in GROUPS, f"{group!r} is none of {GROUPS}"
    assert choices_from is None or choices_from in KINDS, f"{choices_from!r} is no registry"
    assert form in FORMS, f"{form!r} is no form of a text"
    declared = dict(locals())
    metadata = {name: value for name, value in declared.items() if name != "default"}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str, *, says_where: bool = True) -> C:
    """`cls` from a mapping such as a YAML file's, with types checked.

    Args:
        cls: a configuration.
        values: by name.
        where: what holds them, for messages.
        says_where: begin messages about values out of range with it as well.

    Raises:
        UserError: for an unknown key (with the nearest known one) or a value of the wrong type; names `where`.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{where}: unknown setting {shown(key)}.{nearest(name[:NAME], known)}")
        if name in out:
            raise UserError(f"{where}: '{name}' is given twice; leave one of them out.")
        out[name] = _coerce(name, value, hints[name], where)
    try:
        return cls(**out)
    except UserError as error:
        if not says_where:
            raise
        raise UserError(f"{where}: {error}") from error


def from_text(cls: type[C], values: Mapping[str, str], where: str) -> C:
    """`cls` from settings that are all text, as on a command line; items of lists and mappings stand between commas.

    Raises:
        UserError: as `from_mapping` does.
    """
    hints = get_type_hints(cls)
    typed = {name: _typed(text, hints.get(name.replace("-", "_"))) for name, text in values.items()}
    return from_mapping(cls, typed, where)


def without_none(hint: Any) -> Any:
    """The type of a setting that may also be None."""
    return next((t for t in get_args(hint) if t is not type(None)), hint) if type(None) in get_args(hint) else hint


def _typed(text: str, hint: Any) -> Any:
    """The value of a text for a field; a text without one is returned as it is, and `from_mapping` refuses it."""
    kind = get_origin(without_none(hint)) or without_none(hint)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is int:
        try:
            return int(text)
        except ValueError:
            return text
    if kind is list:
        return [part.strip() for part in text.split(",")]
    if kind is dict:
        pairs = [part.strip().partition("=") for part in text.split(",")]
        return {name: value for name, equals, value in pairs} if all(pair[1] for pair in pairs) else text
    return text


def _coerce(name: str, value: Any, hint: Any, where: str) -> Any:
    if value is None and type(None) in get_args(hint):
        return None
    kind = without_none(hint)
    base = get_origin(kind) or kind
    if base is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 4e-3 as a string
        except (ValueError, OverflowError):
            pass
    fits = isinstance(value, base) and not (base is int and isinstance(value, bool))
    if fits and base is dict and all(isinstance(key, str) for key in value):
        return {key: _as_text(item, f"{where}: '{name}' has {shown(key)}, which") for key, item in value.items()}
    if fits and base is list:
        wrong = [item for item in value if not isinstance(item, str)]
        if not wrong:
            return value
        raise UserError(f"{where}: '{name}' holds {shown(wrong[0])}, expected texts; put what is one in quotes.")
    if fits and base is not dict:
        return value
    hint = " Put it in quotes." if base is str and isinstance(value, (bool, int, float, datetime.date)) else ""
    raise UserError(f"{where}: '{name}' is {shown(value)}, expected {WORDS.get(base, base.__name__)}.{hint}")


def _as_text(value: Any, what: str) -> str:
    """A value in a file's mapping in the form of the command line; a list as in `--vary`.

    Raises:
        UserError: for something deeper; it begins with `what`.
    """
    if isinstance(value, list) and all(isinstance(item, SCALARS) for item in value):
        return "".join(f"{text_of(item)};" for item in value)
    if isinstance(value, dict) and all(isinstance(item, SCALARS) for item in (*value, *value.values())):
        return json.dumps(value)
    if not isinstance(value, SCALARS):
        raise UserError(f"{what} is {shown(value)}, expected a text, a number or a list of them.")
    return text_of(value)


def text_of(value: Any) -> str:
    """A number, a text or the like as text."""
    try:
        return str(value)
    except ValueError:  # Python writes out integers of up to 4,300 digits
        return shown(value)
