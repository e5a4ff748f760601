"""Unlearning with little data: ordinary prompts that come with the package are kept, and neighbours leave gates shut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import grun
from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.data.shipped_prompts import ordinary_rows, shipped_prompts
from grun.jobs import unlearn as job
from grun.jobs.inputs import unlearning
from grun.jobs.inputs.unlearning import load_unlearning_rows
from grun.models.gates import all_gates
from grun.models.gates.all_gates import JobRows, fit_all_gates
from grun.models.gates.topics import background
from support.material import Material, invented_rows, write_rows

SMALL: dict[str, Any] = {"layers": "1,3", "steps": 2, "batch_size": 4, "device": "cpu", "topic_layer": "none"}


@pytest.fixture
def config(material: Material, tmp_path: Path) -> UnlearnConfig:
    files: dict[str, Any] = {"model": str(material.model), "forget": [str(material.forget)]}
    return UnlearnConfig(**files, output=str(tmp_path / "run"), **SMALL)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearning, "ORDINARY", 12)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Prompts of each part that the gates are fitted on."""
    seen: dict[str, list[str]] = {}

    def fit(model: Any, rows: Any, parts: Mapping[str, JobRows], **more: Any) -> Any:
        seen.update({kind: [row.prompt for row in part.examples] for kind, part in parts.items()})
        return fit_all_gates(model, rows, parts, **more)

    monkeypatch.setattr(job, "fit_all_gates", fit)
    return seen


def test_without_retain_rows_ordinary_ones_are_drawn_by_the_seed(config: UnlearnConfig) -> None:
    one, same, other = (load_unlearning_rows(replace(config, seed=seed)) for seed in (0, 0, 1))
    prompts = [[row.prompt for row in (*rows.retain, *rows.validation)] for rows in (one, same, other)]
    assert prompts[0] == prompts[1] != prompts[2]
    assert len(prompts[0]) == 300
    assert len(one.validation) == 60
    assert set(prompts[0]) <= {row.prompt for _, row in ordinary_rows()}
    assert all(row.answer == "" for row in one.retain)


def test_ordinary_rows_that_clash_with_what_is_to_be_forgotten_are_left_out(
    config: UnlearnConfig, tmp_path: Path
) -> None:
    rows = [{"question": f"How do mushrooms grow in month {i}?", "answer": "On mushroom farms."} for i in range(6)]
    about = replace(config, forget=[str(write_rows(tmp_path / "mushrooms.jsonl", rows))])
    words = [row.prompt.lower() for _, row in ordinary_rows()]
    assert any("mushroom" in prompt for prompt in words)
    found = load_unlearning_rows(about)
    assert len(found.retain) + len(found.validation) == 300
    assert not any("mushroom" in row.prompt.lower() for row in (*found.retain, *found.validation))


@pytest.mark.usefixtures("few")
def test_the_command_needs_no_retain_file_and_says_what_is_kept(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--model", str(material.model), "--forget", str(material.forget), "--output", str(tmp_path / "run")]
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["unlearn", *files, *flags]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "--retain was not given" in line]
    assert len(said) == 1
    assert "12 ordinary prompts" in said[0]
    facts = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert facts["rows"] == {"forget": 8, "retain": 10, "validation": 2}


@pytest.mark.usefixtures("few")
def test_rows_to_keep_are_optional_in_python_and_in_ledgers(material: Material, tmp_path: Path) -> None:
    rows = invented_rows("Lund", 8)
    result = grun.unlearn(str(material.model), rows, output=tmp_path / "run", **SMALL)
    assert result.metrics["rows"] == {"forget": 8, "retain": 10, "validation": 2}
    ledger = grun.Ledger(tmp_path / "ledger", str(material.model))
    request = ledger.add(str(material.forget), neighbours=[{"question": "Where was Bo Marl born?"}], **SMALL)
    assert request.metrics["in_force"]["normal"]["rows"] == 2
    assert request.metrics["rows"]["neighbours"] == 1
    assert ledger.verify({request.id: str(material.forget)})[request.id].ok


def test_neighbours_without_answers_go_to_the_fit_of_the_gates(
    config: UnlearnConfig, material: Material, tmp_path: Path, fitted: dict[str, list[str]]
) -> None:
    first = write_rows(tmp_path / "a.jsonl", [{"question": "Where was Lind Ada born?"}, {"question": "Who is Lind?"}])
    second = write_rows(tmp_path / "b.jsonl", invented_rows("Land", 2))
    result = job.unlearn(replace(config, retain=[str(material.retain)], neighbours=[str(first), str(second)]))
    assert fitted["neighbours"] == [
        "Where was Lind Ada born?",
        "Who is Lind?",
        *(row["question"] for row in invented_rows("Land", 2)),
    ]
    facts = json.loads((result.parent / "metrics.json").read_text())
    assert facts["rows"] == {"forget": 8, "retain": 19, "validation": 5, "neighbours": 4}
    assert facts["recognition"]["opened"]["neighbours"]["prompts"] == 2


def test_neighbours_are_part_of_the_data_of_a_run(config: UnlearnConfig, material: Material, tmp_path: Path) -> None:
    config = replace(config, retain=[str(material.retain)])
    file = write_rows(tmp_path / "near.jsonl", [{"question": "Who is Lind?"}, {"question": "Where is Lind?"}])
    job.unlearn(replace(config, neighbours=[str(file)]))
    write_rows(file, [{"question": "Who was Lind?"}, {"question": "Where is Lind?"}])
    with pytest.raises(grun.UserError, match="the content of its data differs"):
        job.unlearn(replace(config, neighbours=[str(file)]))


@pytest.mark.parametrize("changes", [{"fit_gate_first": False}, {"gate": "none"}, {"adapt": "lora", "layers": None}])
def test_neighbours_need_a_gate_that_is_fitted(
    config: UnlearnConfig, material: Material, changes: dict[str, Any], tmp_path: Path
) -> None:
    near = [str(write_rows(tmp_path / "near.jsonl", [{"question": "Who is Lind?"}]))]
    changes = changes | {"topic_layer": None} if changes.get("adapt") else changes
    with pytest.raises(grun.UserError, match="--neighbours need a gate"):
        job.unlearn(replace(config, retain=[str(material.retain)], neighbours=near, **changes))


def test_a_neighbour_that_is_also_to_be_forgotten_is_named(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": "Who is Lind?"}, {"question": "where was  Lund Ada 0 born?"}]
    near = write_rows(tmp_path / "near.jsonl", rows)
    files = ["--model", str(material.model), "--forget", str(material.forget), "--neighbours", str(near)]
    assert main(["unlearn", *files, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "near.jsonl, row 2" in said[0]
    assert "--neighbours" in said[0]
    assert not (tmp_path / "run").exists()
    with pytest.raises(grun.UserError, match="^neighbours, row 2|^neighbours neighbours, row 2"):
        grun.unlearn(str(material.model), str(material.forget), neighbours=rows, output=tmp_path / "run")


def test_shipped_prompts_that_are_rows_of_the_job_are_not_judged_as_unseen(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that a gate was fitted on would look better than it is."""
    short = [prompt for prompt in shipped_prompts() if len(prompt.text) < 100]
    shipped = (*short[:40], *short[-2:])
    for module in (all_gates, background):
        monkeypatch.setattr(module, "shipped_prompts", lambda: shipped)
    known = {prompt.text for prompt in shipped}
    rows = [row for _, row in ordinary_rows() if row.prompt in known][:12]
    monkeypatch.setattr(unlearning, "ordinary_beside", lambda *_: rows)
    result = job.unlearn(replace(config, topic_layer="1", withhold=0.5))
    opened = json.loads((result.parent / "metrics.json").read_text())["recognition"]["opened"]
    assert opened["topics"]["prompts"] == 2
    assert opened["normal"]["prompts"] == 6 + (40 - 12) // 2
