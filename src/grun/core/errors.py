"""Errors for people: one line that says what was found, what was expected and what to do; and text that is safe to show."""

from __future__ import annotations

__all__ = [
    "Interrupted",
    "NotWritten",
    "RunsFailed",
    "TrainingDiverged",
    "UserError",
    "nearest",
    "one_line",
    "shown",
    "shown_json",
]

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Wrong input: the command line prints the message as one line and exits with code 2, without a traceback.

    The message names the file, row, field or flag, what was found, what was expected and what to do. What it quotes is shown
    as text, in one line, wherever it is printed.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite: the command line prints the message and exits with code 3.

    The message names the step and the directory of the last good state.
    """


class RunsFailed(RuntimeError):
    """Some runs of a sweep failed: the command line prints the message and exits with code 1. The message names them."""


class NotWritten(RuntimeError):
    """A disk is full or went away in the middle of the work: the command line prints the message and exits with code 1.

    The message names the place, how much is free, and what is kept.
    """


class Interrupted(KeyboardInterrupt):
    """The user stopped a job whose state is kept: the command line prints the message and exits with code 130.

    The message names the directory of the state and says how to resume. It is a `KeyboardInterrupt`, so that no `except
    Exception` swallows it.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice nearest to `name`, or an empty string where none is near."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def shown(text: str, mark: str | None = None) -> str:
    r"""Text that came from data, safe to show: what a terminal would obey, or would not show at all, is written out.

    That is everything that cannot be printed: escape sequences, marks that turn the direction of writing, characters
    without width, halves of characters. Line breaks and all kinds of spaces stay.

    Args:
        text: the text.
        mark: stands for each such character; None writes its number (`\x1b`).
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else (_number(c) if mark is None else mark) for c in text)


def one_line(text: str) -> str:
    """`shown` in one line."""
    return shown(re.sub(r"\s*[^\S ]\s*", " ", text).strip())


def shown_json(value: Any) -> str:
    """A value as indented JSON, in which everything that `shown` would not show is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if _is_harmless(c) else json.dumps(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def _number(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
