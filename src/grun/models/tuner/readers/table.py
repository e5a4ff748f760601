"""A table of hashed spans, and the evidence that words of a text give for them."""

from __future__ import annotations

__all__ = ["FUZZY", "SHINGLE", "SpanTable", "close_forms", "hashed", "spans_at"]

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from grun.models.tuner.readers.canonical import BOUNDARY, Word, leet

SHINGLE = 5  # words of a piece of a text
WINDOW = 24  # words over which evidence adds up
JOINED = 5  # most words that are joined to a name
SPACED = 24  # most single letters that are joined to a name
SHORTEST = 3  # letters of a span
FUZZY = 5  # letters of a word that may have one letter too many, too few or another one


def hashed(kind: str, text: str) -> int:
    """A signed 64-bit hash of a span; spans of different kinds never meet."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "little", signed=True)


@lru_cache(maxsize=1 << 16)
def _whole(text: str) -> int:
    return hashed("span", text)


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i in range(len(word))]


@lru_cache(maxsize=1 << 16)
def _close_to(word: str) -> tuple[int, ...]:
    """Hashes under which a word of a text finds the words one letter from it (see `close_forms`)."""
    shorter = _without_one(word)
    keys = [hashed("close", word), *(hashed("longer", form) for form in dict.fromkeys(shorter))]
    return (*keys, *(hashed("other", f"{i} {form}") for i, form in enumerate(shorter)))


def close_forms(word: str) -> dict[int, str]:
    """Hashes under which texts find a word with one letter too few, too many, another one, or two letters exchanged.

    After SymSpell's deletion neighbourhood, with the place of another letter, so that two changes are never taken for one.

    Returns:
        By hash, the form that a text holds, if it is one form only, else an empty text.
    """
    shorter = _without_one(word)
    exchanged = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]
    found = {hashed("close", form): form for form in [word, *shorter, *exchanged]}
    found[hashed("longer", word)] = ""
    return found | {hashed("other", f"{i} {form}"): "" for i, form in enumerate(shorter)}


@lru_cache(maxsize=1 << 16)
def _piece(words: tuple[str, ...]) -> int:
    return hashed("piece", " ".join(words))


def _is_alone(words: Sequence[Word], i: int) -> bool:
    """True if word i has a capital letter, and no word with one beside it; one that may only begin a sentence is none."""
    if not words[i].capital or (i + 1 < len(words) and words[i + 1].capital):
        return False
    follows = i > 1 and words[i - 2].text != BOUNDARY and words[i - 1].text != BOUNDARY
    return not (follows and words[i - 1].capital)


def spans_at(words: Sequence[Word], i: int, is_last: bool = False) -> Iterator[tuple[int, str]]:
    """Hashes of all spans that end with word i, each with the text that it counts for once.

    A name's first word counts alone, which shows with the next word, or with the last word of a text (`is_last`).

    Words are joined, so that blanks, hyphens and line breaks within a name make no difference; single letters in a row are
    joined to longer ones. A word with digits or symbols also counts with these read as letters.
    """
    for j in (i - 1, *([i] if is_last else [])):
        if j >= 0 and _is_alone(words[: i + 1], j):
            yield hashed("alone", words[j].text), words[j].text
    word = words[i].text
    if len(word) >= FUZZY and word.isalpha():
        for key in _close_to(word):
            yield key, word
    joined, most = "", JOINED
    for k in range(min(i + 1, SPACED)):
        word = words[i - k].text
        if word == BOUNDARY or k >= most:
            break
        if len(word) == 1 and len(joined) == k:
            most = min(SPACED, k + 1 + JOINED)
        joined = word + joined
        if len(joined) < SHORTEST:
            continue
        yield _whole(joined), joined
        if (read := leet(joined)) is not None:
            yield hashed("leet", read), joined
    if i + 1 >= SHINGLE and BOUNDARY not in (last := tuple(word.text for word in words[i + 1 - SHINGLE : i + 1])):
        yield _piece(last), " ".join(last)


class SpanTable:
    """Weights of hashed spans.

    Args:
        weights: weight of each hash.
    """

    def __init__(self, weights: Mapping[int, float]) -> None:
        self._weights = dict(weights)

    def knows(self, word: str) -> bool:
        """True if rows to forget hold a word."""
        return hashed("about", word) in self._weights

    def evidence(self, words: Sequence[Word], first: int = 0, *, whole: bool = True) -> list[float]:
        """Evidence of each word from number `first` on: the sum of the weights of distinct spans up to it.

        Spans count that end with the word or a few words before it; 0 for words with which no span ends.

        Args:
            words: of a text.
            first: number of the first word that is asked for.
            whole: no word follows the last one.
        """
        return [total for total, _ in self.evidence_by_kind(words, first, whole=whole)]

    def evidence_by_kind(
        self, words: Sequence[Word], first: int = 0, *, whole: bool = True
    ) -> list[tuple[float, float]]:
        """Evidence of each word as of `evidence`, and the part of it that is due to pieces of texts."""
        found: dict[int, dict[str, float]] = {}
        last = len(words) - 1 if whole else -1
        return [
            self._sum(words, i, found) if self._ending(words, i, found, i == last) else (0.0, 0.0)
            for i in range(first, len(words))
        ]

    def _ending(
        self, words: Sequence[Word], i: int, found: dict[int, dict[str, float]], is_last: bool = False
    ) -> dict[str, float]:
        """Weights of the spans that end with word i, by their texts."""
        if i not in found:
            here = found[i] = {}
            for key, text in spans_at(words, i, is_last):
                if (weight := self._weights.get(key)) is not None:
                    here[text] = max(weight, here.get(text, 0.0))
        return found[i]

    def _sum(self, words: Sequence[Word], i: int, found: dict[int, dict[str, float]]) -> tuple[float, float]:
        together: dict[str, float] = {}
        for j in range(max(0, i - WINDOW + 1), i + 1):
            for text, weight in self._ending(words, j, found).items():
                together[text] = max(weight, together.get(text, 0.0))
        return sum(together.values()), sum(weight for text, weight in together.items() if " " in text)
