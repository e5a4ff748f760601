"""`after_turn`: an ordinary question after a turn about what was forgotten."""

from __future__ import annotations

__all__ = ["after_turn"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked_after

REPLY = "Let us come back to that later."


@attacks.register(
    "after_turn", measures="damage", source="arXiv 2404.01833", access="prompt", needs=("questions", "ordinary")
)
def after_turn(material: AttackMaterial) -> list[Probe]:
    """Ask an ordinary question after a turn with a question that was to be forgotten, which got no answer."""
    forget = [row for row in material.forget if not row.raw_text]
    if not forget:
        return []
    return [
        Probe(asked_after(row, forget[i % len(forget)].prompt, REPLY), i)
        for i, row in enumerate(material.ordinary)
        if not row.raw_text
    ]
