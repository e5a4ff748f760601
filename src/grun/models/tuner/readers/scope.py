"""Scope of a mention: whether a text asks about what it mentions, or about something else.

A text is cut into segments: sentences, lines and turns. A mention counts as asked about if it stands in a question or an
instruction that no answer followed, in the last segment, or if the last segment depends on what was said before it. It does
not count only if the last segment is an English question that stands by itself: with a subject of its own, and without words
that point back. Whatever is in doubt counts as asked about.
"""

from __future__ import annotations

__all__ = ["Segment", "Turn", "segments", "stands_alone"]

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from grun.models.tuner.readers.canonical import BOUNDARY, CAPITAL, Word, split_words
from grun.models.tuner.readers.english import (
    ASKING,
    ASKING_FIRST,
    ASKS_FOR,
    ASSISTANT,
    EXISTS,
    FOREIGN,
    GENERIC,
    INSTRUCTIONS,
    NEEDS_NAME,
    NEEDS_NAME_LATER,
    NEEDS_NOUN,
    ORDINARY,
    PEOPLE,
    POINTS_BACK,
    POLITE,
    REPLYING,
    SAYS_WHICH,
    USER,
    WANTS,
)

INST = "".join(f"{CAPITAL}?{letter}" for letter in "inst")  # tokens may begin within the word
ENDS = re.compile(rf"[.?!\u3002\uff1f\uff01]+[\"'\u2019\u201d)\]]*(?=\s|{BOUNDARY}|$)|\n+|{BOUNDARY}+|\[/?{INST}\]")
BEGINS = ASKING_FIRST | INSTRUCTIONS
ENGLISH = ASKING | BEGINS  # one of them, at least, stands in an English question
SAYS_LITTLE = ORDINARY | POINTS_BACK | GENERIC
LONGEST_LABEL = 2  # words of the name of a role
WEAK_ANCHORS = 2  # words of its own that make a question stand alone where it has no name and no number
WEAK_OF_INSTRUCTIONS = 3  # and an instruction
SHORTEST_WORD = 3


class Turn(IntEnum):
    """Whose turn it is, as far as the text says so."""

    UNKNOWN = 0
    USER = 1
    ASSISTANT = 2


@dataclass(frozen=True)
class Segment:
    """A sentence, line or turn of canonical text.

    Attributes:
        start, end: characters.
        ended: something ends it; the text does not only stop there.
        text: canonical text.
    """

    start: int
    end: int
    ended: bool
    text: str

    @cached_property
    def words(self) -> list[Word]:
        """Words of the segment, without those that stand for special tokens."""
        return [word for word in split_words(self.text) if word.text != BOUNDARY]

    @cached_property
    def turn(self) -> Turn:
        """The turn that begins with this segment, if it is the name of a role or begins with one."""
        for end, turn in (("[/inst]", Turn.ASSISTANT), ("[inst]", Turn.USER)):
            if self.text.replace(CAPITAL, "").endswith(end):
                return turn
        head, colon, _ = self.text.partition(":")
        if not colon and "?" in self.text:
            return Turn.UNKNOWN
        words = [word.text for word in split_words(head) if word.text != BOUNDARY and not word.text.isdigit()]
        if not 0 < len(words) <= (LONGEST_LABEL if colon else 1):
            return Turn.UNKNOWN
        return Turn.USER if words[-1] in USER else Turn.ASSISTANT if words[-1] in ASSISTANT else Turn.UNKNOWN

    @property
    def is_label(self) -> bool:
        """True if the segment is nothing but the name of a role."""
        return not self.words or (self.turn != Turn.UNKNOWN and not self.text.partition(":")[2].strip(f"\n {BOUNDARY}"))

    @property
    def asks(self) -> bool:
        """True for a question or an instruction, and for whatever might be one."""
        words = [word.text for word in _without_label(self)]
        while words and words[0] in POLITE:
            words = words[1:]
        if not words:
            return False
        first = words[0] in BEGINS
        within = any(
            word in ASKING or (i and word in BEGINS and words[i - 1] in ASKS_FOR) for i, word in enumerate(words)
        )
        wants = {"i", "we"} & set(words) and WANTS & set(words)
        return bool(first or within or wants or "?" in self.text or "\uff1f" in self.text)


def segments(text: str) -> Iterator[Segment]:
    """The segments of canonical text, in order; together they are the text."""
    start = 0
    for found in ENDS.finditer(text):
        end = found.end()
        if end > start:
            ended = end < len(text) or found.group()[0] not in ".?!"  # "3." may become "3.5"
            yield Segment(start, end, ended, text[start:end])
        start = end
    if start < len(text):
        yield Segment(start, len(text), False, text[start:])


def _without_label(segment: Segment) -> list[Word]:
    words = segment.words
    if segment.turn == Turn.UNKNOWN or ":" not in segment.text:
        return words
    label = len([w for w in split_words(segment.text.partition(":")[0]) if w.text != BOUNDARY])
    return words[label:]


def stands_alone(segment: Segment, is_known: Callable[[str], bool]) -> bool:
    """True if a segment is an English question with a subject of its own, and points back to nothing.

    Args:
        segment: the last one of a text.
        is_known: whether what is to be forgotten holds a word.
    """
    words = _without_label(segment)
    texts = {word.text for word in words}
    is_english = ENGLISH & texts and not FOREIGN & texts
    if not segment.asks or not is_english or REPLYING & texts or not all(text.isascii() for text in texts):
        return False
    names = nouns = waiting = 0
    for i, word in enumerate(words):
        text, after = word.text, words[i + 1 : i + 2]
        if text in NEEDS_NAME_LATER:
            waiting += text != "else" or not i or words[i - 1].text not in ORDINARY
        elif text in POINTS_BACK and not _is_resolved(words, i, names, nouns):
            return False
        if text in PEOPLE and not word.capital and i and words[i - 1].text == "the":
            if not after or not (after[0].capital or after[0].text in SAYS_WHICH):
                return False
        elif text == "that" and (not after or after[0].text in GENERIC | EXISTS):
            return False
        if text in SAYS_LITTLE or is_known(text):
            continue
        if text.isdigit() or (word.capital and i and len(text) >= SHORTEST_WORD):
            names += 1
        elif text.isalpha() and len(text) >= SHORTEST_WORD:
            nouns += 1
    needed = WEAK_ANCHORS if "?" in segment.text or words[0].text not in INSTRUCTIONS else WEAK_OF_INSTRUCTIONS
    return names > 0 or (nouns >= needed and not waiting)


def _is_resolved(words: list[Word], i: int, names: int, nouns: int) -> bool:
    """True if a word that points back may point to something before it in its segment, or stands for nothing."""
    text, before = words[i].text, words[i - 1].text if i else ""
    if text in NEEDS_NAME:
        return names > 0
    if text == "there":
        return before in EXISTS
    is_empty = (
        text == "it" and before in EXISTS and {"to", "that", "for", "if"} & {w.text for w in words[i + 2 : i + 4]}
    )
    return text in NEEDS_NOUN and (names + nouns > 0 or bool(is_empty))
