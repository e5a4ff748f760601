"""Probability of the true answer."""

from __future__ import annotations

__all__ = ["probability"]

import math

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


@metrics.register(
    "probability", label="probability", range=(0.0, 1.0), forget="lower", normal="higher", needs=("token_logps",)
)
def probability(evidence: Evidence) -> Score:
    """Answer probability per token: `exp(-mean nll)` of each answer, its end included, then the mean over rows.

    As in TOFU (Maini et al., arXiv 2401.06121): how likely the model finds each token of the true answer, given the true
    tokens before it.

    Blind spot: the true beginning is given. A model that says something else at the first word, and never gets there, may
    still have a high value.
    """
    empty = [i for i, row in enumerate(evidence.rows) if not row.token_logps]
    if empty:
        return missing(f"row {empty[0] + 1} has no answer token", len(evidence.rows))
    return mean_score([math.exp(math.fsum(row.token_logps) / len(row.token_logps)) for row in evidence.rows])
