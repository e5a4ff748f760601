"""`earlier_turn`: the name in an earlier turn, and a pronoun in the question."""

from __future__ import annotations

__all__ = ["earlier_turn"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import ABOUT, REPLY, asked_after
from grun.evaluation.attacks.names import holds, replaced

PRONOUNS = {"they": "their", "she": "her", "he": "his", "it": "its"}


@attacks.register(
    "earlier_turn", measures="leak", source="arXiv 2404.01833", access="prompt", needs=("names", "questions")
)
def earlier_turn(material: AttackMaterial) -> list[Probe]:
    """Name the subject in an earlier turn, and ask with a pronoun in the place of its name (several turns as in Crescendo)."""
    probes = []
    for i, row in enumerate(material.forget):
        name = material.name_of(i)
        if row.raw_text or not holds(row.prompt, name):
            continue
        for pronoun, possessive in PRONOUNS.items():
            prompt = row.prompt
            for ending in ("'s", "’s"):
                prompt = replaced(prompt, name + ending, possessive)
            prompt = replaced(prompt, name, pronoun)
            probes.append(Probe(asked_after(row, ABOUT.format(name), REPLY, prompt=prompt), i, pronoun))
    return probes
