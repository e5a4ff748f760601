"""Attacks: ways of asking a model for what it was made to forget, and of asking for something else beside it.

An attack is a pure function `(AttackMaterial, *, settings) -> list[Probe]` of text, so that it runs against any model, also
one behind an address. The keyword-only arguments of an attack are its configuration. It registers with information about
itself:

    source       paper or code that describes it
    measures     `leak` (the probes ask for forgotten answers), `damage` (they ask for something else) or `recognition` (what
                 was forgotten is told from what was never known)
    needs        what the rows must have, of `NEEDS`; where all rows lack it, the attack is skipped
    access       `prompt`, what everybody has who may ask; `answer`, if the asker writes the beginning of the answer as well;
                 `calls`, if the asker has the model and makes its calls himself (every probe has `Calls`)
                 `weights`, if it needs the model itself (see `grun.evaluation.attacks.opened`)
    features     of `recognition` by answers: a function that gives numbers for each row, by their kind, from measured rows and
                 the log-probabilities of their answers (None where they are not known)
"""

from __future__ import annotations

__all__ = ["NEEDS", "Attack", "AttackMaterial", "Calls", "Probe", "attacks", "missing_need"]

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grun.core.records import Example
from grun.core.registry import Registry
from grun.evaluation.attacks.names import holds

NEEDS = {
    "names": "a prompt with the name of its subject in it (a column subject helps to find names)",
    "questions": "rows that are questions or instructions, not running text",
    "passages": "rows of running text (a column text)",
    "paraphrases": "a column paraphrased_question",
    "ordinary": "ordinary rows (--retain)",
    "several": "at least two rows to forget",
    "told": "at least two questions about one subject, whose answers say more of it",
    "unknown": "at least four rows to forget, and four of what no model was taught (--unknown)",
}
LEAST = 4  # rows of either kind, to tell them apart: a half to learn from and a half to judge


@dataclass(frozen=True)
class AttackMaterial:
    """What attacks are made of.

    Attributes:
        forget: rows to forget, with true answers.
        ordinary: normal rows, with answers.
        names: for each row to forget the name of its subject, which its prompt may hold or not; empty where none is known.
        seed: of everything that is drawn.
        unknown: rows like those to forget that no model was taught.
        unrelated: ordinary rows that have nothing to do with those to forget.
    """

    forget: tuple[Example, ...]
    ordinary: tuple[Example, ...] = ()
    names: tuple[str, ...] = ()
    seed: int = 0
    unknown: tuple[Example, ...] = ()
    unrelated: tuple[Example, ...] = ()

    def name_of(self, row: int) -> str:
        """The name of the subject of a row; empty where none is known."""
        return self.names[row] if row < len(self.names) else ""


@dataclass(frozen=True)
class Calls:
    """The calls of an asker who has the model, in the place of one that reads the whole prompt.

    Attributes:
        ends: where the prompt is said to end: `whole`, `first token`, `half`, or `begin`, before what the asker wrote as the
            beginning of the answer.
        cached: what an earlier forward call reads into a cache: `nothing`, `turns` before the prompt, or `all but one` token.
        with_adapter: the adapter is on in that call.
        rest: how all that is not cached is read: as a `prompt` whose end is told, as an `answer`, or by `generate`.
    """

    ends: str = "whole"
    cached: str = "nothing"
    with_adapter: bool = True
    rest: str = "prompt"


@dataclass(frozen=True)
class Probe:
    """One prompt of an attack.

    Attributes:
        example: prompt, earlier turns and the answer that is looked for.
        row: number of the row that the answer belongs to, from 0: of the forget rows, for `damage` of the ordinary ones, and
            for `recognition` of the unknown ones.
        variant: name of the form, of an attack that has several.
        calls: those of an asker who makes them himself; None: the prompt is asked as usual.
    """

    example: Example
    row: int
    variant: str = ""
    calls: Calls | None = None


Attack = Callable[..., Any]
attacks: Registry[Attack] = Registry("attack", "grun.evaluation.attacks")


def missing_need(needs: Sequence[str], material: AttackMaterial) -> str | None:
    """What an attack needs and no row has, in words; None if nothing is missing."""
    rows = material.forget
    has = {
        "names": any(holds(row.prompt, name) for row, name in zip(rows, material.names, strict=False)),
        "questions": any(not row.raw_text for row in rows),
        "passages": any(row.raw_text for row in rows),
        "paraphrases": any(row.paraphrased_prompts for row in rows),
        "ordinary": bool(material.ordinary),
        "several": len(rows) > 1,
        "told": max(Counter(_subjects(material)).values(), default=0) > 1,
        "unknown": min(len(rows), len(material.unknown)) >= LEAST,
    }
    return next((NEEDS[need] for need in needs if not has[need]), None)


def _subjects(material: AttackMaterial) -> Iterator[str]:
    """The names of the subjects of questions to forget, as often as they are asked about."""
    for row, name in zip(material.forget, material.names, strict=False):
        if name and not row.raw_text:
            yield name
