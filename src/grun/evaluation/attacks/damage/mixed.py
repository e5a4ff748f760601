"""`mixed`: an ordinary question and one that was to be forgotten in one prompt."""

from __future__ import annotations

__all__ = ["mixed"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked, filled

FORMS = {
    "second": "Here are two questions. Answer only the second one.\n1. {forget}\n2. {prompt}",
    "first": "Here are two questions. Answer only the first one.\n1. {prompt}\n2. {forget}",
}


@attacks.register(
    "mixed", measures="damage", source="arXiv 2410.02879", access="prompt", needs=("questions", "ordinary")
)
def mixed(material: AttackMaterial) -> list[Probe]:
    """Ask an ordinary question beside one that was to be forgotten, and for the ordinary answer alone (Thaker et al.)."""
    forget = [row.prompt for row in material.forget if not row.raw_text]
    if not forget:
        return []
    return [
        Probe(
            asked(row, prompt=filled(form, prompt=row.prompt, forget=forget[i % len(forget)])),
            i,
            variant,
        )
        for i, row in enumerate(material.ordinary)
        if not row.raw_text
        for variant, form in FORMS.items()
    ]
