"""Splits whose questions are asked in another phrasing."""

from __future__ import annotations

__all__ = ["PARAPHRASED", "Splits", "is_rephrasable", "with_paraphrases"]

from collections.abc import Mapping, Sequence

from grun.core.errors import UserError
from grun.core.records import Example

PARAPHRASED = "_paraphrased"
Splits = Mapping[str, Sequence[Example]]


def with_paraphrases(splits: Splits) -> dict[str, tuple[Example, ...]]:
    """The splits, each followed by `<split>_paraphrased` if every row of it has another phrasing.

    Rows of `<split>_paraphrased` are asked with the first of their other phrasings.

    Raises:
        UserError: for a split without rows.
    """
    found: dict[str, tuple[Example, ...]] = {}
    for name, rows in splits.items():
        if not rows:
            raise UserError(f"split '{name}' is empty: there is nothing to measure; leave it out or give it rows.")
        found[name] = tuple(rows)
        if name + PARAPHRASED not in splits and is_rephrasable(rows):
            found[name + PARAPHRASED] = tuple(row.rephrased(0) for row in rows)
    return found


def is_rephrasable(rows: Sequence[Example]) -> bool:
    """True if every row has another phrasing."""
    return all(row.paraphrased_prompts for row in rows)
