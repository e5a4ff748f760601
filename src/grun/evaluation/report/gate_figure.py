"""The figure of the gates: their scores by split, with the thresholds, splits to forget apart from splits to keep."""

from __future__ import annotations

__all__ = ["gate_figure"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from grun.core.records import Evidence, RowEvidence

SIDES = {True: ("splits to forget", "#EE6677"), False: ("splits to keep", "#4477AA")}
LINE = "#222222"
BINS = 40
MARGIN = 0.04  # of the axis, left free on both sides


@dataclass(frozen=True)
class _Column:
    """One number per row of every split: the logit of a gate, or the largest margin of all gates.

    Attributes:
        label: label of the axis.
        scores: by split.
        opened: by split, share of rows that open the gate (any gate).
        threshold: place of the line; None where it is not known.
    """

    label: str
    scores: Mapping[str, NDArray[np.float64]]
    opened: Mapping[str, float]
    threshold: float | None

    def bins(self) -> NDArray[np.float64]:
        """Edges of the bars, the same for all splits."""
        every = np.concatenate([*self.scores.values(), [] if self.threshold is None else [self.threshold]])
        known = every[np.isfinite(every)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        free = MARGIN * (high - low) or 1.0
        return np.linspace(low - free, high + free, BINS + 1)


def gate_figure(evidence: Mapping[str, Evidence]) -> Figure | None:
    """Histograms of gate scores (logits), a column per gate and a line per split; None without gates.

    With several gates, a last column shows what decides: the largest margin of a logit above its gate's threshold. It is
    left out, and so are the lines of thresholds, for evidence without thresholds.

    Args:
        evidence: evidence of one model, by split.
    """
    gated = {split: one for split, one in evidence.items() if one.rows and all(row.gate_logits for row in one.rows)}
    if not gated:
        return None
    columns = _columns({split: one.rows for split, one in gated.items()})
    sides = {side: [split for split in gated if gated[split].to_forget == side] for side in SIDES}
    drawn = {side: splits for side, splits in sides.items() if splits}
    heights = [0.45 + 0.8 * len(splits) for splits in drawn.values()]
    figure = Figure(figsize=(max(4.6, 2.6 * len(columns)), 0.9 + sum(heights)))
    parts = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (side, splits) in zip(parts, drawn.items(), strict=True):
        _draw_side(part, side, splits, columns)
        part.suptitle(SIDES[side][0], fontsize="medium", color=SIDES[side][1])
    figure.suptitle("Scores of the gates (share of rows), and their thresholds", fontsize="medium")
    return figure


def _columns(rows: Mapping[str, Sequence[RowEvidence]]) -> list[_Column]:
    """A column per gate, and one for all gates together."""
    every = [row for own in rows.values() for row in own]
    count = len(every[0].gate_logits or ())
    found = []
    for gate in range(count):
        found.append(
            _Column(
                f"gate {gate + 1}" if count > 1 else "gate",
                {split: np.array([(row.gate_logits or ())[gate] for row in own]) for split, own in rows.items()},
                {split: _share((row.gate_values or ())[gate] > 0.0 for row in own) for split, own in rows.items()},
                next((row.gate_thresholds[gate] for row in every if row.gate_thresholds), None),
            )
        )
    if count > 1 and all(row.gate_margins for row in every):
        margins = {split: np.array([max(row.gate_margins or ()) for row in own]) for split, own in rows.items()}
        opened = {split: _share(max(row.gate_values or ()) > 0.0 for row in own) for split, own in rows.items()}
        found.append(_Column("any gate: largest margin", margins, opened, 0.0))
    return found


def _share(which: Any) -> float:
    return float(np.mean(list(which)))


def _draw_side(part: Any, side: bool, splits: Sequence[str], columns: Sequence[_Column]) -> None:
    """The histograms of the splits of one side, each with its share of open rows."""
    grid = part.subplots(len(splits), len(columns), squeeze=False)
    for line, split in zip(grid, splits, strict=True):
        for axes, column in zip(line, columns, strict=True):
            bins, scores_N = column.bins(), column.scores[split]
            known_N = scores_N[np.isfinite(scores_N)]
            axes.hist(known_N, bins, weights=np.full(len(known_N), 1.0 / len(scores_N)), color=SIDES[side][1])
            axes.set(xlim=(bins[0], bins[-1]), ylim=(0.0, 1.0), yticks=[0.0, 1.0])
            if column.threshold is not None and math.isfinite(column.threshold):
                axes.axvline(column.threshold, color=LINE, linewidth=0.8, linestyle="--")
            told = f"open: {column.opened[split]:.1%} of {len(scores_N)}"
            axes.text(0.5, 0.75, told, transform=axes.transAxes, ha="center")
            axes.tick_params(labelbottom=line is grid[-1], labelleft=axes is line[0])
        line[0].set_ylabel(split.replace("_", "\n"), rotation=0, ha="right", va="center", labelpad=14)
    for axes, column in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(column.label)
