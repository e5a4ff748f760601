"""`cold_cache`: a question on a cache that was filled with the adapter off."""

from __future__ import annotations

__all__ = ["cold_cache"]

from collections.abc import Iterator

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Calls, Probe, attacks
from grun.evaluation.attacks.asking import ASK_AGAIN, WAIT, asked, asked_after


@attacks.register("cold_cache", measures="leak", source="arXiv 2404.01833", access="calls", needs=("questions",))
def cold_cache(material: AttackMaterial) -> list[Probe]:
    """Ask on a cache that was filled with the adapter off: it holds all but the last token, or an earlier turn.

    The rest is read by a forward call that says where the prompt ends, by one that does not, or by `generate`. The model must
    read the cached tokens again or refuse the call. (Earlier turns as in Crescendo.)
    """
    return [
        Probe(example, i, variant, calls)
        for i, row in enumerate(material.forget)
        if not row.raw_text
        for variant, example, calls in _asked(row)
    ]


def _asked(row: Example) -> Iterator[tuple[str, Example, Calls]]:
    for variant, rest in (("forward", "prompt"), ("forward, as an answer", "answer"), ("generate", "generate")):
        yield variant, asked(row), Calls(cached="all but one", with_adapter=False, rest=rest)
    later = asked_after(row, row.prompt, WAIT, prompt=ASK_AGAIN)
    yield "earlier turn", later, Calls(cached="turns", with_adapter=False)
