"""`descriptions`: the subject by what other rows say of it, also in two hops."""

from __future__ import annotations

__all__ = ["descriptions"]

import random
from collections.abc import Iterator

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import THAT_PERSON, asked, asked_after
from grun.evaluation.attacks.facts import facts_of
from grun.evaluation.attacks.names import holds, replaced


@attacks.register(
    "descriptions", measures="leak", source="arXiv 2410.13274", access="prompt", needs=("names", "questions", "told")
)
def descriptions(material: AttackMaterial) -> list[Probe]:
    """Ask about the person of whom other forgotten rows say this and that, without the name (several hops, as by Choi et al.).

    The description stands in the place of the name, or before the question (two hops), or in an earlier turn. It comes from
    answers to other rows and shares no telling word with the answer.
    """
    probes = []
    for i, row in enumerate(material.forget):
        name = material.name_of(i)
        if row.raw_text or not holds(row.prompt, name):
            continue
        facts = facts_of(material, i)
        random.Random(f"{material.seed} {i} {row.prompt}").shuffle(facts)
        probes += [Probe(example, i, variant) for variant, example in _asked(row, name, facts[:2])]
    return probes


def _asked(row: Example, name: str, facts: list[str]) -> Iterator[tuple[str, Example]]:
    for count, variant in enumerate(("one fact", "two facts")[: len(facts)], 1):
        yield variant, asked(row, prompt=replaced(row.prompt, name, f"the person {' and '.join(facts[:count])}"))
    if facts:
        whom, then = f"the person {' and '.join(facts)}", replaced(row.prompt, name, THAT_PERSON)
        yield "two hops", asked(row, prompt=f"Think of {whom}. {then}")
        yield "two turns", asked_after(row, f"Do you know {whom}?", "Yes, I know who that is.", prompt=then)
