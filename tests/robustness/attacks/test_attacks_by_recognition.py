"""Attacks that ask whether something was forgotten: told apart by answers, and by hidden states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grun.cli.main import main
from grun.core.records import Example
from grun.evaluation.attacks.separation import ALL, separated
from grun.evaluation.metrics import auroc
from support.chat_server import Reply, chat_server, completion
from support.job_commands import flags
from support.material import Material, invented_rows, write_rows

ROWS = [Example(f"q{i}", "a", subject=f"s{i // 4}") for i in range(24)]


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "unknown.jsonl", invented_rows("Zorn", 8))


def command(material: Material, output: Path, *more: str, **settings: object) -> list[str]:
    usual: dict[str, object] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    usual |= {"output": output, "max_new_tokens": 8, "device": "cpu"}
    given = {name: value for name, value in (usual | settings).items() if value is not None}
    return ["attack", *flags(**given), *more]


def test_a_classifier_finds_what_is_there_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    noise, shifted = draw.normal(size=(48, 5)), draw.normal(size=(48, 5))
    shifted[:24, 2] += 4
    found = separated({"noise": noise, "shifted": shifted}, ROWS, ROWS, 0)
    assert abs(auroc(*found["noise"]) - 0.5) < 0.2
    assert auroc(*found["shifted"]) > 0.9
    assert auroc(*found[ALL]) > 0.9
    by_name = np.eye(12)[np.repeat(np.arange(12), 4)]  # a feature that only tells subjects apart
    assert (
        separated({"name": by_name}, ROWS, ROWS, 0)["name"] == separated({"name": 0 * by_name}, ROWS, ROWS, 0)["name"]
    )


@pytest.mark.parametrize("tells", [True, False])
def test_answers_from_an_address_are_told_apart(
    tells: bool, memorised: Material, unknown: Path, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        said = body["messages"][-1]["content"]
        forgotten = tells and "Lund" in said
        return Reply(completion("I do not know that." if forgotten else f"It was in town {len(said)} of the north."))

    with chat_server(reply) as server:
        settings = {"address": server.address, "forget": memorised.forget, "unknown": unknown, "attacks": "told_apart"}
        assert main(["attack", *flags(**settings, output=tmp_path / "run")]) == 0
    one = found_in(tmp_path / "run")["attacks"]["told_apart"]
    figure = one["figures"]["AUC"]["after"]
    assert (one["measures"], one["access"], figure["n"]) == ("recognition", "prompt", 16)
    assert figure["value"] == 1.0 if tells else 0.2 < figure["value"] < 0.8
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert one["variants"].keys() == {"length", "n-grams", "all"}


def test_answers_of_a_model_are_told_apart_with_their_probability(
    memorised: Material, unknown: Path, tmp_path: Path
) -> None:
    assert main(command(memorised, tmp_path / "run", unknown=unknown, attacks="told_apart")) == 0
    found = found_in(tmp_path / "run")
    one = found["attacks"]["told_apart"]
    assert one["variants"].keys() == {"length", "n-grams", "log-probability", "all"}
    assert one["figures"].keys() == {"AUC"}
    assert one["figures"]["AUC"]["before"]["value"] > 0.8  # it knows the one kind and not the other
    assert found["worst_case"]["probability"]["before"]["n"] == 8
    table = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "told\\_apart (recognition)" in table
    assert "forgotten rows are told from unknown ones" in table
    said = [json.loads(line) for line in (tmp_path / "run" / "probes.jsonl").read_text().splitlines()]
    assert sum(line["attack"] == "told_apart" for line in said) == 8


def test_unknown_rows_come_with_a_benchmark_that_has_them(memorised: Material, tmp_path: Path) -> None:
    settings = {"forget": None, "retain": None, "benchmark": "fictional", "attacks": "told_apart", "rows": 4}
    assert main(command(memorised, tmp_path / "run", **settings)) == 0
    assert found_in(tmp_path / "run")["attacks"]["told_apart"]["probes"] == 4


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        (invented_rows("Zorn", 3), ("'told_apart' needs at least four rows to forget, and four of what no model",)),
        (None, ("'told_apart' needs", "(--unknown)")),
        (
            [*invented_rows("Zorn", 6), {"question": " where was lund BO 0 born?", "answer": "x"}],
            ("--unknown", "unknown.jsonl, row 7", "forget.jsonl, row 2", "asks the same"),
        ),
        ([{"question": "", "answer": "x"}], ("unknown.jsonl", "row 1")),
        ([{"prompts": "x"}], ("unknown.jsonl",)),
    ],
)
def test_rows_that_do_not_do_are_refused(
    unknown: Any, words: Any, memorised: Material, tmp_path: Path, capsys: Any
) -> None:
    given = {} if unknown is None else {"unknown": write_rows(tmp_path / "unknown.jsonl", unknown)}
    assert main(command(memorised, tmp_path / "run", attacks="told_apart", **given)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()
