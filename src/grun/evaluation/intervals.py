"""Bootstrap intervals of scores, and of the difference between two scores of the same rows."""

from __future__ import annotations

__all__ = ["difference_interval", "interval", "samples"]

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from grun.core.records import Score

RESAMPLES = 1000
CONFIDENCE = 0.95


def samples(found: Score) -> tuple[tuple[Any, ...], ...]:
    """Groups of rows that a score was computed from; none for a score without a value."""
    return found.groups or ((found.per_row,) if found.per_row else ())


def interval(found: Score, info: Mapping[str, Any], seed: int = 0) -> tuple[float, float] | None:
    """95 % interval by the percentile bootstrap over rows, each group of rows resampled on its own.

    Args:
        found: a score.
        info: registered information of its metric; `statistic` is the mean where it is not given.
        seed: seed of the resampling.

    Returns:
        None for a score without a value, or with a group of fewer than two rows.
    """
    return _interval(info.get("statistic"), [np.asarray(group) for group in samples(found)], seed)


def difference_interval(
    ours: Score, theirs: Score, info: Mapping[str, Any], seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of `ours - theirs`, both computed from the same resampled rows.

    Args:
        ours, theirs: two scores of one metric.
        info: registered information of the metric.
        seed: seed of the resampling.

    Returns:
        None for a score without a value, a group of fewer than two rows, or different numbers of rows.
    """
    pairs = [[np.asarray(group) for group in samples(one)] for one in (ours, theirs)]
    if [group.shape for group in pairs[0]] != [group.shape for group in pairs[1]]:
        return None
    statistic = info.get("statistic")
    if statistic is None:
        return _interval(None, [a - b for a, b in zip(*pairs, strict=True)], seed)

    def difference(*both: Any) -> float:
        return float(statistic(*[rows[:, 0] for rows in both]) - statistic(*[rows[:, 1] for rows in both]))

    return _interval(difference, [np.stack([a, b], axis=1) for a, b in zip(*pairs, strict=True)], seed)


def _interval(
    statistic: Callable[..., float] | None, groups: list[np.ndarray[Any, Any]], seed: int
) -> tuple[float, float] | None:
    if not groups or any(len(group) < 2 for group in groups):
        return None
    settings: dict[str, Any] = {
        "n_resamples": RESAMPLES,
        "confidence_level": CONFIDENCE,
        "method": "percentile",
        "rng": np.random.default_rng(seed),
    }
    if statistic is None:
        found = bootstrap(groups, np.mean, vectorized=True, **settings)
    else:

        def of_rows(*rows: Any) -> float:
            return float(statistic(*[group[index] for group, index in zip(groups, rows, strict=True)]))

        found = bootstrap([np.arange(len(group)) for group in groups], of_rows, vectorized=False, **settings)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
