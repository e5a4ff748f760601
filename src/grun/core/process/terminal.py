"""Text that is safe to show on a terminal, whatever data it comes from."""

from __future__ import annotations

__all__ = ["one_line", "printable", "printable_json"]

import json
import re
import unicodedata
from typing import Any


def printable(text: str, mark: str | None = None) -> str:
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
    """`printable` text in one line."""
    return printable(re.sub(r"\s*[^\S ]\s*", " ", text).strip())


def printable_json(value: Any) -> str:
    """A value as indented JSON, in which everything that `printable` would not leave as it is is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if _is_harmless(c) else json.dumps(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def _number(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
