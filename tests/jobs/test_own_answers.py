"""Rows without answers get the base model's own, once; jobs work with them as with any others."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example
from grun.jobs.inputs import own_answers
from grun.jobs.inputs.own_answers import SHUT, with_own_answers, worth_answering
from grun.models.encoding.encode import encode_prompt
from grun.models.generation import greedy
from grun.models.loading.loaded import load
from support.material import Material


def test_only_missing_answers_are_filled_in_and_asked_for_once(
    memorised: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(str(memorised.model), UnlearnConfig(device="cpu"))
    rows = [
        Example("Where was Lund Ada 0 born?", ""),
        Example("Who?", "Nobody."),
        Example("Where was Marl Bo 0 born?", ""),
    ]
    found = with_own_answers(base, rows)
    prompts = [encode_prompt(rows[i], base.tokenizer, base.template) for i in (0, 2)]
    assert [found[0].answer, found[2].answer] == greedy(base.model, base.tokenizer, prompts, own_answers.LONGEST, 1)
    assert found[1] is rows[1]
    monkeypatch.setattr(own_answers, "greedy", None)  # nothing is asked again
    assert with_own_answers(base, rows) == found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=200))
def test_rows_with_an_answer_or_an_open_gate_are_used_and_few_others(kinds: list[tuple[bool, bool]]) -> None:
    rows = [Example(f"Question {i}?", "Yes." if answered else "") for i, (answered, _) in enumerate(kinds)]
    open_rows = [i for i, (_, is_open) in enumerate(kinds) if is_open]
    used = worth_answering(rows, open_rows)
    wanted = {i for i, kind in enumerate(kinds) if any(kind)}
    numbers = [rows.index(row) for row in used]
    assert numbers == sorted(set(numbers))
    assert wanted <= set(numbers)
    others = len(rows) - len(wanted)
    assert min(others, SHUT // 2) <= len(numbers) - len(wanted) <= min(others, SHUT)


def test_a_benchmark_without_answers_is_forgotten_and_measured(memorised: Material, tmp_path: Path) -> None:
    shared = ["--model", str(memorised.model), "--benchmark", "topics", "--device", "cpu"]
    small = ["--benchmark-options", "retain=12", "--benchmark-options", "topic=tennis"]
    learn = ["--objective", "idk", "--steps", "2", "--batch-size", "4", "--output", str(tmp_path / "run")]
    learn += ["--topic-layer", "none"]
    assert main(["unlearn", *shared, *small, *learn, "--layers", "1,3", "--max-length", "200"]) == 0
    measure = ["--adapter", str(tmp_path / "run"), "--max-rows", "3", "--no-figures", "--output", str(tmp_path / "out")]
    assert main(["evaluate", *shared, *small, *measure]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| described (to forget) | 3 | after |" in table
    assert "| neighbours | 3 | before |" in table


def test_there_is_nothing_to_train_a_target_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["finetune", "--benchmark", "topics", "--output", str(tmp_path / "target")]) == 2
    assert "--benchmark topics has nothing to train a target model on" in capsys.readouterr().err
