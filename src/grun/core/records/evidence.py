"""Measurements of a model, and the scores that metrics compute from them."""

from __future__ import annotations

__all__ = ["Evidence", "RowEvidence", "Score"]

import math
from dataclasses import dataclass
from typing import Any

from grun.core.records.data import Example


@dataclass(frozen=True)
class RowEvidence:
    """Measurements of one row, made once; every metric reads them.

    Attributes:
        example: the row.
        token_logps: natural-log probability of each answer token, end-of-sequence token included.
        generated: greedy answer, decoded, special tokens removed; None if nothing was generated.
        gate_logits: gate logits, one per gate of the adapter, in layer order; None without a gated adapter.
        gate_values: gate values after threshold, likewise.
        gold_start: the true answer, cut to as many tokens as the greedy one could have; None likewise.
        truncated: the row did not fit into the model's context and lost the end of its answer.
        token_is_argmax: per answer token, true if it is the likeliest one given the true tokens before it.
        token_z: log-probability of each answer token in standard deviations above its mean under the model's distribution.
        paraphrased_logps: as `token_logps`, of the paraphrased answer; empty if the row has none.
        perturbed_logps: the same of each perturbed answer.
        generated_base_logps: the same of the greedy answer under the base model, its end left out; None if not asked for.
        gradient_norm: mean over the model's parameters of the norm of the gradient of the answer's mean nll; None likewise.
        gate_thresholds: thresholds of the gates, in logits, the same for all rows of a model; minus infinity for a gate
            without one. None without a gated adapter, and in evidence of versions that did not keep them.
        refused: what the model said when it refused the calls of an asker who makes them himself; None if it was read.
    """

    example: Example
    token_logps: tuple[float, ...]
    generated: str | None = None
    gate_logits: tuple[float, ...] | None = None
    gate_values: tuple[float, ...] | None = None
    truncated: bool = False
    gold_start: str | None = None
    token_is_argmax: tuple[bool, ...] = ()
    token_z: tuple[float, ...] = ()
    paraphrased_logps: tuple[float, ...] = ()
    perturbed_logps: tuple[tuple[float, ...], ...] = ()
    generated_base_logps: tuple[float, ...] | None = None
    gradient_norm: float | None = None
    gate_thresholds: tuple[float, ...] | None = None
    refused: str | None = None

    @property
    def ends(self) -> bool:
        """True if the last of the answer's tokens is its end."""
        return not self.truncated and not self.example.choices

    @property
    def gate_margins(self) -> tuple[float, ...] | None:
        """Distance of each gate's logit above its threshold; None without gates, or if a gate has no known threshold."""
        if not self.gate_logits or not self.gate_thresholds or -math.inf in self.gate_thresholds:
            return None
        return tuple(logit - threshold for logit, threshold in zip(self.gate_logits, self.gate_thresholds, strict=True))


@dataclass(frozen=True)
class Evidence:
    """All rows of one split for one model, and the rows that comparing metrics need.

    Attributes:
        to_forget: True if this split is to be forgotten: the forget split, or more rows of what it is about.
        forget: rows of the forget split; None if this split itself is to be forgotten.
        forget_paraphrased: the same in other phrasings; None likewise, or where there are none.
        holdout: rows like the forget rows that the model never saw; None unless this split is to be forgotten.
        retain_log: the rows of this split under a model trained on retain data only; None if there is no such log.
        holdout_retain_log: the hold-out rows under that model; None likewise.
        normal: rows of all splits to keep; None unless this split is to be forgotten and unlearning never saw it.
    """

    split: str
    rows: tuple[RowEvidence, ...]
    forget: tuple[RowEvidence, ...] | None = None
    forget_paraphrased: tuple[RowEvidence, ...] | None = None
    holdout: tuple[RowEvidence, ...] | None = None
    retain_log: tuple[RowEvidence, ...] | None = None
    holdout_retain_log: tuple[RowEvidence, ...] | None = None
    normal: tuple[RowEvidence, ...] | None = None
    to_forget: bool = False


@dataclass(frozen=True)
class Score:
    """A metric's value with the facts that are needed to read it.

    Attributes:
        value: the aggregate, or None when it cannot be computed; then `reason` says why.
        n: number of rows behind it.
        per_row: one value per row, in row order; empty for metrics that have none.
        per_gate: one value per gate of the adapter, in layer order; empty for metrics that do not look at gates.
        groups: inputs of the value, a number (or several) per row, where they are not `per_row`: groups of rows that were
            drawn apart from each other, such as forget rows and hold-out rows.
        reason: reason why `value` is None.
    """

    value: float | None
    n: int
    per_row: tuple[float, ...] = ()
    reason: str | None = None
    per_gate: tuple[float, ...] = ()
    groups: tuple[tuple[Any, ...], ...] = ()
