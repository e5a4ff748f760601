"""Tables of scores and of answers, for the terminal (rich) and as Markdown."""

from __future__ import annotations

__all__ = ["Answered", "answers_table", "answers_to_markdown", "before_after_table", "to_markdown"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from grun.metrics import metrics as registry
from grun.records import Score

Subjects = Mapping[str, Mapping[str, Mapping[str, Score]]]  # scores by subject ("before", "after"), split and metric
MISSING = "–"
LONGEST = 160  # characters of an answer in a table; an answer that repeats itself has many more


@dataclass(frozen=True)
class Answered:
    """A question, its true answer (None if nobody knows), and what each subject (model, or state of one) answered."""

    split: str
    question: str
    gold: str | None
    answers: Mapping[str, str]

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows: without the columns that have no content."""
        known = [self.split] if self.split else []
        known += [_short(self.question)]
        known += [] if self.gold is None else [_short(self.gold)]
        return (*known, *map(_short, self.answers.values()))

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings of `cells`."""
        known = ["split"] if self.split else []
        return (*known, "question", *([] if self.gold is None else ["true answer"]), *self.answers)


def before_after_table(results: Subjects, title: str | None = None) -> Table:
    """Scores of one or more subjects side by side: a block of lines per split, one line per subject.

    Metrics that have no value anywhere are left out and named, with the reason, below the table.

    Args:
        results: by subject, split and metric, as `evaluate_model` returns them; subjects in the order to show them.
        title: above the table.
    """
    shown, left_out = _columns(results)
    table = Table(title=title, caption=_note(left_out), title_justify="left", caption_justify="left")
    table.add_column("split")
    table.add_column("")
    for metric in shown:
        table.add_column(_label(metric), justify="right")
    for split, subjects in _by_split(results).items():
        for i, (subject, scores) in enumerate(subjects.items()):
            cells = [_cell(scores.get(metric)) for metric in shown]
            last = i == len(subjects) - 1
            table.add_row(*map(_text, ("" if i else split, subject, *cells)), end_section=last)
    return table


def to_markdown(results: Subjects) -> str:
    """The same table as Markdown, with the number of rows."""
    shown, left_out = _columns(results)
    head = ["split", "rows", "", *map(_label, shown)]
    lines = [_line(head), _line(["---", "---:", "---", *["---:"] * len(shown)])]
    for split, subjects in _by_split(results).items():
        for subject, scores in subjects.items():
            n = max((score.n for score in scores.values()), default=0)
            lines.append(_line([split, str(n), subject, *(_cell(scores.get(metric)) for metric in shown)]))
    note = _note(left_out)
    return "\n".join([*lines, *(["", _escaped(note)] if note else [])]) + "\n"


def answers_table(rows: Sequence[Answered], title: str | None = None) -> Table:
    """Questions with the true answer and each subject's."""
    table = Table(title=title, title_justify="left", show_lines=True)
    for heading in rows[0].headings if rows else ():
        table.add_column(_text(heading), overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row.cells))
    return table


def answers_to_markdown(rows: Sequence[Answered]) -> str:
    """The same as Markdown."""
    heading = rows[0].headings if rows else ("question",)
    lines = [_line(heading), _line(["---"] * len(heading))]
    lines += [_line(row.cells) for row in rows]
    return "\n".join(lines) + "\n"


def _short(text: str) -> str:
    """A long text cut to what is needed to judge it."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _by_split(results: Subjects) -> dict[str, dict[str, Mapping[str, Score]]]:
    splits: dict[str, dict[str, Mapping[str, Score]]] = {}
    for subject, found in results.items():
        for split, scores in found.items():
            splits.setdefault(split, {})[subject] = scores
    return splits


def _columns(results: Subjects) -> tuple[list[str], dict[str, str]]:
    """Metrics with a value somewhere, and the reason of each of the others."""
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
    return "Not measured: " + "; ".join(f"{_label(metric)} ({reason})" for metric, reason in left_out.items())


def _label(metric: str) -> str:
    return str(registry.get(metric).info["label"]) if metric in registry.names() else metric


def _cell(score: Score | None) -> str:
    return MISSING if score is None or score.value is None else f"{score.value:.3f}"


def _text(value: str) -> Text:
    """Text that is never read as markup, without control characters that a terminal would obey."""
    return Text("".join(c if c.isprintable() or c == "\n" else "·" for c in value))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(cell: str) -> str:
    """Text for one cell of a Markdown table: one line, nothing in it is markup."""
    if set(cell) <= set("-:"):
        return cell
    for sign in "\\`*_[]<>|#":
        cell = cell.replace(sign, "\\" + sign)
    return " ".join(cell.split())
