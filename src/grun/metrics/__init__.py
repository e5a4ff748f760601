"""Metrics: pure functions `Evidence -> Score`.

A metric registers with what is needed to read it, as data: `label` for tables, `range` of its values, which way is better
on rows to be forgotten (`forget="lower"`) and on all others (`normal="higher"`; None where it does not apply), and `needs`:
what must have been measured (`token_logps`, `generated`, `gates`). Where that is missing, the score has no value and says
why; a default number would look like a measurement.
"""

from __future__ import annotations

__all__ = ["Metric", "mean_score", "metrics", "missing"]

import math
from collections.abc import Callable, Sequence

from grun.records import Evidence, Score
from grun.registry import Registry

Metric = Callable[[Evidence], Score]
metrics: Registry[Metric] = Registry("metric", "grun.metrics")


def missing(reason: str, n: int = 0) -> Score:
    """A score without a value."""
    return Score(None, n, reason=reason)


def mean_score(per_row: Sequence[float]) -> Score:
    """The mean over rows; without a value if there are no rows or one is not a finite number."""
    n = len(per_row)
    if not n:
        return missing("there are no rows")
    wrong = [i for i, value in enumerate(per_row) if not math.isfinite(value)]
    if wrong:
        return missing(f"{len(wrong)} of {n} rows gave no finite number, the first is row {wrong[0] + 1}", n)
    return Score(math.fsum(per_row) / n, n, tuple(per_row))
