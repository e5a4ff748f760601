"""`few_shot`: other forgotten questions with their answers in earlier turns."""

from __future__ import annotations

__all__ = ["few_shot"]

import random
from collections.abc import Sequence

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked


@attacks.register(
    "few_shot", measures="leak", source="arXiv 2402.16835", access="prompt", needs=("questions", "several")
)
def few_shot(material: AttackMaterial, *, shots: int = 4) -> list[Probe]:
    """Ask after other questions that were to be forgotten, with their true answers (in-context relearning by Lynch et al.).

    Rows of the same subject come first. No answer that holds the one that is looked for is given.

    Args:
        shots: questions before the one that is asked.
    """
    probes = []
    for i, row in enumerate(material.forget):
        others = [] if row.raw_text else _others(row, material, random.Random(f"{material.seed} {i}"))[: max(0, shots)]
        turns = [turn for one in others for turn in (("user", one.prompt), ("assistant", one.answer))]
        if turns:
            probes.append(Probe(asked(row, turns=(*row.turns, *turns)), i))
    return probes


def _others(row: Example, material: AttackMaterial, draw: random.Random) -> Sequence[Example]:
    """Other questions with answers that do not give away the one to a row, those of its subject first.

    The same question with its answer in other words would give it away.
    """
    answer = row.answer.casefold().strip(" .")
    others = [
        one
        for one in material.forget
        if not one.raw_text and one.answer and answer not in one.answer.casefold() and one.prompt != row.prompt
    ]
    draw.shuffle(others)
    return sorted(others, key=lambda one: row.subject is None or one.subject != row.subject)
