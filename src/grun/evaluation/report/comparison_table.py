"""The table of `grun compare`."""

from __future__ import annotations

__all__ = ["comparison_table"]

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from grun.evaluation.report.table import MISSING, escaped_line, metric_label, number, plain_text

if TYPE_CHECKING:
    from grun.evaluation.comparison import Compared, Difference


def comparison_table(found: Sequence[Compared], names: Sequence[str]) -> tuple[str, Table]:
    """The table as Markdown, and for the terminal: a block of lines per split, a line per metric.

    Args:
        found: the comparison, by split and metric.
        names: names of the runs; the others are compared with the first.
    """
    head = ["split", "metric", names[0]]
    head += [text for name in names[1:] for text in (name, "difference", "95 % interval")]
    lines = [[one.split, metric_label(one.metric), *_cells(one)] for one in found]
    markdown = escaped_line(head) + "\n" + escaped_line(["---", "---", *["---:"] * (len(head) - 2)]) + "\n"
    markdown += "".join(escaped_line(line) + "\n" for line in lines)
    table = Table(box=SIMPLE_HEAD)
    for i, name in enumerate(head):
        table.add_column(plain_text(name), justify="right" if i > 1 else "left", no_wrap=i < 2)
    for i, line in enumerate(lines):
        last = i + 1 == len(lines) or lines[i + 1][0] != line[0]
        first = i == 0 or lines[i - 1][0] != line[0]
        table.add_row(*map(plain_text, (line[0] if first else "", *line[1:])), end_section=last)
    return markdown, table


def _cells(one: Compared) -> list[str]:
    cells = [_value(one.runs[0].value)]
    for run in one.runs[1:]:
        cells += [_value(run.value), _change(run), _interval(run)]
    return cells


def _value(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _change(run: Difference) -> str:
    return MISSING if run.change is None else number(run.change, sign=True)


def _interval(run: Difference) -> str:
    if run.low is None or run.high is None:
        return MISSING
    return f"{number(run.low, sign=True)} to {number(run.high, sign=True)}"
