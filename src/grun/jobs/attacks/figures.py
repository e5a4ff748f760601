"""What attacks found: figures of each, with rows as units, and the worst over all of them."""

from __future__ import annotations

__all__ = ["AFTER", "AUC", "BEFORE", "KEPT", "METRICS", "RECOGNITION", "WORST", "Figures", "statistic_of"]

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from grun.core.records import Evidence, Score
from grun.evaluation.attacks import Probe
from grun.evaluation.attacks.separation import ALL, Groups
from grun.evaluation.metrics import auroc, mean_score, metrics, missing
from grun.jobs.attacks.material import ORDINARY, PLAIN, Asked

METRICS = ("gate_open", "probability", "rouge_l_recall", "extraction_strength")
KEPT, WORST, AUC = "kept", "worst case", "AUC"
RECOGNITION = "recognition"
SAYS_SOMETHING = 1 / 3  # of the probability that the target gives plain questions
BEFORE, AFTER = "before", "after"
Scores = Mapping[str, Score]
Told = Mapping[str, Mapping[str, Mapping[str, Groups]]]  # by subject, attack and kind of feature


@dataclass(frozen=True)
class Figures:
    """Figures of all attacks.

    Attributes:
        asked: the probes by name.
        evidence: what was measured, by subject and name.
        told: how alike forgotten rows the rows are, of attacks that measure recognition.
    """

    asked: Mapping[str, Asked]
    evidence: Mapping[str, Mapping[str, Evidence]]
    told: Told = field(default_factory=dict)

    @cached_property
    def probes(self) -> dict[str, dict[str, dict[str, Score]]]:
        """Scores with one value per probe, by subject, name and metric."""
        return {
            subject: {
                name: {metric: self._scored(metric, name, one) for metric in METRICS} for name, one in own.items()
            }
            for subject, own in self.evidence.items()
        }

    @cached_property
    def rows(self) -> dict[str, dict[str, dict[str, Score]]]:
        """Scores with one value per row, the mean over its probes, by subject, name and metric; also what is kept."""
        found = {
            subject: {name: self._of_rows(name, scores) for name, scores in own.items() if not self._recognises(name)}
            for subject, own in self.probes.items()
        }
        for subject, told in self.told.items():
            found[subject] |= {name: {AUC: _auc(own[ALL])} for name, own in told.items()}
        for name, one in self.asked.items():
            if one.measures == "damage" and {BEFORE, AFTER} <= found.keys():
                found[AFTER][name][KEPT] = _kept(found[BEFORE][name]["probability"], found[AFTER][name]["probability"])
        return found

    @cached_property
    def worst(self) -> dict[str, dict[str, Score]]:
        """The worst of all black-box attacks and plain questions for each row, by subject and metric."""
        names = [name for name, one in self.asked.items() if one.measures == "leak" and one.access == "prompt"]
        found: dict[str, dict[str, Score]] = {}
        for subject, own in self.probes.items():
            found[subject] = {}
            for metric in METRICS:
                values: dict[int, list[float]] = defaultdict(list)
                for name in names:
                    for row, value in _by_row(self.asked[name].probes, own[name][metric]).items():
                        values[row] += value
                worst = min if metric == "gate_open" else max
                none = missing(own[PLAIN][metric].reason or "there are no rows", len(self.asked[PLAIN].probes))
                found[subject][metric] = mean_score([worst(values[row]) for row in sorted(values)]) if values else none
        return found

    def says_nothing(self, name: str) -> bool:
        """True if the target itself hardly gives the answers in this way, so that silence afterwards means nothing."""
        if name in (PLAIN, ORDINARY) or self._recognises(name) or name not in self.probes.get(BEFORE, {}):
            return False
        plain = ORDINARY if self.asked[name].measures == "damage" else PLAIN
        usual = _by_row(self.asked[plain].probes, self.probes[BEFORE][plain]["probability"])
        now = _by_row(self.asked[name].probes, self.probes[BEFORE][name]["probability"])
        rows = [row for row in now if row in usual]
        return bool(rows) and _mean(now[row] for row in rows) < SAYS_SOMETHING * _mean(usual[row] for row in rows)

    def variants(self, name: str) -> dict[str, dict[str, dict[str, float]]]:
        """Means over the probes of each form of an attack, by variant, metric and subject."""
        if self._recognises(name):
            kinds = dict.fromkeys(kind for told in self.told.values() for kind in told.get(name, {}))
            return {
                kind: {
                    AUC: {s: auroc(*told[name][kind]) for s, told in self.told.items() if kind in told.get(name, {})}
                }
                for kind in kinds
            }
        return {
            variant: {
                metric: {
                    subject: sum(own[name][metric].per_row[i] for i in chosen) / len(chosen)
                    for subject, own in self.probes.items()
                    if name in own and own[name][metric].per_row
                }
                for metric in METRICS
            }
            for variant, chosen in self._by_variant(name).items()
            if variant
        }

    def of_variants(self, name: str, subject: str) -> dict[str, Scores]:
        """Scores with one value per row, by variant, of an attack that asks each row once in each of them."""
        scores = self.probes[subject][name]
        return {
            variant: {
                metric: mean_score([score.per_row[i] for i in chosen])
                if score.per_row
                else replace(score, n=len(chosen))
                for metric, score in scores.items()
            }
            for variant, chosen in self._by_variant(name).items()
        }

    def _by_variant(self, name: str) -> dict[str, list[int]]:
        """Numbers of the probes of an attack, by variant."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for i, probe in enumerate(self.asked[name].probes):
            numbers[probe.variant].append(i)
        return numbers

    def refused(self, name: str) -> dict[str, int]:
        """Number of probes of an attack whose calls were refused, by subject; without those that refused none."""
        counts = {
            subject: sum(row.refused is not None for row in own[name].rows)
            for subject, own in self.evidence.items()
            if name in own
        }
        return {subject: count for subject, count in counts.items() if count}

    def _scored(self, metric: str, name: str, evidence: Evidence) -> Score:
        if metric == "gate_open" and self.asked[name].access == "calls":
            return missing("the asker says which tokens are the prompt", len(evidence.rows))
        return _scored(metric, evidence)

    def _recognises(self, name: str) -> bool:
        return self.asked[name].measures == RECOGNITION

    def _of_rows(self, name: str, scores: Scores) -> dict[str, Score]:
        """Scores with one value per row from those with one per probe."""
        found, rows = {}, len({probe.row for probe in self.asked[name].probes})
        for metric, score in scores.items():
            values = _by_row(self.asked[name].probes, score)
            of_row = max if self.asked[name].best else _mean_of
            of_rows = [of_row(own) for _, own in sorted(values.items())]
            found[metric] = mean_score(of_rows) if values else replace(score, n=rows)
        return found


def statistic_of(metric: str) -> dict[str, Callable[..., float]]:
    """What an interval needs to know of a figure; see `grun.evaluation.intervals`."""
    found: dict[str, Callable[..., float]] = {KEPT: _ratio, AUC: auroc}
    return {"statistic": found[metric]} if metric in found else {}


def _auc(groups: Groups) -> Score:
    """How well forgotten rows are told from unknown ones."""
    return Score(auroc(*groups), sum(map(len, groups)), groups=groups)


def _scored(metric: str, evidence: Evidence) -> Score:
    entry = metrics.get(metric)
    if "generated" not in entry.info["needs"] and not any(row.token_logps for row in evidence.rows):
        return missing("nothing but answers was looked at", len(evidence.rows))
    return entry.target(evidence)


def _ratio(pairs: Any) -> float:
    before, after = np.asarray(pairs).sum(axis=0)
    return float(after / before) if before else float("nan")


def _kept(before: Score, after: Score) -> Score:
    """Share of the answers' probability that is left, over all rows together."""
    if not before.per_row or not after.per_row:
        return missing(before.reason or after.reason or "there are no rows", before.n)
    pairs = tuple(zip(before.per_row, after.per_row, strict=True))
    if not sum(before.per_row):
        return missing("the model gave the answers no probability before", before.n)
    return Score(_ratio(pairs), len(pairs), groups=(pairs,))


def _by_row(probes: Sequence[Probe], score: Score) -> dict[int, list[float]]:
    """The values of a score by row; none if it has no value."""
    found: dict[int, list[float]] = defaultdict(list)
    for probe, value in zip(probes, score.per_row, strict=False):
        found[probe.row].append(value)
    return dict(found)


def _mean(values: Iterable[Sequence[float]]) -> float:
    """The mean over rows of the mean over their probes."""
    return _mean_of([_mean_of(own) for own in values])


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)
