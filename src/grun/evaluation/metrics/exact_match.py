"""Exact match of the greedy answer with the true one."""

from __future__ import annotations

__all__ = ["exact_match"]

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


@metrics.register(
    "exact_match", label="exact match", range=(0.0, 1.0), forget="lower", normal="higher", needs=("generated",)
)
def exact_match(evidence: Evidence) -> Score:
    """Share of greedy answers that equal the true answer, letter case included.

    White space does not count: outer white space is dropped, and any run of it inside is one space.

    Blind spot: one other word makes it 0.
    """
    if any(row.generated is None for row in evidence.rows):
        return missing("no answers were generated", len(evidence.rows))
    return mean_score([float(_spaced(row.generated or "") == _spaced(row.example.answer)) for row in evidence.rows])


def _spaced(text: str) -> str:
    return " ".join(text.split())
