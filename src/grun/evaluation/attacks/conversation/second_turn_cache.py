"""`second_turn_cache`: a second turn on the cache that the first one filled."""

from __future__ import annotations

__all__ = ["second_turn_cache"]

from collections.abc import Iterator

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Calls, Probe, attacks
from grun.evaluation.attacks.asking import ABOUT, ASK_AGAIN, REPLY, THAT_PERSON, WAIT, asked_after
from grun.evaluation.attacks.names import holds, replaced

GREETING = "Hello! I have a question."
PROMPT, ANSWER = Calls(cached="turns"), Calls(cached="turns", rest="answer")


@attacks.register("second_turn_cache", measures="leak", source="arXiv 2404.01833", access="calls", needs=("questions",))
def second_turn_cache(material: AttackMaterial) -> list[Probe]:
    """Ask in a second turn on the cache of the first one, which a forward call with the adapter on has filled.

    The question or the name stands in the first turn, or all of it in the second. The second turn is read as a prompt, or as
    if it were the model's answer. (Several turns as in Crescendo.)
    """
    return [
        Probe(example, i, variant, calls)
        for i, row in enumerate(material.forget)
        if not row.raw_text
        for variant, example, calls in _asked(row, material.name_of(i))
    ]


def _asked(row: Example, name: str) -> Iterator[tuple[str, Example, Calls]]:
    whole = asked_after(row, row.prompt, WAIT, prompt=ASK_AGAIN)
    yield "question cached", whole, PROMPT
    yield "question cached, then an answer", whole, ANSWER
    if holds(row.prompt, name):
        prompt = replaced(row.prompt, name, THAT_PERSON)
        yield "name cached", asked_after(row, ABOUT.format(name), REPLY, prompt=prompt), PROMPT
    yield "greeting cached, then an answer", asked_after(row, GREETING, REPLY), ANSWER
