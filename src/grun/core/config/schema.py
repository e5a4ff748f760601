"""Declaration, reading and checking of settings; the settings themselves are in `jobs`."""

from __future__ import annotations

__all__ = ["GROUPS", "check_choice", "check_range", "flag", "from_mapping", "from_text", "option", "without_none"]

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from grun.core.choices import KINDS
from grun.core.errors import UserError, nearest

C = TypeVar("C")
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
    choices_from: str | None = None,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: value where none is given.
        help: documentation, with the unit.
        group: heading that it is listed under, one of `GROUPS`.
        minimum, maximum: range that is checked when a value is given.
        choices_from: registry whose names are its values, a key of `grun.core.choices.KINDS`; the help lists them, and the
            registry refuses any other name.
    """
    assert group in GROUPS, f"{group!r} is none of {GROUPS}"
    assert choices_from is None or choices_from in KINDS, f"{choices_from!r} is no registry"
    metadata = {"help": help, "group": group, "minimum": minimum, "maximum": maximum, "choices_from": choices_from}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """The command-line flag of a field, for messages."""
    return "--" + name.replace("_", "-")


def from_mapping(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """`cls` from a mapping such as a YAML file's, with types checked.

    Raises:
        UserError: for an unknown key (with the nearest known one) or a value of the wrong type; names `where`.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    out = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{where}: unknown setting '{key}'.{nearest(name, known)}")
        out[name] = _coerce(name, value, hints[name], where)
    return cls(**out)


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
    if kind is int and text.lstrip("-").isdigit():
        return int(text)
    if kind is list:
        return [part.strip() for part in text.split(",")]
    if kind is dict:
        return dict(part.strip().split("=", 1) for part in text.split(",") if "=" in part)
    return text


def _coerce(name: str, value: Any, hint: Any, where: str) -> Any:
    if value is None and type(None) in get_args(hint):
        return None
    kind = without_none(hint)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, str):  # YAML reads 4e-3 as a string
        try:
            return float(value)
        except ValueError:
            pass
    base = get_origin(kind) or kind
    if isinstance(value, base) and not (base is int and isinstance(value, bool)):
        return {str(k): _as_text(v) for k, v in value.items()} if base is dict else value
    raise UserError(f"{where}: '{name}' is {value!r}, expected {getattr(base, '__name__', base)}.")


def _as_text(value: Any) -> str:
    """A value in a file's mapping in the form of the command line; a list as in `--vary`."""
    return "".join(f"{item};" for item in value) if isinstance(value, list) else str(value)


def check_range(f: dataclasses.Field[Any], value: Any) -> None:
    """Refuse a number outside the range that its field declares.

    Raises:
        UserError: naming the flag.
    """
    low, high = f.metadata.get("minimum"), f.metadata.get("maximum")
    if value is None or not isinstance(value, (int, float)):
        return
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        expected = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{flag(f.name)} is {value}, expected {expected}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices.

    Raises:
        UserError: naming the flag, with the nearest choice.
    """
    if value not in choices:
        raise UserError(f"{flag(name)} is '{value}', expected one of {', '.join(choices)}.{nearest(value, choices)}")
