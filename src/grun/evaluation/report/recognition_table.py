"""Table of what opens a gate, and of the answers behind it, by kind of prompt."""

from __future__ import annotations

__all__ = ["KindOfPrompts", "recognition_table", "recognition_to_markdown"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from grun.evaluation.report.table import escaped_line, plain_text

HEADINGS = ("prompts", "to\nforget", "asked", "open\nthe gate", "answered", "refusals", "as\nbefore")


@dataclass(frozen=True)
class KindOfPrompts:
    """Counts of one kind of prompts.

    Attributes:
        name: of the kind.
        to_forget: the prompts belong to what must be forgotten.
        prompts: number of prompts that the gate read.
        open: number of them that open it.
        answered: number of them that were answered before and after.
        answered_shut: number of those that do not open the gate.
        refusals: answers after that are a refusal and nothing else.
        as_before: answers after that are bit for bit those of before.
        shut_as_before: those among them whose prompts do not open the gate.
    """

    name: str
    to_forget: bool
    prompts: int
    open: int
    answered: int
    answered_shut: int
    refusals: int
    as_before: int
    shut_as_before: int


def recognition_table(kinds: Sequence[KindOfPrompts], title: str | None = None) -> Table:
    """Counts of every kind of prompts, for the terminal."""
    heading = None if title is None else plain_text(title)
    table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(HEADINGS):
        table.add_column(name, justify="right" if i > 1 else "left", no_wrap=i == 0)
    for cells in _lines(kinds):
        table.add_row(*map(plain_text, cells))
    return table


def recognition_to_markdown(kinds: Sequence[KindOfPrompts]) -> str:
    """Counts of every kind of prompts as a Markdown table."""
    rule = ["---", "---", *["---:"] * (len(HEADINGS) - 2)]
    return "\n".join(escaped_line(cells) for cells in (HEADINGS, rule, *_lines(kinds))) + "\n"


def _lines(kinds: Sequence[KindOfPrompts]) -> Iterator[list[str]]:
    for kind in kinds:
        counts = (kind.prompts, kind.open, kind.answered, kind.refusals, kind.as_before)
        yield [kind.name, "yes" if kind.to_forget else "no", *map(str, counts)]
