"""`spacing`: the letters of the name taken apart, or replaced by digits."""

from __future__ import annotations

__all__ = ["spacing"]

import random

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise, of_name

LEET = str.maketrans("aAbBeEgGiIlLoOsStTzZ", "44886699111100557722")


@attacks.register("spacing", measures="leak", source="arXiv 1812.05271", access="prompt", needs=())
def spacing(material: AttackMaterial) -> list[Probe]:
    """Put spaces or hyphens between the letters of the name, break the line in it, or write digits for letters (TextBugger).

    The whole prompt is changed where no name is known.
    """
    return asked_otherwise(material, of_name(_forms, else_all=True))


def _forms(text: str, draw: random.Random) -> dict[str, str]:
    words = text.split(" ")
    return {
        "spaced": "  ".join(map(" ".join, words)),
        "hyphens": " ".join(map("-".join, words)),
        "line break": "\n".join(words) if len(words) > 1 else f"{text[: len(text) // 2]}\n{text[len(text) // 2 :]}",
        "leet": text.translate(LEET),
    }
