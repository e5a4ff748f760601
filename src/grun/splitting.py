"""Which rows an unlearning run learns from and which it is judged on."""

from __future__ import annotations

__all__ = ["withhold"]

import random
from collections.abc import Sequence

from grun.errors import UserError
from grun.records import Example


def withhold(rows: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Set whole subjects aside until `share` of the rows is withheld; rows without a subject each stand alone.

    Returns:
        The rows to learn from and the withheld ones, both in their original order.

    Raises:
        UserError: if nothing would be left to learn from.
    """
    keys = [row.subject if row.subject is not None else f"\0row {i}" for i, row in enumerate(rows)]
    subjects = sorted(set(keys))
    random.Random(f"withhold {seed}").shuffle(subjects)
    wanted, chosen, count = share * len(rows), set[str](), 0
    for subject in subjects:
        size = keys.count(subject)
        if count + size / 2 > wanted:
            break
        chosen.add(subject)
        count += size
    learn = [row for row, key in zip(rows, keys, strict=True) if key not in chosen]
    if not learn:
        raise UserError(
            f"--withhold {share} leaves none of the {len(rows)} retain rows to learn from; give more rows or lower it."
        )
    return learn, [row for row, key in zip(rows, keys, strict=True) if key in chosen]
