"""Metrics: pure functions `Evidence -> Score`, one split at a time; summaries are the same over all splits together.

A metric registers with what is needed to read it, as data: `label` for tables, `range` of its values, which way is better
on rows to be forgotten (`forget="lower"`) and on all others (`normal="higher"`; None where it does not apply), and `needs`:
what must have been measured (`token_logps`, `generated`, `gates`, `paraphrased` and `perturbed` answers, `gradient`, and, for
`fluency`, the greedy answers under the base model) and whom to compare with (`holdout` rows, a `retain_log`). Where that is
missing, the score has no value and says why; a default number would look like a measurement. `table=False` leaves a metric
out of the usual table, `on_request=True` out of the usual evaluation.
"""

from __future__ import annotations

__all__ = ["Metric", "Summary", "auroc", "mean_score", "metrics", "missing", "summaries"]

import math
from collections.abc import Callable, Sequence

from grun.records import Evidence, Score
from grun.registry import Registry

Metric = Callable[[Evidence], Score]
metrics: Registry[Metric] = Registry("metric", "grun.metrics")
Summary = Callable[..., Score]  # of the evidence of all splits by name, and `utility` (see `Benchmark`)
summaries: Registry[Summary] = Registry("summary", "grun.metrics")


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


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties counting one half.

    Raises:
        ValueError: if one side is empty or a value is NaN.
    """
    if not positive or not negative or any(math.isnan(value) for value in (*positive, *negative)):
        raise ValueError("the area under the curve needs numbers on both sides")
    ordered = sorted([(value, 1) for value in positive] + [(value, 0) for value in negative])
    wins, below, at = 0.0, 0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        positives = sum(label for _, label in ordered[at:end])
        negatives = end - at - positives
        wins += positives * (below + 0.5 * negatives)
        below, at = below + negatives, end
    return wins / (len(positive) * len(negative))
