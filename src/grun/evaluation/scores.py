"""Scores by split and metric, and the quantities that metrics need."""

from __future__ import annotations

__all__ = ["Results", "evaluate_model", "needs_of_metrics", "score", "summarise", "usual_metrics"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from grun.core.records import Evidence, Score
from grun.core.registry import Entry
from grun.data.paraphrases import Splits
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.metrics import metrics as registry
from grun.evaluation.metrics import summaries as all_summaries

Results = Mapping[str, Mapping[str, Score]]  # scores by split and metric


def evaluate_model(
    subject: Subject,
    splits: Splits,
    settings: MeasureSettings,
    *,
    forget_split: str | None,
    metrics: Sequence[str] | None = None,
) -> dict[str, dict[str, Score]]:
    """Scores of a model by split and metric: of the metrics named, or of the usual ones.

    Args:
        subject: the model to measure.
        splits: rows by split.
        settings: settings of the measurement; their `needs` are replaced by those of the metrics.
        forget_split: name of the split that is to be forgotten; None if there is none.
        metrics: names of metrics.

    Raises:
        UserError: for an empty split, an unknown metric, or a `forget_split` that is not among the splits.
    """
    names = metrics or usual_metrics()
    settings = replace(settings, needs=needs_of_metrics(names))
    return score(measure(subject, splits, settings, forget_split=forget_split), names)


def score(evidence: Mapping[str, Evidence], metrics: Sequence[str] | None = None) -> dict[str, dict[str, Score]]:
    """Scores of evidence by split and metric: of the metrics named, or of the usual ones.

    Raises:
        UserError: for an unknown metric.
    """
    entries = [registry.get(name) for name in metrics or usual_metrics()]
    return {split: {entry.name: entry.target(found) for entry in entries} for split, found in evidence.items()}


def summarise(evidence: Mapping[str, Evidence], utility: Mapping[str, bool]) -> dict[str, Score]:
    """Summaries over all splits together, by name.

    Args:
        evidence: evidence by split.
        utility: see `Benchmark`.
    """
    return {entry.name: entry.target(evidence, utility=utility) for entry in all_summaries}


def usual_metrics() -> list[str]:
    """Names of all metrics, without the slow ones that run only when they are named."""
    return [entry.name for entry in registry if not entry.info.get("on_request", False)]


def needs_of_metrics(names: Sequence[str], summaries: bool = False) -> frozenset[str]:
    """Quantities that the named metrics read, and, with `summaries`, those that summaries read.

    Raises:
        UserError: for an unknown metric.
    """
    entries: list[Entry[Any]] = [registry.get(name) for name in names]
    return frozenset(
        need for entry in [*entries, *(all_summaries if summaries else ())] for need in entry.info["needs"]
    )
