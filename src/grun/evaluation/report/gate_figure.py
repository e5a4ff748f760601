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

    def shares(self, split: str) -> NDArray[np.float64]:
        """Share of a split's rows in each bin; scores that are not finite lie in none."""
        scores_N = self.scores[split]
        counts, _ = np.histogram(scores_N[np.isfinite(scores_N)], self.bins())
        return counts / len(scores_N)


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
    heights = [0.8 + 0.8 * len(splits) for splits in drawn.values()]
    figure = Figure(figsize=(max(4.6, 2.6 * len(columns)), sum(heights)))
    parts = figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
    largest = max(float(column.shares(split).max()) for column in columns for split in gated)
    top = min(1.0, math.ceil(10 * largest) / 10) or 1.0
    for part, (side, splits) in zip(parts, drawn.items(), strict=True):
        _draw_side(part, side, splits, columns, top)
        part.suptitle(f"{SIDES[side][0]}: scores of the gates (share of rows)", fontsize="medium", color=SIDES[side][1])
    return figure


def _columns(rows: Mapping[str, Sequence[RowEvidence]]) -> list[_Column]:
    """A column per gate, and one for all gates together."""
    every = [row for own in rows.values() for row in own]
    count = len(every[0].gate_logits or ())
    found = []
    for gate in range(count):
        found.append(
            _Column(
                f"gate {gate + 1}: logit" if count > 1 else "gate: logit",
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


def _draw_side(part: Any, side: bool, splits: Sequence[str], columns: Sequence[_Column], top: float) -> None:
    """The histograms of the splits of one side, each with its share of open rows."""
    grid = part.subplots(len(splits), len(columns), squeeze=False)
    for number, (line, split) in enumerate(zip(grid, splits, strict=True), 1):
        for axes, column in zip(line, columns, strict=True):
            bins, shares = column.bins(), column.shares(split)
            axes.bar(bins[:-1], shares, np.diff(bins), align="edge", color=SIDES[side][1])
            axes.set(xlim=(bins[0], bins[-1]), ylim=(0.0, top), yticks=[0.0, top])
            if column.threshold is not None and math.isfinite(column.threshold):
                axes.axvline(column.threshold, color=LINE, linewidth=0.8, linestyle="--")
            told = f"open: {column.opened[split]:.1%} of {len(column.scores[split])}"
            axes.text(0.5, 1.03, told, transform=axes.transAxes, ha="center", fontsize="small")
            axes.tick_params(labelbottom=number == len(splits), labelleft=axes is line[0])
        line[0].set_ylabel(split.replace("_", "\n"), rotation=0, ha="right", va="center", labelpad=14)
    for axes, column in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(column.label)
