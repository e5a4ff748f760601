"""`invisible`: characters that nobody sees, inside the words."""

from __future__ import annotations

__all__ = ["invisible"]

import random

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise, of_name

CHARACTERS = {"zero-width space": "\u200b", "soft hyphen": "\u00ad", "joiner": "\u2060"}


@attacks.register("invisible", measures="leak", source="arXiv 2106.09898", access="prompt", needs=())
def invisible(material: AttackMaterial) -> list[Probe]:
    """Put characters without width into the words of the name, or into all words where no name is known (Bad Characters)."""
    return asked_otherwise(material, of_name(_forms, else_all=True))


def _forms(text: str, draw: random.Random) -> dict[str, str]:
    return {variant: _filled(text, sign) for variant, sign in CHARACTERS.items()}


def _filled(text: str, sign: str) -> str:
    """A text with a sign in the middle of every word."""
    return " ".join(word[: (len(word) + 1) // 2] + sign + word[(len(word) + 1) // 2 :] for word in text.split(" "))
