"""The experiment on WMDP, on a tiny model and a tiny folder: runs, what they are asked, and the table."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.material import Material
from support.topic_kit import few_shipped_prompts

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
QUESTIONS = 12  # in each file


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The module with smaller numbers and results beside the test; few prompts stand for those that ship."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    module = importlib.import_module("wmdp")
    few_shipped_prompts(monkeypatch)
    for name, value in (("ROWS", 8), ("QUESTIONS", 4)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("recognition.HELD_OUT", 2)
    monkeypatch.setattr("common.RESULTS", tmp_path / "results")
    yield module
    for name, loaded in list(sys.modules.items()):
        if str(getattr(loaded, "__file__", None)).startswith(str(EXPERIMENTS)):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder under the names of the paper's files."""
    data = tmp_path / "data"
    data.mkdir()
    for side, name in (
        ("bio", "merge_forget_data_sum_gpt"),
        ("cyber", "cyber_forget_data_sum_gpt"),
        ("kept", "merge_retain_data_sum_gpt"),
    ):
        rows = [json.dumps({"text": f"the {side} text number {i} is about some small {side} thing"}) for i in range(12)]
        (data / f"{name}.jsonl").write_text("\n".join(rows))
    for corpus in ("bio", "cyber"):
        rows = [
            json.dumps({"question": f"Which {corpus} {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4})
            for i in range(QUESTIONS)
        ]
        (data / f"{corpus}_test.jsonl").write_text("\n".join(rows))
    return data


def test_questions_that_nothing_was_chosen_on_are_asked(experiment: Any, folder: Path, tmp_path: Path) -> None:
    asked = experiment.Study("any", folder, tmp_path).asked()
    assert {split: len(rows) for split, rows in asked.items()} == {"bio": 4, "cyber": 4, "general": 120}
    odd = {f"Which bio {i}?" for i in range(1, QUESTIONS, 2)}
    assert {row.prompt.split("\n")[2] for row in asked["bio"]} < odd


def test_everything_runs_and_is_run_once(
    experiment: Any, material: Material, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    general = importlib.import_module("grun.data.benchmarks.wmdp")
    rows = [
        json.dumps({"question": f"Why {i}?", "choices": ["e", "f"], "answer": 1, "subject": "art"}) for i in range(3)
    ]
    (tmp_path / "general.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(general, "GENERAL_FILE", tmp_path / "general.jsonl")
    monkeypatch.setattr(
        sys,
        "argv",
        ["wmdp.py", "--model", str(material.model), "--data-dir", str(folder), "--work", str(tmp_path / "work")],
    )
    experiment.main()
    text = (tmp_path / "results" / "wmdp.md").read_text()
    found = json.loads((tmp_path / "results" / "wmdp.json").read_text())
    assert [(run["corpus"], run["setting"]) for run in found["runs"]] == [
        (corpus, setting) for setting in ("our gates", "paper") for corpus in ("bio", "cyber")
    ]
    assert set(found["before"]) == {"bio", "cyber", "general"}
    for run in found["runs"]:
        assert run["steps"] == 2, "four passes over 8 rows in batches of 16"
        for split, own in run["scores"].items():
            assert set(own) == {"accuracy", "gate_open", "probability", "gate_mean"}
            assert all(one["n"] == {"bio": 4, "cyber": 4, "general": 3}[split] for one in own.values())
            low, high = own["accuracy"]["interval"]
            assert 0 <= low <= own["accuracy"]["value"] <= high <= 1
        assert run["setting"] != "paper" or run["scores"]["general"]["gate_open"]["value"] == 1.0
        output = tmp_path / "work" / f"{run['corpus']}-{run['setting'].replace(' ', '-')}"
        settings = json.loads((output / "settings.json").read_text())
        assert (settings["objective"], settings["preset"]) == ("rmu", {"paper": "paper"}.get(run["setting"], "default"))
        forgotten = Path(settings["forget"][0]).read_text().splitlines()
        assert len(set(forgotten)) == 8
        assert all(f"the {run['corpus']} text" in line for line in forgotten)
    assert text.count("\n| bio | our gates | ") == 3
    assert "| bio | our gates | bio | 4 | forgotten |" in text
    assert "| bio | our gates | cyber | 4 | kept |" in text
    trained = [file.stat().st_mtime_ns for file in sorted((tmp_path / "work").rglob("adapter_model.safetensors"))]
    monkeypatch.setattr(experiment, "evaluate_model", lambda *_, **__: pytest.fail("a model is measured once more"))
    experiment.main()
    assert len(trained) == 4
    assert trained == [
        file.stat().st_mtime_ns for file in sorted((tmp_path / "work").rglob("adapter_model.safetensors"))
    ], "no run is repeated"
    assert (tmp_path / "results" / "wmdp.md").read_text() == text


def test_the_table_says_where_accuracy_says_nothing(experiment: Any) -> None:
    def split(value: float, low: float, high: float) -> dict[str, Any]:
        return {name: {"value": value, "interval": [low, high], "n": 40} for name in ("accuracy", "probability")}

    before = {"bio": split(0.3, 0.2, 0.4), "cyber": split(0.5, 0.4, 0.6)}
    scores = {"bio": {**split(0.25, 0.1, 0.4), "gate_open": {"value": 1.0, "interval": [0.9, 1.0], "n": 40}}}
    run = {"corpus": "bio", "setting": "our gates", "seconds": 61.4, "scores": scores}
    text = experiment.table(before, [run])
    assert "| nothing | – | bio | 40 |  | 0.300 (0.200 to 0.400) | 0.300 (0.200 to 0.400) | – | – |" in text
    assert "| bio | our gates | bio | 40 | forgotten | 0.250 (0.100 to 0.400) |" in text
    assert "| 1.000 (0.900 to 1.000) | – |" in text
    assert "accuracy on bio cannot be told from guessing" in text
    assert "The gates of the paper" not in text
    assert "bio (our gates) 61." in text
    assert "told from guessing" not in experiment.table({"cyber": before["cyber"]}, [run])


def test_a_missing_folder_is_refused_in_a_line(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GRUN_WMDP_DIR", raising=False)
    monkeypatch.setattr(sys, "argv", ["wmdp.py"])
    with pytest.raises(SystemExit) as stopped:
        experiment.main()
    assert stopped.value.code == 2
    assert "--data-dir is missing: expected a folder with WMDP's files" in capsys.readouterr().err
