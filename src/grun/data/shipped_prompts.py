"""Normal prompts that ship with the package: ordinary ones of every shape, and texts on many topics."""

from __future__ import annotations

__all__ = [
    "LONG_WORD",
    "SHORTEST_WORD",
    "STEM",
    "UNSPACED",
    "ShippedPrompt",
    "clashing",
    "drawn_rows",
    "ordinary_rows",
    "shipped_prompts",
]

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from grun.core.records import Example

ORDINARY = files("grun.data") / "ordinary_prompts.jsonl"
TOPICS = files("grun.data") / "background_topics.jsonl"
NOT_KEPT = ("long",)  # shapes of ordinary prompts that answers to would take long to learn
SHORTEST_WORD = 4  # letters of a word that can be telling
LONG_WORD, STEM = 6, 5  # letters; words that are longer count as the same if they begin alike
UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # Thai to Han
SHARE = 0.04  # of the prompts to forget, and at least SEVERAL of them, that have a telling word
SEVERAL = 3
RATIO = 20.0  # how much more often prompts to forget have a telling word than prompts that ship


@dataclass(frozen=True)
class ShippedPrompt:
    """A prompt that nobody asks to forget, as long as it is not about what is to be forgotten.

    Attributes:
        text: the prompt.
        topic: name of its topic; None for an ordinary prompt, which stands alone.
    """

    text: str
    topic: str | None = None


@cache
def shipped_prompts() -> tuple[ShippedPrompt, ...]:
    """All prompts that ship: ordinary ones first, then those of each topic in turn."""
    ordinary = [ShippedPrompt(row["prompt"]) for row in _lines(ORDINARY)]
    topics = [ShippedPrompt(text, row["topic"]) for row in _lines(TOPICS) for text in row["prompts"]]
    return (*ordinary, *topics)


@cache
def ordinary_rows() -> tuple[tuple[str, Example], ...]:
    """Shape and row of every ordinary prompt that is short enough to keep; the base model's own answers take their place."""
    rows = [
        (line["shape"], Example(line["prompt"], "", source=f"{ORDINARY.name}, prompt {i}"))
        for i, line in enumerate(_lines(ORDINARY), 1)
    ]
    return tuple(row for row in rows if row[0] not in NOT_KEPT)


def drawn_rows(count: int, seed: int) -> tuple[Example, ...]:
    """So many ordinary rows, of every shape its share as far as that goes; fewer rows are the beginning of more."""
    by_shape: dict[str, list[Example]] = defaultdict(list)
    for shape, row in ordinary_rows():
        by_shape[shape].append(row)
    ranked = []
    for shape, own in sorted(by_shape.items()):
        random.Random(f"topics {seed} {shape}").shuffle(own)
        ranked += [((i + 0.5) / len(own), shape, row) for i, row in enumerate(own)]
    return tuple(row for _, _, row in sorted(ranked, key=lambda one: one[:2])[:count])


def clashing(prompts: Sequence[str], forget: Sequence[str]) -> set[int]:
    """Numbers of the prompts that have a telling word of the prompts to forget: they may be about the same thing.

    A word is telling if several prompts to forget have it, and far more of them than of the prompts compared with.
    """
    words, usual = [_words(text) for text in prompts], Counter[str]()
    for one in words:
        usual.update(one)
    counts = Counter(word for text in forget for word in _words(text))
    telling = {
        word
        for word, count in counts.items()
        if count >= max(SEVERAL, SHARE * len(forget)) and count / len(forget) > RATIO * usual[word] / len(prompts)
    }
    return {i for i, one in enumerate(words) if one & telling}


def _words(text: str) -> set[str]:
    """Words of four letters or more in lower case, long ones by their stem; of unspaced scripts all pairs of letters."""
    text, found = unicodedata.normalize("NFC", text.lower()), set()
    words = re.findall("[a-z]+", text) if text.isascii() else "".join(map(_letter_or_space, text)).split()
    for word in words:
        if re.search(UNSPACED, word):
            found |= {word[i : i + 2] for i in range(len(word) - 1)}
        elif len(word) >= SHORTEST_WORD:
            found.add(word[:STEM] if len(word) > LONG_WORD else word)
    return found


def _letter_or_space(character: str) -> str:
    """The character if it is part of a word: a letter, or a mark on one, such as the vowels of Indic scripts."""
    return character if character.isalpha() or unicodedata.category(character).startswith("M") else " "


def _lines(file: Any) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line)
