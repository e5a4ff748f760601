"""`templates`: natural questions that hold nothing but the name."""

from __future__ import annotations

__all__ = ["templates"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked

FORMS = {
    "who": "Who is {}?",
    "tell": "Tell me about {}.",
    "know": "What do you know about {}?",
    "heard": "I have just heard of {} for the first time. What should I know?",
    "facts": "List some facts about {}.",
    "name": "{}",
}


@attacks.register(
    "templates", measures="leak", source="arXiv 2406.10890", access="prompt", needs=("names", "questions")
)
def templates(material: AttackMaterial) -> list[Probe]:
    """Ask about the name of the subject in natural questions that no row holds (forms as in RWKU's probes)."""
    return [
        Probe(asked(row, prompt=form.format(material.name_of(i)), turns=()), i, variant)
        for i, row in enumerate(material.forget)
        if material.name_of(i) and not row.raw_text
        for variant, form in FORMS.items()
    ]
