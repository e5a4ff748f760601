"""Metrics: pure functions `Evidence -> Score`, one split at a time; summaries are functions of all splits together.

A metric registers with information about itself:

    label        its name in tables
    range        its lowest and highest value
    forget       the better direction on rows to be forgotten (`lower` or `higher`); None where it does not apply
    normal       the same on all other rows
    needs        measured quantities (`token_logps`, `generated`, `gates`, `paraphrased` and `perturbed` answers, `gradient`,
                 and, for `fluency`, the greedy answers under the base model), a column of the rows (`choices`), or rows to
                 compare with (`holdout`, `retain_log`)
    table        False leaves it out of the usual table
    on_request   True leaves it out of the usual evaluation
    statistic    the function of groups of rows that gives the value; the mean over rows where it is not given

Where a need is missing, the score has no value and gives the reason; a default number would look like a measurement. Every
value has a bootstrap interval: a metric with a `statistic` puts the groups of rows into `Score.groups`.
"""

from __future__ import annotations

__all__ = ["Metric", "Summary", "auroc", "mean_score", "metrics", "missing", "summaries", "tpr_at_low_fpr"]

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from grun.core.records import Evidence, Score
from grun.core.registry import Registry

LOW_FPR = 0.01
Numbers = Sequence[float] | NDArray[np.float64]
Metric = Callable[[Evidence], Score]
metrics: Registry[Metric] = Registry("metric", "grun.evaluation.metrics")
Summary = Callable[..., Score]  # of the evidence of all splits by name, and `utility` (see `Benchmark`)
summaries: Registry[Summary] = Registry("summary", "grun.evaluation.metrics")


def missing(reason: str, n: int = 0) -> Score:
    """A score without a value."""
    return Score(None, n, reason=reason)


def mean_score(per_row: Sequence[float]) -> Score:
    """The mean over rows; no value if there are no rows or one is not a finite number."""
    n = len(per_row)
    if not n:
        return missing("there are no rows")
    wrong = [i for i, value in enumerate(per_row) if not math.isfinite(value)]
    if wrong:
        return missing(f"{len(wrong)} of {n} rows gave no finite number, the first is row {wrong[0] + 1}", n)
    return Score(math.fsum(per_row) / n, n, tuple(per_row))


def auroc(positive: Numbers, negative: Numbers) -> float:
    """Area under the ROC curve: the chance that a positive ranks above a negative, ties counting one half.

    Raises:
        ValueError: if one side is empty or a value is NaN.
    """
    _check_comparable(positive, negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    n = len(positive)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * len(negative)))


def tpr_at_low_fpr(positive: Numbers, negative: Numbers) -> float:
    """Share of positives above a threshold that at most 1 % of the negatives are above (Carlini et al., arXiv 2112.03570).

    Raises:
        ValueError: if one side is empty or a value is NaN.
    """
    _check_comparable(positive, negative)
    threshold = np.sort(negative)[::-1][int(LOW_FPR * len(negative))]
    return float((np.asarray(positive) > threshold).mean())


def _check_comparable(positive: Numbers, negative: Numbers) -> None:
    if not len(positive) or not len(negative) or np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("both sides need at least one value, and no value may be NaN")
