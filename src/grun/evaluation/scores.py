"""Scores by split and metric, and which metrics an evaluation looks at."""

from __future__ import annotations

__all__ = ["Results", "needs_of_metrics", "score", "summarise", "usual_metrics"]

from collections.abc import Mapping, Sequence
from typing import Any

from grun.core.records import Evidence, Score
from grun.core.registry import Entry
from grun.evaluation.metrics import metrics as registry
from grun.evaluation.metrics import summaries as all_summaries

Results = Mapping[str, Mapping[str, Score]]  # scores by split and metric


def score(evidence: Mapping[str, Evidence], metrics: Sequence[str] | None = None) -> dict[str, dict[str, Score]]:
    """Scores by split and metric: of the metrics named, or of the usual ones.

    Raises:
        UserError: for an unknown metric.
    """
    entries = [registry.get(name) for name in metrics or usual_metrics()]
    return {split: {entry.name: entry.target(found) for entry in entries} for split, found in evidence.items()}


def summarise(evidence: Mapping[str, Evidence], utility: Mapping[str, bool]) -> dict[str, Score]:
    """Scores over all splits together, by name.

    Args:
        evidence: by split.
        utility: see `Benchmark`.
    """
    return {entry.name: entry.target(evidence, utility=utility) for entry in all_summaries}


def usual_metrics() -> list[str]:
    """Names of all metrics but those that only run when they are named, because they take long."""
    return [entry.name for entry in registry if not entry.info.get("on_request", False)]


def needs_of_metrics(names: Sequence[str], summaries: bool = False) -> set[str]:
    """What the named metrics look at, and what summaries do.

    Raises:
        UserError: for an unknown metric.
    """
    entries: list[Entry[Any]] = [registry.get(name) for name in names]
    return {need for entry in [*entries, *(all_summaries if summaries else ())] for need in entry.info["needs"]}
