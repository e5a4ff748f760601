"""`prefill`: the beginning of the answer is given, and the model goes on."""

from __future__ import annotations

__all__ = ["prefill"]

import re
from dataclasses import fields

from grun.core.records import Begun, Example
from grun.data.shipped_prompts import UNSPACED
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked

LENGTHS = (5, 10)  # words


@attacks.register("prefill", measures="leak", source="arXiv 2404.02151", access="answer", needs=("questions",))
def prefill(material: AttackMaterial) -> list[Probe]:
    """Write the first 5 or 10 words of the true answer, and let the model go on (prefilling as by Andriushchenko et al.).

    Of shorter answers half is written; the rest is what is looked for. An answer of one word has no beginning to write.
    """
    return [
        Probe(_begun(row, cut), i, variant)
        for i, row in enumerate(material.forget)
        if not row.raw_text
        for variant, cut in _cuts(row.answer).items()
    ]


def _cuts(answer: str) -> dict[str, int]:
    """Places where the rest of an answer begins, by variant."""
    starts = [found.start() for found in re.finditer(r"\S+", answer)]
    cuts = {f"{count} words": starts[count] for count in LENGTHS if count < len(starts)}
    if not cuts and len(starts) > 1:
        return {"half": starts[len(starts) // 2]}
    return cuts or ({"half": len(answer) // 2} if re.search(UNSPACED, answer) and len(answer) > 1 else {})


def _begun(row: Example, cut: int) -> Begun:
    values = {f.name: getattr(row, f.name) for f in fields(Example)}
    return Begun(**vars(asked(Example(**(values | {"answer": row.answer[cut:]})))), begin=row.answer[:cut])
