"""Tables show what was measured and nothing that data or a model would like to do to the reader's terminal or page."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from grun.core.records import Score
from grun.evaluation.report.table import (
    Answered,
    answers_table,
    answers_to_markdown,
    before_after_table,
    show_whole,
    to_markdown,
)

RESULTS = {
    "before": {
        "forget": {
            "probability": Score(0.9876, 4),
            "gate_mean": Score(None, 4, reason="the model has no gated adapter"),
        },
        "forget_paraphrased": {"probability": Score(0.5, 4)},
    },
    "after": {
        "forget": {"probability": Score(0.01, 4), "gate_mean": Score(None, 4, reason="the model has no gated adapter")},
        "forget_paraphrased": {"probability": Score(0.02, 4)},
    },
}
NASTY = "[red]x[/red] \x1b[31mred\x1b[0m \x07 <script>alert(1)</script> | `code` *bold*\nnext"


def shown(table: object, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(table)
    return out.getvalue()


def test_subjects_stand_side_by_side_in_eighty_columns() -> None:
    text = shown(before_after_table(RESULTS))
    assert "…" not in text
    for words in ("forget", "  paraphrased", "before", "after", "0.988", "0.010", "0.500"):
        assert words in text
    assert "Not measured: gate (the model has no gated adapter)" in " ".join(text.split())


def test_a_wide_table_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"metric number {i} of many": Score(i / 7, 3) for i in range(12)}
    show_whole(before_after_table({"before": {"forget": many}}))
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(f"{i / 7:.3f}" in text for i in range(12))


def test_markdown_has_the_number_of_rows() -> None:
    text = to_markdown(RESULTS)
    assert "| forget | 4 | before | 0.988 |" in text
    assert r"| forget\_paraphrased | 4 | after | 0.020 |" in text


def test_answers_are_shown_as_they_are_and_do_nothing() -> None:
    rows = [Answered("forget", NASTY, NASTY, {"before": NASTY, "after": "x " * 400})]
    text = shown(answers_table(rows), 200)
    assert "[red]x[/red]" in text
    assert "\x1b[31m" not in text
    assert "\x07" not in text
    assert "…" in text
    assert len(text) < 4000
    page = answers_to_markdown(rows)
    assert page.count("\n") == 3
    assert "<script>" not in page
    assert r"\`code\`" in page


def test_what_is_not_known_is_left_out() -> None:
    text = shown(answers_table([Answered("", "Who?", None, {"before": "Ada."})]))
    assert "true answer" not in text
    assert "question" in text
