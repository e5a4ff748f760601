"""Figures of an evaluation, as PNG and SVG: forgetting against utility, the gates, and the truth ratios."""

from __future__ import annotations

__all__ = ["draw_figures"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from grun.core.records import RowEvidence, Score
from grun.core.storage.atomic_files import atomic_file
from grun.evaluation.intervals import interval
from grun.evaluation.metrics import metrics as registry
from grun.evaluation.metrics import summaries
from grun.evaluation.metrics.truth_ratio import truth_ratios
from grun.evaluation.report.gate_figure import gate_figure
from grun.evaluation.result_files import Found

COLOURS = {"before": "#4477AA", "after": "#EE6677", "retrained": "#228833"}  # told apart by colour-blind readers too
GREY = "#666666"
RESOLUTION = 150  # dots per inch
STYLE: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "font.size": 9.0,
    "svg.hashsalt": "grun",  # the same figure is the same file
}


def draw_figures(folder: Path, found: Found, forget: str | None, seed: int = 0) -> list[str]:
    """Draw all figures for which there are values.

    Args:
        folder: folder for `forget_utility`, `gates` and `truth_ratio`, each as `.png` and `.svg`.
        found: results of an evaluation.
        forget: name of the split that is to be forgotten; None if there is none.
        seed: seed of the bootstrap.

    Returns:
        Names of the figures that were drawn: without a forget split, gates or perturbed answers there are fewer.
    """
    with mpl.rc_context(STYLE):
        drawn = {
            "forget_utility": None if forget is None else _forget_utility(found, forget, seed),
            "gates": gate_figure(found.evidence.get("after", {})),
            "truth_ratio": None if forget is None else _truth_ratio(found, forget),
        }
        for name, figure in drawn.items():
            if figure is not None:
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(folder / f"{name}.png") as file:
                    figure.savefig(file, format="png", dpi=RESOLUTION)
                with atomic_file(folder / f"{name}.svg") as file:
                    figure.savefig(file, format="svg", metadata={"Date": None})
    return [name for name, figure in drawn.items() if figure is not None]


@dataclass(frozen=True)
class _Place:
    """A value on an axis, and the reach of its interval below and above it."""

    value: float
    reach: list[list[float]]


def _forget_utility(found: Found, forget: str, seed: int) -> Figure | None:
    """Answer probability on the forget split against utility, with 95 % intervals."""
    points = {}
    for subject, scores in found.scores.items():
        left = scores[forget].get("probability")
        kept, info, label = _kept(found, subject)
        x, y = _place(left, registry.get("probability").info, seed), _place(kept, info, seed)
        if x is None or y is None:
            return None
        points[subject] = (x, y)
    figure = Figure(figsize=(4.6, 3.6))
    axes = figure.subplots()
    for subject, (x, y) in points.items():
        axes.errorbar(
            x.value,
            y.value,
            xerr=x.reach,
            yerr=y.reach,
            fmt="o",
            color=COLOURS[subject],
            capsize=3,
            label=subject,
            zorder=3,
        )
    if len(points) == 2:
        start, end = ((x.value, y.value) for x, y in points.values())
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 6, "shrinkB": 6})
    axes.set(
        xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel=f"{forget}: answer probability (0: forgotten)", ylabel=label
    )
    axes.legend(frameon=False, loc="best")
    return figure


def _kept(found: Found, subject: str) -> tuple[Score | None, Mapping[str, Any], str]:
    """Utility with its registered information and label: model utility, or else the answer probability on other rows."""
    utility = found.summaries.get(subject, {}).get("model_utility")
    if utility is not None and utility.value is not None:
        return utility, summaries.get("model_utility").info, "model utility"
    splits = [split for split, evidence in found.splits.items() if not evidence.to_forget]
    scores = [found.scores[subject][split].get("probability") for split in splits]
    rows = tuple(value for score in scores if score is not None for value in score.per_row)
    score = Score(math.fsum(rows) / len(rows), len(rows), rows) if rows else None
    return score, {}, "answer probability on all other rows"


def _place(score: Score | None, info: Mapping[str, Any], seed: int) -> _Place | None:
    if score is None or score.value is None:
        return None
    low, high = interval(score, info, seed) or (score.value, score.value)
    return _Place(score.value, [[max(0.0, score.value - low)], [max(0.0, high - score.value)]])


def _truth_ratio(found: Found, forget: str) -> Figure | None:
    """Distribution functions of the forget rows' truth ratios, beside that of a model trained on retain data only."""
    sides: dict[str, Sequence[RowEvidence] | None] = {
        subject: evidence[forget].rows for subject, evidence in found.evidence.items()
    }
    sides["retrained"] = found.splits[forget].retain_log
    ratios = {name: truth_ratios(rows) for name, rows in sides.items() if rows}
    known = {
        name: values for name, values in ratios.items() if values and np.isfinite(values).all() and min(values) > 0
    }
    if not known:
        return None
    figure = Figure(figsize=(4.6, 3.4))
    axes = figure.subplots()
    for name, values in known.items():
        label = "trained on retain data only" if name == "retrained" else name
        axes.ecdf(values, color=COLOURS[name], label=label, linestyle="--" if name == "retrained" else "-")
    axes.axvline(1.0, color=GREY, linewidth=0.8)
    axes.set(
        xscale="log", xlabel="truth ratio (1: wrong answers as likely as the right one)", ylabel="share of forget rows"
    )
    axes.legend(frameon=False, loc="best")
    return figure
