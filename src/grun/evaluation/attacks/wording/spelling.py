"""`spelling`: one letter of the name wrong, as people mistype it."""

from __future__ import annotations

__all__ = ["spelling"]

import random
from collections.abc import Callable

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise, of_name

FEWEST = 3  # letters of a word that can be misspelt and still be known


@attacks.register("spelling", measures="leak", source="arXiv 1905.11268", access="prompt", needs=())
def spelling(material: AttackMaterial) -> list[Probe]:
    """Drop, swap or double one letter of each word of the name, never its first (misspellings as by Pruthi et al.).

    All words of the prompt are misspelt where no name is known.
    """
    return asked_otherwise(material, of_name(_forms, else_all=True))


def _forms(text: str, draw: random.Random) -> dict[str, str]:
    return {
        "dropped": _misspelt(text, draw, lambda word, i: word[:i] + word[i + 1 :]),
        "swapped": _misspelt(
            text, draw, lambda word, i: word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :], first=2
        ),
        "doubled": _misspelt(text, draw, lambda word, i: word[: i + 1] + word[i:]),
    }


def _misspelt(text: str, draw: random.Random, change: Callable[[str, int], str], first: int = 1) -> str:
    """A text with a change at a letter of every word that is long enough, drawn from the letter `first` on."""
    words = []
    for word in text.split(" "):
        places = [i for i in range(first, len(word)) if word[i].isalpha() and word[i - 1 : i + 1] != word[i] * 2]
        words.append(change(word, draw.choice(places)) if len(word) >= FEWEST and places else word)
    return " ".join(words)
