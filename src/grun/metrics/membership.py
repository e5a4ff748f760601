"""Membership inference: can the rows to be forgotten still be told from rows of the same kind that the model never saw?

All attacks score a row by how much the model seems to know it; the value is the area under the ROC curve of forget rows
(members) against hold-out rows. 0.5: the model gives nothing away. Only the forget split has values.
"""

from __future__ import annotations

__all__ = ["mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "mia_reference", "mia_grad_norm"]

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from grun.metrics import auroc, metrics, missing
from grun.records import Evidence, RowEvidence, Score

SHARE = 0.2  # of the least likely tokens, Min-K%
COMMON: dict[str, Any] = {"range": (0.0, 1.0), "forget": "lower", "normal": None}


@metrics.register("mia_loss", table=False, label="MIA loss", needs=("token_logps", "holdout"), **COMMON)
def mia_loss(evidence: Evidence) -> Score:
    """LOSS attack: minus the mean nll of the answer (Yeom et al. 2018, arXiv 1709.01604)."""
    return _attack(evidence, lambda row: -_mean_nll(row))


@metrics.register("mia_zlib", table=False, label="MIA zlib", needs=("token_logps", "holdout"), **COMMON)
def mia_zlib(evidence: Evidence) -> Score:
    """ZLib attack: minus the mean nll over the length of the compressed answer (Carlini et al. 2021, arXiv 2012.07805)."""
    return _attack(evidence, lambda row: -_mean_nll(row) / len(zlib.compress(row.example.answer.encode())))


@metrics.register("mia_min_k", label="MIA Min-K%", needs=("token_logps", "holdout"), **COMMON)
def mia_min_k(evidence: Evidence) -> Score:
    """Min-K%: mean of the lowest 20 % of the token log-probabilities, the end left out (Shi et al. 2023, arXiv 2310.16789)."""
    return _attack(evidence, lambda row: _lowest(row.token_logps))


@metrics.register("mia_min_k_plus_plus", table=False, label="MIA Min-K%++", needs=("token_logps", "holdout"), **COMMON)
def mia_min_k_plus_plus(evidence: Evidence) -> Score:
    """Min-K%++: the same on standardised log-probabilities (Zhang et al. 2024, arXiv 2404.02936)."""
    return _attack(evidence, lambda row: _lowest(row.token_z))


@metrics.register(
    "mia_reference", table=False, label="MIA reference", needs=("token_logps", "holdout", "retain_log"), **COMMON
)
def mia_reference(evidence: Evidence) -> Score:
    """Reference attack: the mean nll of a model that never saw the row minus that of this model (Carlini et al. 2021)."""
    n = len(evidence.rows)
    if evidence.retain_log is None or evidence.holdout_retain_log is None:
        return missing("there is no log of a model trained on retain data only (--retain-log)", n)
    others = dict(zip(map(id, evidence.rows), evidence.retain_log, strict=True))
    others |= dict(zip(map(id, evidence.holdout or ()), evidence.holdout_retain_log, strict=True))
    return _attack(evidence, lambda row: _mean_nll(others[id(row)]) - _mean_nll(row))


@metrics.register(
    "mia_grad_norm", table=False, on_request=True, label="MIA gradient norm", needs=("gradient", "holdout"), **COMMON
)
def mia_grad_norm(evidence: Evidence) -> Score:
    """GradNorm attack: minus the mean over parameters of the gradient's norm (Wang et al. 2024, arXiv 2402.17012)."""
    for row in (*evidence.rows, *(evidence.holdout or ())):
        if row.gradient_norm is None:
            return missing("no gradients were computed", len(evidence.rows))
    return _attack(evidence, lambda row: -(row.gradient_norm or 0.0))


def _attack(evidence: Evidence, membership: Callable[[RowEvidence], float]) -> Score:
    n = len(evidence.rows)
    if not evidence.holdout:
        return missing("there are no hold-out rows to compare with", n)
    empty = next((row for row in (*evidence.rows, *evidence.holdout) if not row.token_logps or not row.token_z), None)
    if empty is not None or not n:
        return missing("a row has no answer token" if n else "there are no rows", n)
    members, others = ([membership(row) for row in rows] for rows in (evidence.rows, evidence.holdout))
    if not all(map(math.isfinite, (*members, *others))):
        return missing("a row gave no finite number", n)
    return Score(auroc(members, others), n)


def _mean_nll(row: RowEvidence) -> float:
    return -math.fsum(row.token_logps) / len(row.token_logps)


def _lowest(values: Sequence[float]) -> float:
    """Mean of the lowest share of the values, at least one; the end of the sequence is left out where there is more."""
    tokens = sorted(values[:-1] or values)
    count = max(1, int(SHARE * len(tokens)))
    return math.fsum(tokens[:count]) / count
