"""`aliases`: what the rows themselves call the subject."""

from __future__ import annotations

__all__ = ["aliases"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.facts import other_names_of
from grun.evaluation.attacks.names import holds, replaced


@attacks.register(
    "aliases", measures="leak", source="arXiv 2410.02879", access="prompt", needs=("names", "questions", "told")
)
def aliases(material: AttackMaterial) -> list[Probe]:
    """Ask with what answers of other rows call the subject: an epithet, a description, a noun, a part of the name.

    Thaker et al. ask for what was forgotten by indirect mentions. No other name shares a telling word with the answer.
    """
    return [
        Probe(asked(row, prompt=replaced(row.prompt, material.name_of(i), other)), i, kind)
        for i, row in enumerate(material.forget)
        if not row.raw_text and holds(row.prompt, material.name_of(i))
        for kind, other in other_names_of(material, i).items()
    ]
