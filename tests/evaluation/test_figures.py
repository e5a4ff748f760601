"""Figures: which are drawn of what, from the numbers themselves, and the same file for the same numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest

from grun.core.records import Evidence, RowEvidence
from grun.evaluation.metrics.truth_ratio import truth_ratios
from grun.evaluation.report.figures import draw_figures
from grun.evaluation.result_files import Found
from grun.evaluation.scores import score, summarise
from support.evidence_kit import row


def rows(level: float, gates: tuple[float, ...] | None, count: int = 12) -> tuple[RowEvidence, ...]:
    return tuple(row((level - 0.1 * i, -0.5), values=gates, logits=gates) for i in range(count))


def found(*, gated: bool = True, perturbed: bool = True, retrained: bool = False) -> Found:
    def evidence(level: float, gates: tuple[float, ...] | None) -> dict[str, Evidence]:
        forget = rows(level, gates)
        if not perturbed:
            forget = tuple(dataclasses.replace(one, perturbed_logps=()) for one in forget)
        log = rows(-2.0, None) if retrained else None
        return {
            "forget": Evidence("forget", forget, retain_log=log),
            "retain": Evidence("retain", rows(-0.1, None if gates is None else (0.0, 0.25))),
        }

    measured = {"before": evidence(-0.2, None), "after": evidence(-3.0, (1.0, 0.5) if gated else None)}
    scores = {subject: score(one) for subject, one in measured.items()}
    return Found(measured, scores, {who: summarise(one, {"retain": False}) for who, one in measured.items()})


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, matplotlib.figure.Figure]:
    """Figures by name, as they were saved."""
    saved: dict[str, matplotlib.figure.Figure] = {}
    real = matplotlib.figure.Figure.savefig

    def keep(figure: matplotlib.figure.Figure, file: Path, **settings: Any) -> None:
        saved[file.name.split(".")[1]] = figure  # a temporary name, ".NAME.png. ... .tmp"
        real(figure, file, **settings)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return saved


def test_everything_is_drawn_as_picture_and_as_vectors(tmp_path: Path) -> None:
    names = draw_figures(tmp_path / "figures", found(), "forget")
    assert names == ["forget_utility", "gates", "truth_ratio"]
    for name in names:
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "figures" / f"{name}.svg").read_text()


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw_figures(tmp_path / folder, found(), "forget")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_what_is_not_known_is_not_drawn(tmp_path: Path) -> None:
    assert draw_figures(tmp_path, found(gated=False), "forget") == ["forget_utility", "truth_ratio"]
    assert draw_figures(tmp_path, found(perturbed=False), "forget") == ["forget_utility", "gates"]
    assert draw_figures(tmp_path, found(), None) == ["gates"]


def test_the_plane_shows_the_values(tmp_path: Path, drawn: dict[str, matplotlib.figure.Figure]) -> None:
    given = found()
    draw_figures(tmp_path, given, "forget")
    axes: Any = drawn["forget_utility"].axes[0]
    points = [container.lines[0].get_xydata()[0] for container in axes.containers]
    for point, subject in zip(points, ("before", "after"), strict=True):
        left = given.scores[subject]["forget"]["probability"].value
        assert tuple(point) == pytest.approx((left, given.summaries[subject]["model_utility"].value))
    assert points[1][0] < points[0][0]


def test_the_histograms_are_shares_of_rows_by_split_and_gate(
    tmp_path: Path, drawn: dict[str, matplotlib.figure.Figure]
) -> None:
    draw_figures(tmp_path, found(), "forget")
    grid: list[Any] = drawn["gates"].axes
    assert len(grid) == 4, "two splits, two gates"
    for axes in grid:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1.0)
    shown = [text.get_text() for axes in grid for text in axes.texts]
    assert shown == ["open: 100.0% of 12", "open: 100.0% of 12", "open: 0.0% of 12", "open: 100.0% of 12"]


def test_gate_scores_are_drawn_with_thresholds_and_the_sides_apart(
    tmp_path: Path, drawn: dict[str, matplotlib.figure.Figure]
) -> None:
    def gated(logits: tuple[float, ...], values: tuple[float, ...]) -> tuple[RowEvidence, ...]:
        return (row(logits=logits, values=values, thresholds=(1.0, 8.0)),) * 4

    splits = {
        "retain": Evidence("retain", gated((-3.0, 7.0), (0.0, 0.0))),
        "forget": Evidence("forget", gated((2.0, 1.0), (0.9, 0.0)), to_forget=True),
    }
    given = dataclasses.replace(found(), evidence={"before": splits, "after": splits})
    assert draw_figures(tmp_path, given, None) == ["gates"]
    figure = drawn["gates"]
    assert [part.get_suptitle() for part in figure.subfigs] == [
        f"splits to {side}: scores of the gates (share of rows)" for side in ("forget", "keep")
    ]
    grid: list[list[Any]] = [list(part.axes) for part in figure.subfigs]
    assert [axes.get_xlabel() for axes in grid[0]] == ["gate 1: logit", "gate 2: logit", "any gate: largest margin"]
    for line in grid:
        assert [axes.lines[0].get_xdata()[0] for axes in line] == [1.0, 8.0, 0.0]
    scores = [[_mean_of_bars(axes) for axes in line] for line in grid]
    assert scores[0] == pytest.approx([2.0, 1.0, 1.0], abs=0.3)
    assert scores[1] == pytest.approx([-3.0, 7.0, -1.0], abs=0.3)
    shown = [[text.get_text() for axes in line for text in axes.texts] for line in grid]
    assert shown == [["open: 100.0% of 4", "open: 0.0% of 4", "open: 100.0% of 4"], ["open: 0.0% of 4"] * 3]


def test_without_thresholds_no_line_is_drawn(tmp_path: Path, drawn: dict[str, matplotlib.figure.Figure]) -> None:
    draw_figures(tmp_path, found(), "forget")
    assert not any(axes.lines for axes in drawn["gates"].axes)


def _mean_of_bars(axes: Any) -> float:
    return float(sum(bar.get_height() * (bar.get_x() + bar.get_width() / 2) for bar in axes.patches))


def test_truth_ratios_stand_beside_those_of_the_retrained_model(
    tmp_path: Path, drawn: dict[str, matplotlib.figure.Figure]
) -> None:
    given = found(retrained=True)
    draw_figures(tmp_path, given, "forget")
    axes = drawn["truth_ratio"].axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert {"before", "after", "trained on retain data only"} <= set(curves)
    expected = sorted(truth_ratios(given.evidence["after"]["forget"].rows) or ())
    steps = np.unique(curves["after"].get_xdata())
    assert [value for value in steps if np.isfinite(value)] == pytest.approx(sorted(set(expected)))
    assert re.search("truth ratio", axes.get_xlabel())
