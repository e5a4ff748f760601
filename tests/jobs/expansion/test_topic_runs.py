"""Runs that start from the name of a topic: files of rows, `--topic`, requests, and wrong input."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import grun
from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.jobs import unlearn as job
from grun.jobs.inputs import unlearning
from grun.jobs.inputs.expansion import expand
from grun.jobs.inputs.expansion.frames import filled
from grun.jobs.inputs.topic_files import FOLDER, read_topic
from support.launching import TORCHRUN, launch
from support.material import Material, write_rows

SMALL: dict[str, Any] = {"layers": "1,3", "steps": 2, "batch_size": 8, "device": "cpu", "topic_layer": "none"}
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
HERE = ["--device", "cpu", "--force-topic"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three frames, and few ordinary rows to keep."""
    monkeypatch.setattr(unlearning, "ORDINARY", 12)
    monkeypatch.setattr(expand, "filled", lambda name: filled(name)[:3])
    monkeypatch.setattr(expand, "MOST_EACH", 3)


def lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {file.name: lines(file) for file in sorted(folder.glob("*.jsonl"))}


def test_rows_from_frames_alone_where_the_context_is_short(
    material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = grun.expand("Lund", str(material.model), output=tmp_path / "rows", force_topic=True, device="cpu")
    assert "context is too short" in caplog.text
    assert [file.name for file in result.forget] == ["forget.jsonl"]
    assert result.neighbours == []
    rows = lines(result.forget[0])
    assert result.metrics["rows"]["questions"] == {"frame": sum(row["kind"] == "question" for row in rows), "model": 0}
    assert 70 < len(rows) <= 84
    assert {row["from"] for row in rows} == {"frame"}
    assert all(row["answer"] for row in rows)
    assert "questions" in str(result)


def test_expanding_again_writes_the_same_and_keeps_corrections(roomy: Path, tmp_path: Path) -> None:
    def run(name: str, *more: str) -> int:
        where = ["--model", str(roomy), "--output", str(tmp_path / name)]
        return main(["expand", "--topic", "Lund", *where, *HERE, *more])

    assert run("a") == run("b") == 0
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    corrected = tmp_path / "a" / "forget.jsonl"
    write_rows(corrected, lines(corrected)[:5])
    assert run("a") == 0
    assert len(lines(corrected)) == 5
    assert run("a", "--seed", "1") == 2
    assert len(lines(corrected)) == 5
    assert run("a", "--seed", "1", "--overwrite") == 2, "corrections are never deleted"
    assert len(lines(corrected)) == 5
    corrected.rename(tmp_path / "mine.jsonl")
    assert run("a", "--seed", "1", "--overwrite") == 0
    assert len(lines(corrected)) > 5
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    assert run("other") == run("other", "--overwrite") == 2


def test_rows_that_were_written_can_be_unlearned_as_files(
    roomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: None
) -> None:
    monkeypatch.setattr(expand, "questions", lambda *_: ["Where is Lund?"])
    monkeypatch.setattr(expand, "paraphrases", lambda *_: ["In which place is Lund?"])
    monkeypatch.setattr(expand, "described", lambda *_: ["Who or what is a town in Sweden?"])
    monkeypatch.setattr(expand, "neighbour_names", lambda *_: ["Malmö", "Kiel"])
    rows = grun.expand("Lund", str(roomy), output=tmp_path / "rows", force_topic=True, device="cpu")
    assert [file.name for file in (*rows.forget, *rows.neighbours)] == [
        "forget.jsonl",
        "described.jsonl",
        "neighbours.jsonl",
    ]
    assert lines(rows.forget[1])[0]["from"] == "model"
    assert Counter(row["subject"] for row in lines(rows.neighbours[0])) == {"Malmö": 3, "Kiel": 3}
    files: dict[str, Any] = {"forget": rows.forget, "neighbours": rows.neighbours, "output": tmp_path / "run"}
    by_hand = grun.unlearn(str(roomy), **files, **SMALL)
    settings: dict[str, Any] = {"topic": "Lund", "force_topic": True, "output": tmp_path / "topic"}
    at_once = grun.unlearn(str(roomy), **settings, **SMALL)
    assert at_once.metrics["rows"] == by_hand.metrics["rows"]
    assert at_once.record["data"] == by_hand.record["data"]
    assert (at_once.adapter / "adapter_model.safetensors").read_bytes() == (
        by_hand.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert rows_of(at_once.path / FOLDER) == rows_of(rows.path)


@pytest.fixture
def config(material: Material, tmp_path: Path) -> UnlearnConfig:
    files: dict[str, Any] = {"model": str(material.model), "output": str(tmp_path / "run")}
    return UnlearnConfig(topic="Lund", force_topic=True, **files, **SMALL)


@pytest.mark.usefixtures("few")
def test_a_run_keeps_its_rows_and_goes_on_with_them(config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job.unlearn(config).parent
    kept = read_topic(run)
    assert kept is not None
    assert len(kept.forget) == json.loads((run / "metrics.json").read_text())["rows"]["forget"] == 6
    shutil.rmtree(run / "adapter")
    monkeypatch.setattr(expand, "_expanded", lambda _: pytest.fail("the rows are there"))
    job.unlearn(config)
    assert (run / "adapter").is_dir()
    job.unlearn(config)


@pytest.mark.usefixtures("few")
def test_an_edited_or_overwritten_topic_is_another_run(config: UnlearnConfig) -> None:
    run = job.unlearn(config).parent
    write_rows(run / FOLDER / "forget.jsonl", lines(run / FOLDER / "forget.jsonl")[:4])
    with pytest.raises(grun.UserError, match="the content of its data differs"):
        job.unlearn(config)
    with pytest.raises(grun.UserError, match=r"forget.jsonl', which was changed since grun wrote it"):
        job.unlearn(replace(config, overwrite=True))
    (run / FOLDER / "forget.jsonl").unlink()
    job.unlearn(replace(config, overwrite=True))
    assert len(lines(run / FOLDER / "forget.jsonl")) == 6
    with pytest.raises(grun.UserError, match="--topic was Lund, now Kiel"):
        job.unlearn(replace(config, topic="Kiel"))
    (run / FOLDER / "forget.jsonl").write_text('{"answer": "Yes."}\n')
    with pytest.raises(grun.UserError, match=r"forget.jsonl, row 1: 'question' is empty"):
        job.unlearn(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topic", ""], ("--topic is empty", "give a value")),
        (["--topic", "  "], ("--topic is '  ', which is blank",)),
        (["--topic", "?!"], ("--topic is '?!'",)),
        (["--topic", "x" * 101], ("--topic has 101 characters", "100")),
        (["--topic", "Lund", "--forget", "rows.jsonl"], ("--topic and --forget",)),
        (["--topic", "Lund", "--benchmark", "fictional"], ("--topic and --forget/--benchmark",)),
        (["--topic", "Lund", "--retain", "absent.jsonl"], ("absent.jsonl",)),
        (["--topic", "Lund", "--layers", "9"], ("9", "4")),
        (["--topic", "Lund", "--writer", "absent/writer"], ("absent/writer",)),
    ],
    ids=str,
)
@pytest.mark.usefixtures("few")
def test_wrong_topics_are_refused_with_one_line(
    roomy: Path, tmp_path: Path, arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlearn", "--model", str(roomy), "--output", str(tmp_path / "run"), *HERE, *arguments]) == 2
    line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("grun: ")][-1]
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_something_else_is_refused_before_anything_is_written_about_a_topic(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expand, "_expanded", lambda _: pytest.fail("too late"))
    Path(config.output).mkdir()
    (Path(config.output) / "thesis.tex").write_text("years of work")
    with pytest.raises(grun.UserError, match="is not empty"):
        job.unlearn(config)


@pytest.mark.parametrize(("rows", "code"), [(1, 2), (3, 2)])
def test_too_few_rows_for_a_gate_for_topics_are_refused(
    material: Material, tmp_path: Path, rows: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    forget = write_rows(tmp_path / "few.jsonl", lines(material.forget)[:rows])
    files = ["--model", str(material.model), "--forget", str(forget), "--retain", str(material.retain)]
    assert main(["unlearn", *files, "--output", str(tmp_path / "run"), "--layers", "1,3", "--steps", "2"]) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"--forget has {rows} row" in said[0]
    assert "--topic-layer none" in said[0]
    assert main(["unlearn", *files, "--output", str(tmp_path / "run"), *FLAGS]) == 0


@pytest.mark.usefixtures("few")
def test_a_request_takes_a_topic(material: Material, tmp_path: Path) -> None:
    ledger = grun.Ledger(tmp_path / "ledger", str(material.model))
    request = ledger.add(topic="Lund", force_topic=True, keep_data=True, **SMALL)
    assert request.data["rows"] == 6
    assert request.settings["topic"] == "Lund"
    assert ledger.verify()[request.id].ok
    with pytest.raises(grun.UserError, match="The rows are those of request 'r0001'"):
        ledger.add(topic="Lund", force_topic=True, **SMALL)
    with pytest.raises(grun.UserError, match="topic is ' ', which is blank"):
        ledger.add(topic=" ", **SMALL)


def test_real_processes_write_and_unlearn_a_topic(material: Material, tmp_path: Path) -> None:
    """One process, and two that agree on the rows."""
    model = ["--model", str(material.model), *HERE]
    launch(["-m", "grun"], ["expand", "--topic", "Lund", *model, "--output", str(tmp_path / "rows")])
    retain = ["--retain", str(material.retain), *FLAGS]
    launch(
        [*TORCHRUN, "-m", "grun"], ["unlearn", "--topic", "Lund", *model, *retain, "--output", str(tmp_path / "run")]
    )
    assert rows_of(tmp_path / "run" / FOLDER) == rows_of(tmp_path / "rows")
    assert (tmp_path / "run" / "adapter").is_dir()
