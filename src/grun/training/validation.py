"""Validation of a model in training by answer probabilities on forget rows and on normal rows."""

from __future__ import annotations

__all__ = ["spread", "validation", "validation_subset"]

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn

from grun.models.encoding.encode import Encoded

T = TypeVar("T")
VALIDATION_ROWS = 200
DURING_TRAINING = 32  # rows of a validation that training waits for many times
VALIDATION_METRICS = ("forget_probability", "forget_probability_before", "retain_ratio", "score")


def validation(
    base_probability: Callable[[Sequence[Encoded]], float],
    probability: Callable[[nn.Module, Sequence[Encoded]], float],
    forget: Sequence[Encoded],
    normal: Sequence[Encoded],
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that validates a model by its answer probabilities on forget rows and on normal rows.

    `score` is the normal rows' probability relative to the base model's (at most 1), times one minus the forget rows'.

    Args:
        base_probability: mean answer probability of rows under the base model.
        probability: the same under the model to validate.
        forget, normal: rows; the first 200 of each are used (see `validation_subset`).
    """
    forget, normal = validation_subset(forget), validation_subset(normal)
    forget_before, normal_before = base_probability(forget), base_probability(normal)

    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        forget_now, normal_now = probability(model, forget), probability(model, normal)
        model.train(was_training)
        kept = normal_now / max(normal_before, 1e-12)
        found = (forget_now, forget_before, kept, min(kept, 1.0) * (1.0 - forget_now))
        return dict(zip(VALIDATION_METRICS, found, strict=True))

    return validate


def spread(rows: Sequence[T], count: int = DURING_TRAINING) -> list[T]:
    """At most `count` of the rows, at equal distances, so that those of several files are among them."""
    return list(rows[:: max(1, -(-len(rows) // count))])


def validation_subset(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """The rows that validation uses: the first `VALIDATION_ROWS`."""
    return rows[:VALIDATION_ROWS]
