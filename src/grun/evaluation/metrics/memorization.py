"""Share of an answer that the model has memorised."""

from __future__ import annotations

__all__ = ["exact_memorization", "extraction_strength", "extraction_strength_published"]

from collections.abc import Callable, Sequence

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


@metrics.register(
    "exact_memorization",
    label="exact memorisation",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    needs=("token_logps",),
)
def exact_memorization(evidence: Evidence) -> Score:
    """Share of the answer's tokens that are the likeliest one given the true tokens before them, then the mean over rows.

    The end of the answer is left out (Tirumala et al. 2022, arXiv 2205.10770).

    Blind spot: words that any answer has count as well.
    """
    return _of_matches(evidence, lambda right: sum(right) / len(right))


@metrics.register(
    "extraction_strength",
    label="extraction strength",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    needs=("token_logps",),
)
def extraction_strength(evidence: Evidence) -> Score:
    """`1 - k/n`: after k of the answer's n tokens every further one is the likeliest (Carlini et al. 2021, arXiv 2012.07805).

    0 if the last token itself is wrong.

    Blind spot: one wrong token near the end hides all before it.
    """
    return _of_matches(evidence, lambda right: _tail(right) / len(right))


@metrics.register(
    "extraction_strength_published",
    label="extraction strength, as published",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    on_request=True,
    needs=("token_logps",),
)
def extraction_strength_published(evidence: Evidence) -> Score:
    """Extraction strength as open-unlearning's code computes it, to compare with its tables: never less than `1/n`.

    Its loop ends before the last token.

    Blind spot: a model that knows nothing does not reach 0, and short answers look better known than long ones.
    """
    return _of_matches(evidence, lambda right: max(1, _tail(right)) / len(right))


def _tail(right: Sequence[bool]) -> int:
    """Number of right tokens at the end."""
    return next((i for i, one in enumerate(reversed(right)) if not one), len(right))


def _of_matches(evidence: Evidence, value: Callable[[Sequence[bool]], float]) -> Score:
    values = []
    for i, row in enumerate(evidence.rows):
        right = row.token_is_argmax[:-1] if row.ends else row.token_is_argmax
        if not right:
            return missing(f"row {i + 1} has no answer token besides its end", len(evidence.rows))
        values.append(value(right))
    return mean_score(values)
