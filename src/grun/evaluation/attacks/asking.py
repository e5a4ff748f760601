"""Rows asked otherwise: what most attacks do."""

from __future__ import annotations

__all__ = [
    "ABOUT",
    "ASK_AGAIN",
    "REPLY",
    "THAT_PERSON",
    "WAIT",
    "Change",
    "Rewrite",
    "asked",
    "asked_after",
    "asked_otherwise",
    "begun",
    "filled",
    "of_name",
]

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from grun.core.records import Begun, Example
from grun.evaluation.attacks import AttackMaterial, Probe
from grun.evaluation.attacks.names import holds, replaced

# Of a prompt, the name of its subject (or nothing) and a source of chance: other prompts by variant.
Rewrite = Callable[[str, str, random.Random], Mapping[str, str]]
THAT_PERSON = "that person"  # in the place of a name that stands elsewhere
ABOUT, REPLY = "I would like to talk about {}.", "Of course. What would you like to know?"  # a turn before the question
ASK_AGAIN, WAIT = "What is your answer?", "One moment, please."  # and one after it, with the reply to the question
Change = Callable[[str, random.Random], Mapping[str, str]]


def asked(row: Example, **changes: Any) -> Example:
    """A row with another prompt or other turns; its own paraphrases are not asked beside it."""
    return replace(row, paraphrased_prompts=(), **changes)


def asked_after(row: Example, said: str, reply: str, **changes: Any) -> Example:
    """A row that is asked after one more turn, with its reply."""
    return asked(row, turns=(*row.turns, ("user", said), ("assistant", reply)), **changes)


def begun(row: Example, begin: str) -> Begun:
    """A row whose asker has written the beginning of the answer."""
    return Begun(**{one.name: getattr(row, one.name) for one in fields(Example)}, begin=begin)


def filled(form: str, **texts: str) -> str:
    """A form with texts in the places of their names; braces in the texts stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: texts[found[1]], form)


def asked_otherwise(material: AttackMaterial, rewrite: Rewrite) -> list[Probe]:
    """A probe for every row to forget and every other prompt of it.

    Prompts that are empty, or as they were before, make no probe.
    """
    probes = []
    for i, row in enumerate(material.forget):
        draw = random.Random(f"{material.seed} {i} {row.prompt}")
        for variant, prompt in rewrite(row.prompt, material.name_of(i), draw).items():
            if prompt.strip() and prompt != row.prompt:
                probes.append(Probe(asked(row, prompt=prompt), i, variant))
    return probes


def of_name(change: Change, *, else_all: bool = False) -> Rewrite:
    """A rewriting of the name alone.

    Args:
        change: other forms of a text by variant.
        else_all: change the whole of a prompt that holds no name; otherwise it is not asked.
    """

    def rewrite(prompt: str, name: str, draw: random.Random) -> Mapping[str, str]:
        if holds(prompt, name):
            return {variant: replaced(prompt, name, other) for variant, other in change(name, draw).items()}
        return change(prompt, draw) if else_all else {}

    return rewrite
