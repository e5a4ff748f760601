"""Tables of scores and of answers, for the terminal (rich) and as Markdown."""

from __future__ import annotations

__all__ = [
    "Answered",
    "answers_table",
    "answers_to_markdown",
    "before_after_table",
    "escaped_line",
    "in_the_table",
    "metric_label",
    "number",
    "plain_text",
    "show_whole",
    "summary_lines",
    "to_markdown",
]

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from grun.core.process.terminal import printable
from grun.core.records import Score
from grun.evaluation.report.widths import show_whole

Subjects = Mapping[str, Mapping[str, Mapping[str, Score]]]  # scores by subject ("before", "after"), split and metric
MISSING = "–"
LARGE = 100_000.0  # only the magnitude of larger numbers is shown
LONGEST = 160  # characters of an answer in a table; repetitive answers have many more


@dataclass(frozen=True)
class Answered:
    """A question, its true answer (None if unknown), and the answers by subject (a model, or a state of one)."""

    split: str
    question: str
    gold: str | None
    answers: Mapping[str, str]


def before_after_table(
    results: Subjects, title: str | None = None, to_forget: Collection[str] = (), heading: str = "split"
) -> Table:
    """Scores of one or more subjects side by side: a block of lines per split, one line per subject.

    Metrics that have no value anywhere are left out and named, with the reason, below the table.

    Args:
        results: scores by subject, split and metric; subjects in the order to show them.
        to_forget: splits to be forgotten, which are marked unless their names say it.
        title: title above the table.
    """
    shown, left_out = _columns(results)
    above, below = (None if text is None else plain_text(text) for text in (title, _note(left_out)))
    table = Table(title=above, caption=below, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    for name in (heading, ""):
        table.add_column(name, no_wrap=True)
    for metric in shown:
        label = metric_label(metric)
        table.add_column(plain_text(label), justify="right", min_width=max(map(len, label.split())))
    splits = _by_split(results)
    for split, subjects in splits.items():
        base = split.removesuffix("_paraphrased")
        name = "  paraphrased" if base != split and base in splits else _with_role(split, to_forget)
        for i, (subject, scores) in enumerate(subjects.items()):
            cells = [_cell(scores.get(metric)) for metric in shown]
            last = i == len(subjects) - 1
            table.add_row(*map(plain_text, ("" if i else name, subject, *cells)), end_section=last)
    return table


def _with_role(split: str, to_forget: Collection[str]) -> str:
    """The name of a split, marked if it is to be forgotten and is not called so."""
    return f"{split} (to forget)" if split in to_forget and not split.startswith("forget") else split


def in_the_table(results: Subjects, wanted: Sequence[str] = ()) -> dict[str, dict[str, dict[str, Score]]]:
    """Scores of the metrics named, or of all that are not registered with `table=False`."""
    usual = wanted or [entry.name for entry in _registry("metrics") if entry.info.get("table", True)]
    return {
        subject: {
            split: {name: one for name, one in scores.items() if name in usual} for split, scores in found.items()
        }
        for subject, found in results.items()
    }


def summary_lines(summary: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """One line per summary with the value of each subject, or the reason why there is none.

    Args:
        summary: scores by subject and summary.
    """
    lines = []
    for name in next(iter(summary.values()), {}):
        label = _registry("summaries").get(name).info["label"]
        values = {subject: scores[name] for subject, scores in summary.items()}
        if all(one.value is None for one in values.values()):
            lines.append(f"{label}: not measured ({next(iter(values.values())).reason})")
        else:
            lines.append(f"{label}: " + ", ".join(f"{subject} {_cell(one)}" for subject, one in values.items()))
    return lines


def number(value: float, sign: bool = False) -> str:
    """A number for a cell; very large ones in scientific notation."""
    return format(value, ("+" if sign else "") + (".3f" if abs(value) < LARGE else ".2e"))


def to_markdown(results: Subjects, to_forget: Collection[str] = (), heading: str = "split") -> str:
    """Scores as a Markdown table, with the number of rows of each split; arguments as of `before_after_table`."""
    shown, left_out = _columns(results)
    head = [heading, "rows", "", *map(metric_label, shown)]
    lines = [escaped_line(head), escaped_line(["---", "---:", "---", *["---:"] * len(shown)])]
    for split, subjects in _by_split(results).items():
        for subject, scores in subjects.items():
            n = max((score.n for score in scores.values()), default=0)
            lines.append(
                escaped_line(
                    [_with_role(split, to_forget), str(n), subject, *(_cell(scores.get(metric)) for metric in shown)]
                )
            )
    note = _note(left_out)
    return "\n".join([*lines, *(["", _escaped(note)] if note else [])]) + "\n"


def answers_table(rows: Sequence[Answered], title: str | None = None) -> Table:
    """Questions, each with the true answer and each subject's below it, which fits any terminal."""
    heading = None if title is None else plain_text(title)
    table = Table(title=heading, title_justify="left", show_header=False, box=SIMPLE_HEAD)
    for row in rows:
        lines = _lines(row)
        for i, (label, text) in enumerate(lines.items()):
            table.add_row(plain_text(label), plain_text(_short(text)), end_section=i == len(lines) - 1)
    return table


def answers_to_markdown(rows: Sequence[Answered]) -> str:
    """Questions and answers as a Markdown table."""
    headings = ["split", "question", *list(_lines(rows[0]))[1:]] if rows else ["split", "question"]
    lines = [escaped_line(headings), escaped_line(["---"] * len(headings))]
    lines += [escaped_line([row.split, *map(_short, _lines(row).values())]) for row in rows]
    return "\n".join(lines) + "\n"


def _lines(row: Answered) -> dict[str, str]:
    """Question and answers by label."""
    known = {} if row.gold is None else {"true answer": row.gold}
    return {row.split or "question": row.question, **known, **row.answers}


def _short(text: str) -> str:
    """A text cut to `LONGEST` characters."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _by_split(results: Subjects) -> dict[str, dict[str, Mapping[str, Score]]]:
    splits: dict[str, dict[str, Mapping[str, Score]]] = {}
    for subject, found in results.items():
        for split, scores in found.items():
            splits.setdefault(split, {})[subject] = scores
    return splits


def _columns(results: Subjects) -> tuple[list[str], dict[str, str]]:
    """Metrics with a value somewhere, and each of the others with the reason why it has none."""
    shown: list[str] = []
    reasons: dict[str, str] = {}
    for found in results.values():
        for scores in found.values():
            for metric, score in scores.items():
                if score.value is not None and metric not in shown:
                    shown.append(metric)
                reasons[metric] = score.reason or reasons.get(metric, "")
    order = list(reasons)
    return sorted(shown, key=order.index), {m: reason for m, reason in reasons.items() if m not in shown}


def _note(left_out: Mapping[str, str]) -> str | None:
    if not left_out:
        return None
    return "Not measured: " + "; ".join(f"{metric_label(metric)} ({reason})" for metric, reason in left_out.items())


def metric_label(metric: str) -> str:
    """Name of a metric in tables."""
    for known in (_registry("metrics"), _registry("summaries")):
        if metric in known.names():
            return str(known.get(metric).info["label"])
    return metric


def _registry(name: str) -> Any:
    """A registry of `grun.evaluation.metrics`, imported when it is asked: commands that only show text do not wait for it."""
    return getattr(import_module("grun.evaluation.metrics"), name)


def _cell(score: Score | None) -> str:
    return MISSING if score is None or score.value is None else number(score.value)


def plain_text(value: str) -> Text:
    """Text without markup and without control characters that a terminal would obey."""
    return Text(printable(value, "·"))


def escaped_line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """Text for one cell of a Markdown table: one line, without markup."""
    if set(cell) <= set("-:"):
        return cell
    for sign in "\\`*_[]<>|#":
        cell = cell.replace(sign, "\\" + sign)
    return printable(" ".join(cell.split()), "·")
