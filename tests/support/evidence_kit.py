"""Evidence of invented rows, for tests of metrics."""

from __future__ import annotations

import math
from typing import Any

from grun.core.records import Example, RowEvidence


def row(
    logps: tuple[float, ...] = (-0.5, -1.0),
    answer: str = "Ada wrote the books.",
    generated: str | None = "Ada wrote it.",
    logits: tuple[float, ...] | None = (0.0, 1.0),
    values: tuple[float, ...] | None = (0.5, 0.7),
    thresholds: tuple[float, ...] | None = None,
) -> RowEvidence:
    return RowEvidence(
        Example("Who?", answer, perturbed_answers=("Bo did.", "Eve."), choices=(answer, "Bo did.", "Eve.")),
        logps,
        generated,
        logits,
        values,
        token_is_argmax=tuple(logp > -0.7 for logp in logps),
        token_z=logps,
        paraphrased_logps=logps,
        perturbed_logps=((-1.5, -2.0), (-0.3,)),
        generated_base_logps=logps,
        gradient_norm=math.fsum(logps),
        gate_thresholds=thresholds,
    )


def compared(*rows: RowEvidence) -> dict[str, Any]:
    """Something to compare with, of every kind."""
    names = ("forget", "forget_paraphrased", "holdout", "retain_log", "holdout_retain_log")
    return dict.fromkeys(names, rows)
