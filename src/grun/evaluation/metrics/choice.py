"""Accuracy on multiple-choice questions: the true answer is the likeliest choice."""

from __future__ import annotations

__all__ = ["accuracy"]

import math

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


@metrics.register(
    "accuracy",
    label="accuracy",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    needs=("token_logps", "choices", "perturbed"),
)
def accuracy(evidence: Evidence) -> Score:
    """Share of multiple-choice questions whose true answer has the highest log-likelihood, the sum over its tokens.

    This is `acc` of lm-evaluation-harness, in which WMDP (arXiv 2403.03218) and MMLU (arXiv 2009.03300) are reported. Of
    equally likely answers the first counts, as there.

    Blind spot: a model that always prefers one letter is right a quarter of the time, and knowledge that only an open question
    brings out does not count.
    """
    n = len(evidence.rows)
    values = []
    for i, row in enumerate(evidence.rows):
        if not row.example.choices:
            return missing("the rows are not multiple-choice questions", n)
        if not row.token_logps or not row.perturbed_logps or not all(row.perturbed_logps):
            return missing(f"row {i + 1} has an answer without a token", n)
        true = row.example.choices.index(row.example.answer)
        likelihoods = [math.fsum(logps) for logps in row.perturbed_logps]
        likelihoods.insert(true, math.fsum(row.token_logps))
        if any(map(math.isnan, likelihoods)):
            return missing(f"row {i + 1} gave no number", n)
        values.append(float(likelihoods.index(max(likelihoods)) == true))
    return mean_score(values)
