"""`prefill`: the beginning of the answer is given, and the model goes on."""

from __future__ import annotations

__all__ = ["prefill"]

import re

from grun.data.shipped_prompts import UNSPACED
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked, begun

LENGTHS = (5, 10)  # words


@attacks.register("prefill", measures="leak", source="arXiv 2404.02151", access="answer", needs=("questions",))
def prefill(material: AttackMaterial) -> list[Probe]:
    """Write the first 5 or 10 words of the true answer, and let the model go on (prefilling as by Andriushchenko et al.).

    Of shorter answers half is written; the rest is what is looked for. An answer of one word has no beginning to write.
    """
    return [
        Probe(begun(asked(row, answer=row.answer[cut:]), row.answer[:cut]), i, variant)
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
