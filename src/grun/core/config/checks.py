"""Checks of settings from what their fields declare: bounds of numbers, choices, and forms of texts."""

from __future__ import annotations

__all__ = [
    "FORMS",
    "LARGEST",
    "MOST_EPOCHS",
    "MOST_ROWS",
    "MOST_SEED",
    "MOST_STEPS",
    "check_choice",
    "check_fields",
    "check_rows",
    "check_setting",
    "check_text",
    "flag",
    "shown",
]

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from grun.core.errors import UserError, nearest

# Most characters of a text by its form: a line, running text, a path or hub id, and name=path.
FORMS = {"line": 4_096, "words": 100_000, "path": 4_095, "split": 4_095}
COMPONENT = 255  # most bytes of a name in a path, on every usual file system
MOST_SEED = 2**32 - 1  # of numpy's generators
MOST_STEPS = 10_000_000
MOST_EPOCHS = 1_000_000
LARGEST = 3e38  # that float32 holds
MOST_ITEMS = 10_000  # of a list or mapping
MOST_ROWS = 5_000_000  # rows of training, over all steps; their order is held in memory
SHOWN = 60  # characters of a value in messages
DIGITS = 200  # bits of the largest number that is written out
SURROGATES = re.compile(r"[\ud800-\udfff]")
CONTROL = {
    True: re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"),
    False: re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
}  # characters that may not stand in one line, and in several
KEY = re.compile(r"[^\W\d][\w.-]*")


def flag(name: str) -> str:
    """The command-line flag of a field, for messages."""
    return "--" + name.replace("_", "-")


def shown(value: Any) -> str:
    """A value for a message: short, printable and in one line, whatever was given."""
    if isinstance(value, str):
        rest = f"... ({len(value):,} characters)" if len(value) > SHOWN else ""
        text = value[:SHOWN]
        return (f"'{text}'" if text.isprintable() else repr(text)) + rest
    if isinstance(value, int) and value.bit_length() > DIGITS:
        return f"a number of about {round(value.bit_length() * math.log10(2)):,} digits"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return f"a {'mapping' if isinstance(value, Mapping) else type(value).__name__} of {len(value):,}"
    return f"a {type(value).__name__}"


def check_fields(config: Any) -> None:
    """Refuse a configuration with a value that its fields do not allow.

    Raises:
        UserError: naming the flag.
    """
    for f in dataclasses.fields(config):
        check_setting(f, getattr(config, f.name), flag(f.name))


def check_setting(f: dataclasses.Field[Any], value: Any, name: str) -> None:
    """Refuse a value that its field does not allow; its type is not looked at.

    Args:
        f: field that was made by `option`.
        value: of its type.
        name: what the setting is called in messages.

    Raises:
        UserError: for a number that is out of range or not finite, or a text, an item or a key of the wrong form.
    """
    form = f.metadata["form"]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_number(f.metadata, value, name)
    elif isinstance(value, str) and not (value == "" == f.default):  # nothing was given; the job says what is missing
        check_text(value, name, form)
        if f.metadata["choices"]:
            check_choice(f.name, value, f.metadata["choices"], name)
        if f.metadata["pattern"] and not re.fullmatch(f.metadata["pattern"][0], value):
            raise UserError(f"{name} is {shown(value)}, expected {f.metadata['pattern'][1]}.")
    elif isinstance(value, (list, tuple, dict)):
        if len(value) > MOST_ITEMS:
            raise UserError(f"{name} has {len(value):,} values, expected at most {MOST_ITEMS:,}.")
        for item in value:
            if isinstance(value, dict):
                _check_pair(item, value[item], name)
            elif isinstance(item, str):
                check_text(item, name, form)


def check_text(text: str, name: str, form: str = "line") -> None:
    """Refuse a text that is empty, too long, or holds characters that cannot be meant.

    Args:
        text: the text.
        name: what the setting is called in messages.
        form: one of `FORMS`; only `words` may have several lines.

    Raises:
        UserError: naming the setting.
    """
    if not text.strip():
        found = "empty" if not text else f"{shown(text)}, which is blank"
        raise UserError(f"{name} is {found}; give a value, or leave {name.split()[0]} out.")
    if found_at := SURROGATES.search(text):
        raise UserError(f"{name} is not valid UTF-8 at character {found_at.start() + 1}; expected text.")
    if found_at := CONTROL[form != "words"].search(text):
        raise UserError(
            f"{name} is {shown(text)}: character {found_at.start() + 1} is {found_at[0]!r}, expected text without control "
            "characters."
        )
    if len(text) > FORMS[form]:
        raise UserError(f"{name} is {shown(text)}, expected at most {FORMS[form]:,} characters.")
    if form in ("path", "split"):
        _check_path(text.partition("=")[2] if form == "split" else text, name)


def check_choice(name: str, value: str, choices: Collection[str], called: str | None = None) -> None:
    """Refuse a value that is not among the choices.

    Args:
        name: of the setting.
        value: its value.
        choices: that it has.
        called: what it is called in the message; None for its flag.

    Raises:
        UserError: naming the setting, with the nearest choice.
    """
    if value not in choices:
        raise UserError(
            f"{called or flag(name)} is {shown(value)}, expected one of {', '.join(choices)}.{nearest(value, choices)}"
        )


def check_rows(rows: float, factors: Mapping[str, float]) -> None:
    """Refuse a training of more rows than can be ordered in memory.

    Args:
        rows: that training would see, repeated ones included.
        factors: what their number comes from, by what each is called.

    Raises:
        UserError: with all numbers.
    """
    if rows > MOST_ROWS:
        product = " x ".join(f"{name} {value:,}" for name, value in factors.items())
        raise UserError(
            f"{product} are {rows:,.0f} rows of training, expected at most {MOST_ROWS:,}; lower one of them."
        )


def _check_number(declared: Mapping[str, Any], value: float, name: str) -> None:
    low, high, above = declared["minimum"], declared["maximum"], declared["above"]
    expected = ""
    if not isinstance(value, int) and not math.isfinite(value):
        expected = "a finite number, " + (f"above {above:g}" if low is None else f"at least {low:g}")
    elif above is not None and value <= above:
        expected = f"above {above:g}"
    elif low is not None and value < low:
        expected = f"at least {low}"
    elif high is not None and value > high:
        expected = f"at most {high:,}" if isinstance(high, int) else f"at most {high:g}"
    if expected:
        raise UserError(f"{name} is {shown(value)}, expected {expected}.")


def _check_pair(key: Any, content: Any, name: str) -> None:
    if not KEY.fullmatch(str(key)):
        raise UserError(
            f"{name} has the name {shown(key)}, expected one of letters, digits, '_' and '-' before the '='."
        )
    check_text(str(key), name)
    if isinstance(content, str):
        check_text(content, f"{name} {key}", "words")


def _check_path(path: str, name: str) -> None:
    for component in path.split("/"):
        size = len(component.encode())
        if size > COMPONENT:
            raise UserError(
                f"{name}: the name {shown(component)} in it has {size:,} bytes, expected at most {COMPONENT}; shorten it."
            )
