"""Openness of gates. The widest open gate of a row counts: one open gate is enough to edit the answer."""

from __future__ import annotations

__all__ = ["gate_auroc", "gate_auroc_paraphrased", "gate_mean", "gate_open"]

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from grun.core.records import Evidence, RowEvidence, Score
from grun.evaluation.metrics import auroc, mean_score, metrics, missing

NO_GATES = "the model has no gated adapter"


@metrics.register("gate_mean", label="gate", range=(0.0, 1.0), forget="higher", normal="lower", needs=("gates",))
def gate_mean(evidence: Evidence) -> Score:
    """Mean gate value, after the threshold, of each row's widest open gate; per gate, the mean of that gate.

    Blind spot: many rows a little and a few rows wholly look the same.
    """
    return _of_values(evidence, float)


@metrics.register("gate_open", label="gate open", range=(0.0, 1.0), forget="higher", normal="lower", needs=("gates",))
def gate_open(evidence: Evidence) -> Score:
    """Share of rows with a gate that is not exactly 0: true positives on forget rows, false ones elsewhere.

    A gate without a threshold is open everywhere; `gate_mean` tells how wide.

    Blind spot: how wide gates open.
    """
    return _of_values(evidence, lambda value: value if math.isnan(value) else float(value > 0.0))


@metrics.register(
    "gate_auroc",
    label="gate AUROC",
    range=(0.0, 1.0),
    forget="higher",
    normal="higher",
    needs=("gates",),
    statistic=auroc,
)
def gate_auroc(evidence: Evidence) -> Score:
    """Area under the ROC curve of the gate logits: rows to be forgotten against rows to be kept.

    The chance that the gate logit of a row to be forgotten lies above that of a row to be kept. Of several gates, the largest
    margin above a gate's own threshold counts, since one open gate is enough; the largest logit counts where thresholds are
    not known. On a split to be kept, the rows of the forget split are compared with its own; on further rows of what must be
    forgotten, its own with all rows to be kept. It has no value on the forget split itself, which the gate was fitted on.

    Blind spot: the height of the thresholds. A perfect ranking with a bad threshold still harms.
    """
    if evidence.to_forget:
        return _separation(len(evidence.rows), evidence.rows if evidence.normal else None, evidence.normal or ())
    return _separation(len(evidence.rows), evidence.forget, evidence.rows)


@metrics.register(
    "gate_auroc_paraphrased",
    label="gate AUROC, paraphrased",
    range=(0.0, 1.0),
    forget=None,
    normal="higher",
    needs=("gates",),
    statistic=auroc,
)
def gate_auroc_paraphrased(evidence: Evidence) -> Score:
    """`gate_auroc` with the forget rows in phrasings that training never saw.

    Blind spot: that of `gate_auroc`.
    """
    return _separation(len(evidence.rows), evidence.forget_paraphrased, evidence.rows)


def _of_values(evidence: Evidence, count: Callable[[float], float]) -> Score:
    values = _gates(evidence.rows, "gate_values")
    if values is None:
        return missing(NO_GATES, len(evidence.rows))
    counted = [[count(value) for value in row] for row in values]
    score = mean_score([_widest(row) for row in counted])
    if score.value is None:
        return score
    return replace(score, per_gate=tuple(math.fsum(gate) / len(gate) for gate in zip(*counted, strict=True)))


def _separation(n: int, forget: Sequence[RowEvidence] | None, normal: Sequence[RowEvidence]) -> Score:
    """How well gate logits rank rows to be forgotten above rows to be kept, for a split of `n` rows."""
    if not forget:
        return missing("there are no forget rows to compare this split with", n)
    ours, theirs = _gates(normal, "gate_logits"), _gates(forget, "gate_logits")
    if ours is None or theirs is None:
        return missing(NO_GATES, n)
    if any(math.isnan(value) for row in (*ours, *theirs) for value in row):
        return missing("a gate logit is not a number", n)
    columns = zip(zip(*theirs, strict=True), zip(*ours, strict=True), strict=True)
    widest = _ranked(forget, normal)
    return Score(
        auroc(*widest),
        n,
        per_gate=tuple(auroc(positive, negative) for positive, negative in columns),
        groups=widest,
    )


def _ranked(*sides: Sequence[RowEvidence]) -> tuple[tuple[float, ...], ...]:
    """The score of each row, side by side: how far it is from opening any gate, as far as that is known.

    A single gate's logit ranks rows like its margin, and is comparable with earlier evidence.
    """
    several = any(len(row.gate_logits or ()) > 1 for side in sides for row in side)
    if several and all(row.gate_margins for side in sides for row in side):
        return tuple(tuple(max(row.gate_margins or ()) for row in side) for side in sides)
    return tuple(tuple(max(row.gate_logits or ()) for row in side) for side in sides)


def _gates(rows: Sequence[RowEvidence], name: str) -> list[tuple[float, ...]] | None:
    """Logits or values of the gates, row by row; None if a row has none."""
    found = [getattr(row, name) for row in rows]
    return found if found and all(found) else None


def _widest(values: Sequence[float]) -> float:
    """The maximum; NaN if one value is (max() alone would depend on the order)."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
