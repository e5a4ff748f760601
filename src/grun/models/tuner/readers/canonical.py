"""Canonical text: what stays of it when case, accents, invisible and look-alike characters make no difference."""

from __future__ import annotations

__all__ = ["BOUNDARY", "CAPITAL", "Word", "alike", "canonical", "leet", "marked", "split_words"]

import re
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

CAPITAL = "\1"  # stands before a capital letter that begins a word
BOUNDARY = "\0"  # stands for a special token: no name goes on behind it
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and marks that show nothing
SYMBOLS = "@$!|€"  # that stand for letters
LEET = str.maketrans("013456789@$!|€", "oleasgtbgasiie")
# Thai to Han.
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(
    rf"{BOUNDARY}|[{UNSPACED}]|{CAPITAL}?[^\W_{UNSPACED}]+(?:[{re.escape(SYMBOLS)}{CAPITAL}]+[^\W_{UNSPACED}]+)*"
)
BEGINS = re.compile(r"(?<![^\W_])(?=[A-Z\u0391-\u03a9\u0410-\u042f])")
CAPITAL_SHAPES = {"в": "b", "к": "k", "м": "m", "н": "h", "т": "t"}  # small letters of the shape of Latin capitals


@dataclass(frozen=True)
class Word:
    """A word of canonical text.

    Attributes:
        text: letters and digits, case-folded; `BOUNDARY` for a special token.
        end: number of canonical characters up to its end.
        capital: it begins with a capital letter.
    """

    text: str
    end: int
    capital: bool = False


@cache
def _shapes() -> dict[int, str | None]:
    """By code point, the Latin letter of the same shape (Unicode's confusables), and None for characters that show nothing."""
    from confusable_homoglyphs.confusables import confusables_data  # type: ignore[import-untyped]  # a megabyte of JSON

    found: dict[int, str | None] = {ord(letter): shape for letter, shape in CAPITAL_SHAPES.items()}
    for letter, alike in confusables_data.items():
        shape = next(
            (one["c"] for one in alike if one["c"].isascii() and one["c"].isalpha() and len(one["c"]) == 1), None
        )
        if len(letter) == 1 and not letter.isascii() and shape is not None:
            found[ord(letter)] = shape
    invisible = (code for code in range(0x80, sys.maxunicode) if unicodedata.category(chr(code)) == "Cf")
    found |= dict.fromkeys([*invisible, *range(0xFE00, 0xFE10), *map(ord, FILLERS)], None)
    return found


def canonical(text: str) -> str:
    """The text with letters of the same shape made equal, case-folded, without accents and invisible characters."""
    return _shown(text).casefold()


def marked(text: str) -> str:
    """Canonical text in which `CAPITAL` stands before every word that begins with a capital letter."""
    return BEGINS.sub(CAPITAL, _shown(text.replace(CAPITAL, ""))).casefold()


def _shown(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(_shapes())).translate(_shapes())
        text = "".join(letter for letter in text if not unicodedata.combining(letter))
    return text


def split_words(text: str) -> list[Word]:
    """The words of canonical text; symbols between letters stay, since they may stand for letters."""
    words = ((found.group(), found.end()) for found in WORD.finditer(text))
    return [Word(word.replace(CAPITAL, ""), end, word.startswith(CAPITAL)) for word, end in words]


def leet(word: str) -> str | None:
    """The word with digits and symbols read as the letters that they stand for; None if it does not mix them with letters."""
    if word.isalpha() or not any(letter.isalpha() for letter in word):
        return None
    return alike(word.translate(LEET))


def alike(word: str) -> str:
    """The word with i and l made equal: a 1 stands for either."""
    return word.replace("i", "l")
