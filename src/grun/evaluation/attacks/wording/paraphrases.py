"""`paraphrases`: the questions in the other words that the rows bring with them."""

from __future__ import annotations

__all__ = ["paraphrases"]

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked


@attacks.register("paraphrases", measures="leak", source="arXiv 2401.06121", access="prompt", needs=("paraphrases",))
def paraphrases(material: AttackMaterial) -> list[Probe]:
    """Ask in the other words that the rows bring (`paraphrased_question`), as TOFU does."""
    return [
        Probe(asked(row, prompt=prompt), i, f"paraphrase {number}")
        for i, row in enumerate(material.forget)
        for number, prompt in enumerate(row.paraphrased_prompts, 1)
    ]
