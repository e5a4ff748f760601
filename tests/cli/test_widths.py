"""No table loses a character, however narrow the terminal is; files and pipes have no width."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from grun.cli.main import main
from grun.core.records import Score
from grun.evaluation.comparison import compare_runs
from grun.evaluation.report.sweep_table import Finished, sweep_table
from grun.evaluation.report.table import Answered, answers_table, before_after_table, metric_label, number, show_whole

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
WHY = "A letter of a person who asked on Monday; it is kept in /records/2026/requests/letter-of-a-person.pdf for a year"
ID = "a-long-id-of-a-request-that-somebody-chose-by-hand"


@pytest.fixture(params=["20", "40", "60", "80", "200", None])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Width of the terminal; None for a pipe."""
    if request.param is None:
        monkeypatch.delenv("COLUMNS", raising=False)
        return None
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


def check(shown: str, values: Iterable[str], columns: int | None) -> None:
    assert "…" not in shown
    words = shown.split()
    for value in values:
        assert value in shown or (" " in value and all(word in words for word in value.split())), value
    if columns is not None:
        longest = max(map(len, words))
        assert all(len(line.rstrip()) <= max(columns, longest) for line in shown.splitlines())


def test_requests_are_listed_whole(columns: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Path(shutil.copytree(EARLIER / "ledger", tmp_path / "ledger"))
    record = json.loads((ledger / "ledger.json").read_text())
    record["requests"][0] |= {"id": ID, "why": WHY}
    (ledger / "ledger.json").write_text(json.dumps(record))
    assert main(["request", "list", "--ledger", str(ledger)]) == 0
    dates = [request["history"][-1]["when"][:10] for request in record["requests"]]
    table, _, _ = capsys.readouterr().out.partition("Calibrated ")  # a sentence, which the terminal wraps
    check(table, [ID, WHY, *dates], columns)


def test_comparisons_are_shown_whole(columns: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [EARLIER / "evaluation", EARLIER / "evaluation_first", EARLIER / "evaluation"]
    found = compare_runs(runs)
    assert main(["compare", *map(str, runs)]) == 0
    values = {one.split for one in found} | {metric_label(one.metric) for one in found}
    for one in found:
        values |= {number(run.value) for run in one.runs if run.value is not None}
        values |= {number(run.change, sign=True) for run in one.runs if run.change is not None}
    check(capsys.readouterr().out, values, columns)


def test_scores_are_shown_whole(columns: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("probability", "rouge_l_recall", "exact_match", "truth_ratio", "gate_mean", "gate_auroc", "perplexity")
    values = {name: 0.111 * (i + 1) for i, name in enumerate(names)}
    scores = {name: Score(value, n=3) for name, value in values.items()}
    splits = {"forget": scores, "a_split_with_a_long_name_of_its_own": scores}
    show_whole(before_after_table({"before": splits, "after": splits}, "Scores of a model before and after"))
    wanted = [*map(number, values.values()), *splits, "before", "after", *map(metric_label, names)]
    check(capsys.readouterr().out, wanted, columns)


def test_sweeps_are_shown_whole(columns: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {split: {"probability": 0.25, "rouge_l_recall": 0.5, "gate_auroc": 0.75} for split in ("forget", "retain")}
    facts = {"trainable_parameters": 123456, "seconds": 7890.0, "peak_memory_mib": {"host": 4321.0}}
    varied = {"objective": "npo", "objective_options": "beta=0.1;gamma=0.2;delta=0.3"}
    show_whole(sweep_table([Finished({}, "t", scores, {}), Finished(varied, "t", scores, facts)])[1])
    check(capsys.readouterr().out, [*varied.values(), "123,456", "7,890", "4,321", "0.250", "0.750"], columns)


def test_answers_are_shown_whole(columns: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    word = "Donaudampfschifffahrtsgesellschaftskapitaen"
    answers = {"before": f"It is the {word}.", "after": "I do not know."}
    show_whole(answers_table([Answered("forget_paraphrased, open", "Who is it?", None, answers)], "Answers"))
    check(capsys.readouterr().out, ["Who is it?", f"{word}.", "I do not know.", "forget_paraphrased, open"], columns)


@pytest.mark.parametrize("given", ["0", "00", "-1", "many", "²", "9" * 30])
def test_a_width_that_is_none_is_as_if_not_given(
    given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for value in (None, given):
        with monkeypatch.context() as patch:  # pytest, too, reads it after the test
            patch.delenv("COLUMNS", raising=False) if value is None else patch.setenv("COLUMNS", value)
            show_whole(sweep_table([Finished({"adapt": "lora"}, "t", {"forget": {"probability": 0.25}}, {})])[1])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
