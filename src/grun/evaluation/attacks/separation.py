"""Two kinds of rows, told apart by numbers of each row: a linear classifier that is judged by rows it has not seen."""

from __future__ import annotations

__all__ = ["ALL", "Features", "Groups", "Matrix", "separated"]

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from grun.core.records import Example

Matrix = NDArray[np.float64]
Features = Mapping[str, Matrix]  # of N rows, (N, F) by the kind of feature
Groups = tuple[tuple[float, ...], tuple[float, ...]]  # a score of every forgotten row, and of every unknown one
ALL = "all"


def separated(
    features: Features, forget: Sequence[Example], unknown: Sequence[Example], seed: int
) -> dict[str, Groups]:
    """How alike forgotten rows each row is, by the kind of feature, and by all kinds together.

    The rows are halved, all rows of a subject in one half; a classifier that was fitted to one half judges the other one. A
    score is the rank within the judged half, so that the scores of both classifiers compare.

    Args:
        features: of the forgotten rows, then of the unknown ones.
        forget, unknown: the rows, at least four of each.
        seed: of the halves.
    """
    count = len(forget)
    half_N = np.array(_halves(forget, seed) + _halves(unknown, seed + 1))
    is_forgotten_N = np.arange(len(half_N)) < count
    found = {}
    for kind in (*features, ALL):
        parts = list(features.values()) if kind == ALL else [features[kind]]
        score_N = np.zeros(len(half_N))
        for half in (0, 1):
            judged_N = half_N == half
            score = _judged(parts, is_forgotten_N, judged_N)
            score_N[judged_N] = (rankdata(score) - 0.5) / len(score)
        found[kind] = tuple(score_N[:count].tolist()), tuple(score_N[count:].tolist())
    return found


def _halves(rows: Sequence[Example], seed: int) -> list[int]:
    """The half of each row: 0 or 1. Rows of a subject stay together where there are several subjects."""
    units = defaultdict(list)
    for i, row in enumerate(rows):
        units[row.subject if row.subject is not None else i].append(i)
    if len(units) < 2:
        units = defaultdict(list, {i: [i] for i in range(len(rows))})
    order = sorted(units.values())
    random.Random(seed).shuffle(order)
    sizes, found = [0, 0], [0] * len(rows)
    for own in sorted(order, key=len, reverse=True):
        half = sizes.index(min(sizes))
        sizes[half] += len(own)
        for i in own:
            found[i] = half
    return found


def _judged(parts: Sequence[Matrix], is_forgotten_N: NDArray[np.bool_], judged_N: NDArray[np.bool_]) -> Matrix:
    """Scores of the judged rows by ridge regression on the others, each kind of features with the same weight."""
    seen_N = ~judged_N
    x_NF = np.concatenate([_standardised(part, seen_N) for part in parts], axis=1)
    y_M = np.where(is_forgotten_N[seen_N], 1.0 / is_forgotten_N[seen_N].sum(), -1.0 / (~is_forgotten_N[seen_N]).sum())
    k_MM = x_NF[seen_N] @ x_NF[seen_N].T
    strength = max(np.trace(k_MM) / len(k_MM), 1e-12)
    weights_M = np.linalg.solve(k_MM + strength * np.eye(len(k_MM)), y_M)
    return np.asarray(x_NF[judged_N] @ (x_NF[seen_N].T @ weights_M))


def _standardised(part_NF: Matrix, seen_N: NDArray[np.bool_]) -> Matrix:
    """Features with mean 0 and together variance 1 on the rows that are seen; those that never vary there do not count."""
    mean_F, std_F = part_NF[seen_N].mean(0), part_NF[seen_N].std(0)
    varies_F = std_F > 1e-12
    scaled_NF = np.where(varies_F, (part_NF - mean_F) / np.where(varies_F, std_F, 1.0), 0.0)
    return np.asarray(scaled_NF / np.sqrt(max(int(varies_F.sum()), 1)))
