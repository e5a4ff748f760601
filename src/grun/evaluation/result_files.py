"""The files of an evaluation: every value with its interval, every row, and the samples for comparisons between runs."""

from __future__ import annotations

__all__ = ["ROWS", "SAMPLES", "VALUES", "Found", "metric_info", "write_results"]

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.provenance import provenance
from grun.core.records import Evidence, Score
from grun.core.storage.atomic_files import write_json, write_text
from grun.evaluation.intervals import interval, samples
from grun.evaluation.measuring.evidence_store import row_key
from grun.evaluation.metrics import metrics, summaries
from grun.evaluation.scores import Results

VALUES = "metrics.json"
ROWS = "rows.jsonl"
SAMPLES = "samples.json"


@dataclass(frozen=True)
class Found:
    """The results of an evaluation by subject ("before", "after"); all subjects have the same splits and metrics.

    Attributes:
        evidence: evidence by subject and split.
        scores: scores by subject, split and metric.
        summaries: scores by subject and summary.
    """

    evidence: Mapping[str, Mapping[str, Evidence]]
    scores: Mapping[str, Results]
    summaries: Mapping[str, Mapping[str, Score]]

    @property
    def splits(self) -> Mapping[str, Evidence]:
        """The splits, with the evidence of the first subject."""
        return next(iter(self.evidence.values()))


def write_results(folder: Path, found: Found, facts: Mapping[str, Any], seed: int) -> None:
    """Write `metrics.json` (values, intervals, provenance), `rows.jsonl` (every row) and `samples.json` (for comparisons).

    Args:
        folder: directory of the run.
        found: its results.
        facts: further entries of `metrics.json`, such as the model's name.
        seed: seed of the bootstrap.
    """
    write_json(folder / VALUES, {**facts, **provenance(), **_values(found, seed)})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(found))
    write_text(folder / ROWS, "".join(lines))
    write_json(folder / SAMPLES, _samples(found))


def metric_info(name: str) -> Mapping[str, Any]:
    """Registered information of a metric or a summary."""
    return (metrics if name in metrics.names() else summaries).get(name).info


def _values(found: Found, seed: int) -> dict[str, Any]:
    """The content of `metrics.json`: by split its size and the score of each metric and subject; and the summaries.

    Where there are gates, `gate_thresholds` has their thresholds by subject.
    """
    splits = {
        split: {
            "role": "forget" if evidence.to_forget else "keep",
            "rows": len(evidence.rows),
            "truncated": sum(row.truncated for row in evidence.rows),
            "metrics": _by_name({subject: scores[split] for subject, scores in found.scores.items()}, seed),
        }
        for split, evidence in found.splits.items()
    }
    values = {"splits": splits, "summaries": _by_name(found.summaries, seed)}
    thresholds = {subject: known for subject, one in found.evidence.items() if (known := _thresholds(one)) is not None}
    return values | ({"gate_thresholds": thresholds} if thresholds else {})


def _thresholds(evidence: Mapping[str, Evidence]) -> list[float | None] | None:
    """Thresholds of the gates, None for a gate without one; None without gates, or if they were not recorded."""
    rows = (row for one in evidence.values() for row in one.rows)
    known = next((row.gate_thresholds for row in rows if row.gate_thresholds), None)
    return None if known is None else [one if math.isfinite(one) else None for one in known]


def _by_name(scores: Mapping[str, Mapping[str, Score]], seed: int) -> dict[str, dict[str, Any]]:
    """Scores by metric, then by subject."""
    names = next(iter(scores.values()), {})
    return {name: {who: _as_json(name, own[name], seed) for who, own in scores.items()} for name in names}


def _as_json(name: str, score: Score, seed: int) -> dict[str, Any]:
    low, high = interval(score, metric_info(name), seed) or (None, None)
    return {
        "value": score.value,
        "n": score.n,
        "low": low,
        "high": high,
        "per_gate": list(score.per_gate),
        "reason": score.reason,
    }


def _rows(found: Found) -> list[dict[str, Any]]:
    rows = []
    for split, evidence in found.splits.items():
        for i, row in enumerate(evidence.rows):
            line: dict[str, Any] = {"split": split, "row": i + 1, "source": row.example.source}
            line |= {"question": row.example.prompt, "gold": row.example.answer, "truncated": row.truncated}
            for subject, own in found.evidence.items():
                scores = found.scores[subject][split].items()
                values = {metric: score.per_row[i] for metric, score in scores if score.per_row}
                line[subject] = {"answer": own[split].rows[i].generated, **values}
            rows.append(line)
    return rows


def _samples(found: Found) -> dict[str, Any]:
    return {
        "rows": {name: [row_key(row.example) for row in evidence.rows] for name, evidence in found.splits.items()},
        "splits": {
            subject: {split: {name: samples(score) for name, score in own.items()} for split, own in scores.items()}
            for subject, scores in found.scores.items()
        },
        "summaries": {
            subject: {name: samples(score) for name, score in own.items()} for subject, own in found.summaries.items()
        },
    }
