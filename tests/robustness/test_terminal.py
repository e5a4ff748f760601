"""What data, names and models say never acts on a terminal: it is shown as text, in tables, lines, errors and JSON."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from golden.write_earlier import EARLIER
from grun.cli.main import main
from grun.core.errors import UserError
from grun.core.process.terminal import one_line, printable, printable_json
from grun.core.records import Score
from grun.evaluation.report.sweep_table import Finished, sweep_table
from grun.evaluation.report.table import Answered, answers_table, answers_to_markdown, before_after_table, to_markdown
from support.material import Material, invented_rows, write_rows

# A colour, the clipboard (OSC 52), a link, a clear screen in C1, a carriage return, directions, no width, half a character.
EVIL = "\x1b[31m\x1b]52;c;ZWNobw==\x07\x1b]8;;http://x\x1b\\\x9b2J\rroot\u202e\u2066\u200b\ufeff\u2028[bold]b[/bold] :smile: [link=http://x]y[/link]"
HALF = "\ud83d"
MARKUP = "[bold]b :smile: [link=x]"


def assert_harmless(text: str) -> None:
    for character in text:
        kind = unicodedata.category(character)
        assert character == "\n" or not kind.startswith(("Cc", "Cf", "Cs", "Zl", "Zp")), f"{character!r} in {text!r}"


@given(st.text())
def test_whatever_is_shown_is_harmless_and_keeps_what_can_be_printed(text: str) -> None:
    assert_harmless(printable(text))
    assert_harmless(one_line(text))
    assert_harmless(str(UserError(text)))
    assert "\n" not in one_line(text) + str(UserError(text))
    if text.isprintable():
        assert printable(text) == text
    assert [c for c in text if c.isprintable() and c not in "\\·"] == [
        c for c in printable(text, "·") if c.isprintable() and c not in "\\·"
    ]


@given(
    st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_json_stays_json(value: object) -> None:
    assert_harmless(printable_json(value))
    assert json.loads(printable_json(value)) == value


def test_json_of_halves_of_characters() -> None:
    assert json.loads(printable_json([HALF, "\U000e0001"])) == [HALF, "\U000e0001"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    text = captured.out + re.sub(r"\r(?=[\w ]*:? *\d+%\|| *\r| *$)", "\n", captured.err)  # bars of progress
    assert_harmless(text)
    return text


def test_errors_about_names_rows_and_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "good.jsonl", invented_rows("Lund", 6))
    rows = (
        [{EVIL: "q", "answer": "a"}],
        [{"question": 3, "answer": EVIL}],
        [{"messages": [{"role": EVIL, "content": "x"}]}],
    )
    base = ["unlearn", "--model", EVIL, "--output", EVIL, "--objective", EVIL, "--forget"]
    assert main([*base, "good.jsonl"]) == 2
    said(capsys)
    for own in rows:
        write_rows(tmp_path / "rows.jsonl", own)
        assert main(["evaluate", "--model", "m", "--data", "forget=rows.jsonl", "--output", "run"]) == 2
        assert "rows.jsonl" in said(capsys)
    for words in (
        ["evaluate", "--model", EVIL, "--data", "forget=good.jsonl", "--output", "run"],
        ["evaluate", "--model", "m", "--data", EVIL, "--output", "run"],
        ["evaluate", "--model", "m", "--benchmark", EVIL, "--output", "run"],
        ["unlearn", "--model", "m", "--forget", EVIL, "--output", "run"],
        ["unlearn", "--model", "m", "--forget", "good.jsonl", "--columns", f"prompt={EVIL}", "--output", "run"],
        ["unlearn", f"--{EVIL}", "x"],
        [EVIL],
        ["compare", EVIL, "run"],
        ["compare", ".", "run", "--metrics", EVIL],
        ["request", "list", "--ledger", EVIL],
        ["request", "show", EVIL, "--ledger", "."],
        ["calibrate", "--model", "m", "--adapter", EVIL, "--normal", "good.jsonl", "--output", "run"],
    ):
        assert main(words) == 2, words
        assert "grun: " in said(capsys)


def test_tables_and_records_of_a_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EARLIER / "ledger", tmp_path / "ledger")
    file = tmp_path / "ledger" / "ledger.json"
    record = json.loads(file.read_text())
    evil = EVIL + HALF
    record["requests"][0] |= {"why": evil, "objective": evil}
    record["requests"][0]["history"][-1] = {"when": evil, "what": evil}
    record["calibration"] |= {"when": evil, "dtype": evil}
    file.write_text(json.dumps(record))
    ledger = ["--ledger", str(tmp_path / "ledger")]
    assert main(["request", "list", *ledger]) == 0
    assert "[bold]" in said(capsys).replace("\n", "")
    assert main(["request", "show", "r0001", *ledger]) == 0
    captured = capsys.readouterr().out
    assert_harmless(captured)
    assert json.loads(captured)["why"] == evil
    assert main(["request", "suspend", "r0001", *ledger]) == 0
    said(capsys)


def test_an_evaluation_and_its_comparison(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"question": f"Who is {EVIL}?", "answer": f"It is {EVIL}.", "author": EVIL}
    write_rows(tmp_path / "rows.jsonl", [*invented_rows("Lund", 3), row])
    outputs = [f"{MARKUP}{i}" for i in range(2)]
    for output in outputs:
        words = ["evaluate", "--model", str(material.model), "--data", "forget=rows.jsonl", "--max-new-tokens", "4"]
        assert main([*words, "--output", output, "--no-figures", "--device", "cpu"]) == 0
        said(capsys)
        assert_harmless((tmp_path / output / "table.md").read_text(encoding="utf-8"))
    assert main(["compare", *outputs, "--output", "compared"]) == 0
    said(capsys)
    assert_harmless((tmp_path / "compared" / "comparison.md").read_text(encoding="utf-8"))


def test_chat(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from support.adapter_kit import attach

    attach().save_pretrained(tmp_path / "adapter")
    words = ["chat", "--model", str(material.model), "--adapter", str(tmp_path / "adapter"), "--device", "cpu"]
    assert main([*words, "--prompt", EVIL]) == 2
    said(capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{EVIL}\n"))
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert "[bold]b[/bold]" in "".join(said(capsys).split())


def test_file_names_that_are_no_text(material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = os.fsdecode(os.fsencode(tmp_path) + b"/rows\xff.jsonl")
    write_rows(Path(file), invented_rows("Lund", 6))
    words = ["evaluate", "--model", str(material.model), "--data", f"forget={file}", "--max-new-tokens", "4"]
    assert main([*words, "--output", str(tmp_path / "run"), "--no-figures", "--device", "cpu"]) == 2
    assert "--data" in said(capsys)


def test_every_table() -> None:
    scores = {EVIL: {EVIL: {EVIL: Score(0.5, 3), "probability": Score(None, 3, reason=EVIL)}}}
    answers = [Answered(EVIL, EVIL, EVIL, {EVIL: EVIL})]
    markdown, sweep = sweep_table([Finished({EVIL: EVIL}, EVIL, {EVIL: {"probability": 0.5}}, {"seconds": "x"})])
    console = Console(width=400, record=True, force_terminal=False)
    with console.capture() as captured:
        for table in (before_after_table(scores, title=EVIL), answers_table(answers, title=EVIL), sweep):
            console.print(table)
    assert_harmless(captured.get())
    assert "[bold]b[/bold] :smile:" in captured.get()
    for text in (
        markdown,
        to_markdown(scores),
        answers_to_markdown(answers),
        answers_to_markdown([Answered("a|b", "x\ny", None, {})]),
    ):
        assert_harmless(text)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
