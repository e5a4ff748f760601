"""Names of topics: whether a text holds one, and made-up names of the same form."""

from __future__ import annotations

__all__ = ["checked_name", "gives_away", "made_up", "mentions", "plain"]

import random
import re

from grun.core.errors import UserError
from grun.data.shipped_prompts import LONG_WORD, SHORTEST_WORD, STEM

LONGEST = 100  # characters of a name
CONSONANTS, VOWELS = "bcdfghklmnprstvz", "aeiou"


def checked_name(topic: str) -> str:
    """The name of a topic without outer and double spaces.

    Raises:
        UserError: if it is empty, too long, or holds no letter.
    """
    name = " ".join(topic.split())
    if not re.search(r"[^\W_]", name):
        found = f"is '{name}'" if name else "is empty"
        raise UserError(f"--topic {found}, expected the name of what is to be forgotten ('Harry Potter').")
    if len(name) > LONGEST:
        raise UserError(
            f"--topic has {len(name)} characters, expected a name of at most {LONGEST}; give longer texts as --forget rows."
        )
    return name


def plain(text: str) -> str:
    """A text as it is compared with others: its words in lower case."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def mentions(text: str, name: str) -> bool:
    """True if a text holds the name; of a name of several words, the last one is enough."""
    words = plain(name).split()
    return any(
        re.search(rf"(?<!\w){re.escape(_singular(part))}", plain(text)) is not None for part in (plain(name), words[-1])
    )


def gives_away(text: str, name: str) -> bool:
    """True if a text holds any telling word of the name, or one that begins like it ("volcanic")."""
    words = plain(name).split()
    telling = [word for word in words if len(word) >= SHORTEST_WORD] or words
    stems = tuple(word[:STEM] if len(word) > LONG_WORD else _singular(word) for word in telling)
    return any(word.startswith(stems) for word in plain(text).split())


def made_up(name: str, seed: int) -> str:
    """A name that nobody has, with as many words of the same length and capitals."""
    draw = random.Random(f"{seed} {name}")
    words = []
    for word in name.split():
        letters = "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range((len(word) + 1) // 2))
        letters = letters[: max(2, len(word))]
        words.append(letters.capitalize() if word[:1].isupper() else letters)
    return " ".join(words)


def _singular(word: str) -> str:
    """A word without the ending of a plural."""
    return re.sub(r"(?<=\w{3})(?:es|s)$", "", word)
