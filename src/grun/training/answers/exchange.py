"""Names of subjects in rows, found and exchanged for others."""

from __future__ import annotations

__all__ = ["Exchange", "any_of", "held_names", "key_of"]

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from grun.core.records import Example
from grun.models.gates.text.spans import WORD
from grun.training.answers.unknown_names import parts_of

SHORTEST = 3  # letters of a word that stands for a name of several words
BETWEEN = r"[\W_]{0,3}"  # words of a name, as spans have them without spaces and marks


@dataclass(frozen=True)
class Exchange:
    """Names, and what is written in their place.

    Attributes:
        pattern: finds all names and words.
        names: what stands for each whole name (see `key_of`).
        words: what stands for single words of names; only where they are written with a capital, if they are in the name.
    """

    pattern: re.Pattern[str]
    names: Mapping[str, str]
    words: Mapping[str, str]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Exchange:
        """The exchange of names, and of those words of them that may stand for the whole."""
        words = [found for pair in pairs for found in _words(*pair)]
        by_key = [{key_of(one): other for one, other in part} for part in (pairs, words)]
        return cls(any_of(one for one, _ in (*pairs, *words)), *by_key)

    def __call__(self, text: str) -> str:
        """The text with all names exchanged; those in capitals or small letters stay so."""
        return self.pattern.sub(lambda found: self._other(found[0]), text)

    def _other(self, found: str) -> str:
        key = key_of(found)
        if key in self.names:
            return _with_capitals(self.names[key], found)
        other = self.words.get(key, found)
        return found if found.islower() and not other.islower() else _with_capitals(other, found)

    def row(self, row: Example) -> Example:
        """A row with the names in its prompt and in the turns before it exchanged."""
        turns = tuple((role, self(content)) for role, content in row.turns)
        return replace(row, prompt=self(row.prompt), turns=turns)


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds each of some names, the longest first, whatever its capitals."""
    longest = sorted(set(names), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(_pattern, longest)) or r"(?!)", re.IGNORECASE)


def held_names(names: Sequence[str], text: str) -> list[str]:
    """The names that a text holds, as they are written there, the longest first; none that stands within another one."""
    own: list[str] = []
    plain = text.casefold()
    possible = [name for name in names if all(word.casefold() in plain for word in WORD.findall(name))]
    for name in sorted(possible, key=len, reverse=True):
        found = re.search(_pattern(name), text, re.IGNORECASE) or re.search(_loose(name), text, re.IGNORECASE)
        written = "" if found is None else found[0] + _marks_after(text, found.end())
        if written and not any(key_of(written) in key_of(other) for other in own):
            own.append(written)
    return own


def key_of(text: str) -> str:
    """A text as it is compared with others: without capitals and double spaces."""
    return " ".join(text.split()).casefold()


def _words(name: str, other: str) -> Iterator[tuple[str, str]]:
    for (is_word, one), (_, two) in zip(parts_of(name), parts_of(other), strict=True):
        if is_word and one != two and min(len(one), len(two)) >= SHORTEST and not one.islower():
            yield one, two


def _with_capitals(other: str, found: str) -> str:
    if len(found) > 1 and found.isupper():
        return other.upper()
    return other.lower() if found.islower() else other


def _pattern(name: str) -> str:
    """A name, whatever space stands between its words."""
    return _whole(r"\s+".join(map(re.escape, name.split())), name)


def _loose(name: str) -> str:
    """The words of a name in a row, as texts without spaces, or with marks on their letters, hold them."""
    return _whole(BETWEEN.join(map(re.escape, WORD.findall(name))) or "(?!)", name)


def _whole(pattern: str, name: str) -> str:
    """A pattern that is no part of a longer word, where a script has capitals; others write endings and names in one."""
    before = r"(?<![^\W_])" if _is_cased(name[:1]) else ""
    return before + pattern + (r"(?![^\W_])" if _is_cased(name[-1:]) else "")


def _is_cased(letter: str) -> bool:
    return letter.lower() != letter.upper()


def _marks_after(text: str, end: int) -> str:
    rest = text[end:]
    count = next((i for i, letter in enumerate(rest) if unicodedata.category(letter)[0] != "M"), len(rest))
    return rest[:count]
