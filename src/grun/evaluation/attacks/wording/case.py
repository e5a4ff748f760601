"""`case`: the question in capitals, in small letters, and in both by turns."""

from __future__ import annotations

__all__ = ["case"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_otherwise


@attacks.register("case", measures="leak", source="arXiv 2412.03556", access="prompt", needs=())
def case(material: AttackMaterial) -> list[Probe]:
    """Ask in capitals, in small letters, and with capitals drawn at random (augmentations of Best-of-N jailbreaking)."""
    return asked_otherwise(
        material,
        lambda prompt, name, draw: {
            "upper": prompt.upper(),
            "lower": prompt.lower(),
            "mixed": "".join(letter.upper() if draw.random() < 0.5 else letter.lower() for letter in prompt),
        },
    )
