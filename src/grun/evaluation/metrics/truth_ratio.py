"""The truth ratio of TOFU: the probability of wrong answers of the same form over that of the right one."""

from __future__ import annotations

__all__ = [
    "forget_quality",
    "forget_quality_log10",
    "probability_normalised",
    "truth_ratio",
    "truth_ratio_utility",
    "truth_ratios",
]

import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from grun.core.records import Evidence, RowEvidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing

LEAST = 1e-10  # as in the published code


@metrics.register(
    "probability_normalised",
    label="probability, normalised",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    needs=("token_logps", "perturbed"),
)
def probability_normalised(evidence: Evidence) -> Score:
    """`p / (p + sum of p(wrong))` per row: the true answer among the perturbed ones (TOFU, arXiv 2401.06121, section 2.2).

    The wrong answers of a row are its `perturbed_answers`.

    Blind spot: how likely all of them are together. Gibberish may have any value.
    """
    lacking = _lacking(evidence.rows)
    if lacking:
        return missing(lacking, len(evidence.rows))
    values = []
    for row in evidence.rows:
        right, wrong = _per_token(row.token_logps), [_per_token(logps) for logps in row.perturbed_logps]
        values.append(right / (right + math.fsum(wrong) + LEAST))
    return mean_score(values)


@metrics.register(
    "truth_ratio",
    label="truth ratio",
    range=(0.0, 1.0),
    forget="higher",
    normal=None,
    needs=("paraphrased", "perturbed"),
)
def truth_ratio(evidence: Evidence) -> Score:
    """`mean min(R, 1/R)`, R the geometric mean probability of wrong answers over that of the right one (arXiv 2401.06121).

    The right one is the paraphrased answer, if there is one. Near 1: the model tells right from wrong no better than a guess.

    Blind spot: a model that finds every sentence equally unlikely looks ideal.
    """
    return _of_ratios(evidence, lambda ratio: min(ratio, 1.0 / max(ratio, LEAST)))


@metrics.register(
    "truth_ratio_utility",
    label="truth ratio, utility",
    range=(0.0, 1.0),
    forget=None,
    normal="higher",
    needs=("paraphrased", "perturbed"),
)
def truth_ratio_utility(evidence: Evidence) -> Score:
    """`mean max(0, 1 - R)`, R as in `truth_ratio`: how far the right answer stands out (TOFU, arXiv 2401.06121).

    Blind spot: that of `truth_ratio`.
    """
    return _of_ratios(evidence, lambda ratio: max(0.0, 1.0 - ratio))


def _ks_p_value(ratios_N2: NDArray[np.float64]) -> float:
    """p-value of the truth ratios of two models on the same rows."""
    return float(ks_2samp(*ratios_N2.T).pvalue)


def _log10_ks_p_value(ratios_N2: NDArray[np.float64]) -> float:
    return math.log10(max(_ks_p_value(ratios_N2), sys.float_info.min))


@metrics.register(
    "forget_quality",
    label="forget quality",
    range=(0.0, 1.0),
    forget="higher",
    normal=None,
    needs=("paraphrased", "perturbed", "retain_log"),
    statistic=_ks_p_value,
)
def forget_quality(evidence: Evidence) -> Score:
    """p-value of the Kolmogorov-Smirnov test between the truth ratios and those of a model trained on retain data only.

    TOFU, arXiv 2401.06121, section 2.2 (scipy's `ks_2samp`). Large: the two models cannot be told apart by their truth ratios.

    Blind spot: with few rows everything looks alike. Resampled rows repeat, which the test takes for a difference: the
    interval leans to small values.
    """
    return _against_retrained(evidence, _ks_p_value)


@metrics.register(
    "forget_quality_log10",
    label="forget quality, log10",
    range=(math.log10(sys.float_info.min), 0.0),
    forget="higher",
    normal=None,
    table=False,
    needs=("paraphrased", "perturbed", "retain_log"),
    statistic=_log10_ks_p_value,
)
def forget_quality_log10(evidence: Evidence) -> Score:
    """Decimal logarithm of the forget quality, the form in which papers plot it.

    Blind spot: that of `forget_quality`.
    """
    return _against_retrained(evidence, _log10_ks_p_value)


def _against_retrained(evidence: Evidence, statistic: Callable[[NDArray[np.float64]], float]) -> Score:
    n = len(evidence.rows)
    if evidence.retain_log is None:
        return missing("there is no log of a model trained on retain data only (--retain-log)", n)
    lacking = _lacking(evidence.rows) or _lacking(evidence.retain_log)
    if lacking:
        return missing(lacking, n)
    ratios = tuple(
        (_ratio(ours), _ratio(theirs)) for ours, theirs in zip(evidence.rows, evidence.retain_log, strict=True)
    )
    if not np.isfinite(ratios).all():
        return missing("a truth ratio is not a finite number", n)
    return Score(statistic(np.asarray(ratios)), n, groups=(ratios,))


def truth_ratios(rows: Sequence[RowEvidence]) -> list[float] | None:
    """The truth ratio of each row; None if a row lacks an answer that it is computed from."""
    return None if _lacking(rows) else [_ratio(row) for row in rows]


def _of_ratios(evidence: Evidence, value: Callable[[float], float]) -> Score:
    lacking = _lacking(evidence.rows)
    if lacking:
        return missing(lacking, len(evidence.rows))
    ratios = [_ratio(row) for row in evidence.rows]
    # min() and max() would let a ratio that is not a number pass for one
    return mean_score([ratio if math.isnan(ratio) else value(ratio) for ratio in ratios])


def _ratio(row: RowEvidence) -> float:
    """Geometric mean of the wrong answers' probabilities per token, over the right answer's."""
    wrong = math.exp(math.fsum(_mean(logps) for logps in row.perturbed_logps) / len(row.perturbed_logps))
    return wrong / (_per_token(row.paraphrased_logps or row.token_logps) + LEAST)


def _per_token(logps: Sequence[float]) -> float:
    return math.exp(_mean(logps))


def _mean(logps: Sequence[float]) -> float:
    return math.fsum(logps) / len(logps)


def _lacking(rows: Sequence[RowEvidence]) -> str | None:
    """The reason why right and wrong answers cannot be compared; None if they can."""
    if not rows:
        return "there are no rows"
    empty = next((i for i, row in enumerate(rows) if not row.token_logps or not all(row.perturbed_logps)), None)
    if empty is not None:
        return f"row {empty + 1} has an answer without a token"
    without = next((i for i, row in enumerate(rows) if not row.perturbed_logps), None)
    return None if without is None else f"row {without + 1} has no perturbed answers (column perturbed_answer)"
