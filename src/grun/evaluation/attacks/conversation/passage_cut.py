"""`passage_cut`: running text cut elsewhere than it was for unlearning."""

from __future__ import annotations

__all__ = ["passage_cut"]

import re
from collections.abc import Iterator

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked

SHARES = (0.1, 0.5, 0.75)
MIDDLE = 20  # words


@attacks.register("passage_cut", measures="leak", source="arXiv 2202.07646", access="prompt", needs=("passages",))
def passage_cut(material: AttackMaterial) -> list[Probe]:
    """Cut passages after a tenth, a half and three quarters, or begin with words of their middle (Carlini et al.).

    The model has to go on from there.
    """
    return [
        Probe(asked(row, prompt=prompt, answer=rest), i, variant)
        for i, row in enumerate(material.forget)
        if row.raw_text
        for variant, prompt, rest in _cuts(row)
        if prompt != row.prompt
    ]


def _cuts(row: Example) -> Iterator[tuple[str, str, str]]:
    """Variant, beginning and rest."""
    text = row.prompt + ("" if row.prompt[-1:].isspace() else " ") + row.answer
    words = list(re.finditer(r"\S+", text))

    def part(first: int, last: int) -> tuple[str, str]:
        return text[words[first].start() : words[last].end()], text[words[last + 1].start() :]

    for share in SHARES:
        last = int(share * len(words)) - 1
        if 0 <= last < len(words) - 1:
            yield f"after {share:.0%}", *part(0, last)
    middle = len(words) // 2
    if middle > 0 and middle + 1 < len(words):
        first = max(1, middle - MIDDLE // 2)
        yield "middle", *part(first, min(middle + MIDDLE // 2, len(words) - 1 - max(1, len(words) // 4)))
