"""Comparison of the evaluations of several models: differences, and their bootstrap intervals."""

from __future__ import annotations

__all__ = ["Compared", "Difference", "compare_runs", "run_names"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.errors import UserError, nearest
from grun.core.records import Score
from grun.evaluation.intervals import difference_interval
from grun.evaluation.metrics import metrics as registry
from grun.evaluation.result_files import metric_info
from grun.evaluation.stored_results import stored_results

OVERALL = "all splits"  # stands for a split where summaries are compared


@dataclass(frozen=True)
class Difference:
    """The score of a run, and its difference from that of the first run.

    Attributes:
        value: score of this run; None if it has none.
        change: `value` minus the score of the first run; None where one of them is missing.
        low, high: 95 % bootstrap interval of the change, over the same resampled rows; None where there is none.
    """

    value: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Compared:
    """One metric of one split in every run; the others are compared with the first."""

    split: str
    metric: str
    runs: tuple[Difference, ...]


@dataclass(frozen=True)
class _Run:
    name: str
    values: Mapping[str, Any]
    samples: Mapping[str, Any]
    subject: str

    def score(self, split: str, metric: str) -> Score | None:
        """Score of the model after unlearning, or of the only model; None if the run has no such metric."""
        overall = split == OVERALL
        found = (self.values["summaries"] if overall else self.values["splits"].get(split, {}).get("metrics", {})).get(
            metric
        )
        if found is None:
            return None
        samples = self.samples["summaries" if overall else "splits"][self.subject]
        groups = (samples if overall else samples[split])[metric]
        one = found[self.subject]
        return Score(one["value"], one["n"], groups=_frozen(groups), reason=one["reason"])


def compare_runs(
    runs: Sequence[Path], *, metrics: Sequence[str] = (), splits: Sequence[str] = (), seed: int = 0
) -> list[Compared]:
    """Compare evaluations with the first of them.

    Args:
        runs: directories of evaluations.
        metrics: only these; none: those of the usual table, and the summaries.
        splits: only these; none: all that every run has.
        seed: of the bootstrap.

    Raises:
        UserError: for fewer than two runs, an incomplete evaluation, an unknown metric or split, or a split with different
            rows.
    """
    if len(runs) < 2:
        raise UserError(f"compare: {len(runs)} run was given; expected the directories of at least two evaluations.")
    for name in metrics:
        registry.get(name)
    every = [_read(run, name) for run, name in zip(runs, run_names(runs), strict=True)]
    common = [split for split in every[0].values["splits"] if all(split in run.values["splits"] for run in every)]
    for name in splits:
        if name not in common:
            without = next(run.name for run in every if name not in run.values["splits"])
            raise UserError(
                f"--splits: not all runs have '{name}': {without} has not.{nearest(name, common)} "
                f"Common: {', '.join(common)}."
            )
    chosen = [split for split in common if not splits or split in splits]
    if not chosen:
        raise UserError("the runs have no split in common; evaluate them on the same data.")
    for split in chosen:
        _check_same_rows(every, split)
    wanted = metrics or [entry.name for entry in registry if entry.info.get("table", True)]
    asked = [(split, metric) for split in chosen for metric in wanted]
    if not metrics and not splits:
        asked += [(OVERALL, name) for name in every[0].values["summaries"]]
    compared = [_compared(every, split, metric, seed) for split, metric in asked]
    return [one for one in compared if any(run.value is not None for run in one.runs)]


def run_names(runs: Sequence[Path]) -> list[str]:
    """Short names, all different."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _read(run: Path, name: str) -> _Run:
    values, samples = stored_results(run)
    subjects = list(samples["splits"])
    return _Run(name, values, samples, "after" if "after" in subjects else subjects[0])


def _check_same_rows(runs: Sequence[_Run], split: str) -> None:
    first = runs[0].samples["rows"][split]
    for run in runs[1:]:
        rows = run.samples["rows"][split]
        if rows != first:
            at = next(
                (i for i, (a, b) in enumerate(zip(first, rows, strict=False)) if a != b), min(len(first), len(rows))
            )
            raise UserError(
                f"split '{split}' of {runs[0].name} ({len(first)} rows) and of {run.name} ({len(rows)} rows) has different "
                f"rows, the first is row {at + 1}; evaluate both on the same data, or choose other splits with --splits."
            )


def _compared(runs: Sequence[_Run], split: str, metric: str, seed: int) -> Compared:
    scores = [run.score(split, metric) for run in runs]
    first = scores[0]
    found = [Difference(None if first is None else first.value)]
    for score in scores[1:]:
        if score is None or score.value is None or first is None or first.value is None:
            found.append(Difference(None if score is None else score.value))
            continue
        low, high = difference_interval(score, first, metric_info(metric), seed) or (None, None)
        found.append(Difference(score.value, score.value - first.value, low, high))
    return Compared(split, metric, tuple(found))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
