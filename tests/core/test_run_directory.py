"""Run directories: nothing is changed by looking, nothing of somebody else's is deleted, a kill loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.atomic_files import atomic_directory
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import RunDirectory, holds_run, settings_difference

CONFIG = UnlearnConfig(model="m", objective="npo")


def started(path: Path, config: UnlearnConfig = CONFIG, **settings: Any) -> RunDirectory:
    run = RunDirectory.open(path, config, "unlearn", **settings)
    run.start()
    return run


def test_opening_changes_nothing(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "new", CONFIG, "unlearn")
    assert not (tmp_path / "new").exists()
    started(tmp_path / "old").write_text("note.txt", "kept")
    RunDirectory.open(tmp_path / "old", CONFIG, "evaluate", overwrite=True)
    assert (tmp_path / "old" / "note.txt").read_text() == "kept"


def test_a_started_run_holds_what_repeats_it(tmp_path: Path) -> None:
    run = started(tmp_path / "run", data="abc")
    assert json.loads((run.path / "settings.json").read_text())["objective"] == "npo"
    record = json.loads((run.path / "run.json").read_text())
    assert (record["command"], record["data"], record["complete"]) == ("unlearn", "abc", False)
    assert {"grun", "python", "torch", "transformers", "peft"} <= set(record["versions"])
    assert record["machine"]["cores"] > 0


def test_what_a_kill_at_the_start_left_is_no_obstacle(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.path / "run.json").rename(run.path / ".run.json.123.tmp")
    again = started(tmp_path / "run")
    assert json.loads((again.path / "run.json").read_text())["complete"] is False
    (again.path / "run.json").unlink()
    (again.path / "settings.json").write_text('{"theme": "dark"}')  # somebody else's
    with pytest.raises(UserError, match="holds no run of grun"):
        RunDirectory.open(tmp_path / "run", CONFIG, "unlearn")


def without(file: Path, *names: str) -> None:
    """Take settings out of a file, as a version that did not have them would have written it."""
    settings = json.loads(file.read_text())
    for name in names:
        del settings[name]
    file.write_text(json.dumps(settings))


def test_settings_that_an_older_version_left_are_no_obstacle(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    (run.path / "run.json").unlink()
    without(run.path / "settings.json", "keep_features", "shut_for")
    again = started(tmp_path / "run")
    assert json.loads((again.path / "settings.json").read_text())["shut_for"] == []
    (again.path / "run.json").unlink()
    for strange in ('{"seed": 0}', '{"seed": 0, "output": "x", "theme": "dark"}', "[]", "{}"):
        (again.path / "settings.json").write_text(strange)
        with pytest.raises(UserError, match="holds no run of grun"):
            RunDirectory.open(tmp_path / "run", CONFIG, "unlearn")


def test_a_run_of_an_older_version_is_resumed(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    without(run.path / "settings.json", "keep_features", "shut_for", "gate_reads")
    assert holds_run(run.path, CONFIG, "unlearn")
    assert RunDirectory.open(run.path, CONFIG, "unlearn").record == run.record
    for changes, said in (
        ({"shut_for": ["a"]}, r"--shut-for was \[\], now \['a'\]"),
        ({"keep_features": True}, "--keep-features was False, now True"),
        ({"gate_reads": "prompt"}, "--gate-reads was None, now prompt"),
    ):
        changed = replace(CONFIG, **changes)
        assert not holds_run(run.path, changed, "unlearn")
        with pytest.raises(UserError, match=said):
            RunDirectory.open(run.path, changed, "unlearn")


def test_settings_that_are_not_named_have_their_usual_values() -> None:
    was = {"model": "m", "seed": 3}
    usual = UnlearnConfig(gate="mlp")
    assert settings_difference(was, UnlearnConfig(model="m", seed=3)) == ""
    assert settings_difference(was, UnlearnConfig(model="m", seed=3, gate="mlp"), usual) == ""
    assert settings_difference(was, UnlearnConfig(model="m", seed=3), usual) == "--gate was mlp, now None"
    assert settings_difference(was, UnlearnConfig(model="m")) == "--seed was 3, now 0"


def test_another_machine_and_version_go_on_with_a_run(tmp_path: Path) -> None:
    first = started(tmp_path / "run")
    record = json.loads((first.path / "run.json").read_text())
    record["machine"] = {"processor": "abacus", "cores": 10}
    record["versions"] = {"grun": "0.0.1", "torch": "1.0"}
    record["commit"] = {"id": "0123abcd", "changed": False}
    first.write_json("run.json", record)
    again = started(tmp_path / "run")
    again.mark_complete(1.0)
    assert RunDirectory.open(tmp_path / "run", CONFIG, "unlearn").is_complete
    assert again.read_json("run.json") == record | {"complete": True, "seconds": 1.0}


def test_what_is_no_run_holds_none(tmp_path: Path) -> None:
    started(tmp_path / "run", data="abc")
    assert holds_run(tmp_path / "run", CONFIG, "unlearn", data="abc")
    assert not holds_run(tmp_path / "run", CONFIG, "evaluate", data="abc")
    assert not holds_run(tmp_path / "run", CONFIG, "unlearn", data="abd")
    assert not holds_run(tmp_path / "absent", CONFIG, "unlearn")
    assert not holds_run(tmp_path, CONFIG, "unlearn")


@pytest.mark.parametrize("changes", [{}, {"output": "elsewhere"}, {"device": "cpu"}, {"overwrite": False}])
def test_the_same_run_is_resumed(tmp_path: Path, changes: dict) -> None:
    first = started(tmp_path / "run")
    first.write_json("facts.json", {"a": 1})
    again = started(tmp_path / "run", UnlearnConfig(model="m", objective="npo", **changes))
    assert not again.is_complete
    assert again.read_json("facts.json") == {"a": 1}
    again.mark_complete(1.0)
    assert RunDirectory.open(tmp_path / "run", CONFIG, "unlearn").is_complete


@pytest.mark.parametrize(
    ("config", "command", "data", "said"),
    [
        (CONFIG, "evaluate", "", "grun unlearn"),
        (UnlearnConfig(model="m", objective="gd"), "unlearn", "", "--objective was npo, now gd"),
        (UnlearnConfig(model="m", objective="npo", seed=3), "unlearn", "", "--seed was 0, now 3"),
        (CONFIG, "unlearn", "other", "data differs"),
    ],
)
def test_another_run_is_not_touched(tmp_path: Path, config: UnlearnConfig, command: str, data: str, said: str) -> None:
    started(tmp_path / "run").write_text("note.txt", "kept")
    with pytest.raises(UserError, match=said):
        RunDirectory.open(tmp_path / "run", config, command, data=data)
    run = RunDirectory.open(tmp_path / "run", config, command, overwrite=True, data=data)
    assert (tmp_path / "run" / "note.txt").exists(), "only start() may delete"
    run.start()
    assert not (tmp_path / "run" / "note.txt").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_run_is_never_deleted(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds no run"):
        RunDirectory.open(tmp_path, CONFIG, "unlearn", overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_half_written_checkpoints_are_passed_over_and_deleted(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    assert run.last_checkpoint() is None
    for step, state in ((9, "{}"), (10, "{}"), (100, '{"global_st')):
        folder = run.path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state)
    (run.path / "checkpoints" / "checkpoint-200").mkdir()
    found = run.last_checkpoint()
    assert found is not None
    assert found.name == "checkpoint-10"
    assert sorted(p.name for p in found.parent.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    run.mark_complete(2.0)
    assert not found.exists()


def test_a_file_is_written_wholly_or_not_at_all(tmp_path: Path) -> None:
    run = started(tmp_path / "run")
    run.write_json("facts.json", {"a": 1})
    with pytest.raises(TypeError):
        run.write_json("facts.json", {"a": object()})
    assert run.read_json("facts.json") == {"a": 1}
    assert run.read_json("absent.json") is None
    assert {p.name for p in run.path.iterdir()} == {".grun-files", "settings.json", "facts.json", "run.json"}


def test_a_directory_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    for content in ("old", "new"):
        with atomic_directory(target) as directory:
            (directory / "file").write_text(content)
    with pytest.raises(RuntimeError), atomic_directory(target) as directory:  # noqa: PT012
        (directory / "file").write_text("half")
        raise RuntimeError
    assert (target / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_the_working_directory_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter").mkdir()
    monkeypatch.chdir(tmp_path / "adapter")
    with atomic_directory(Path()) as directory:
        (directory / "file").write_text("new")
    assert (tmp_path / "adapter" / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_fingerprints_tell_content_order_and_side_apart() -> None:
    a, b = Example("p", "a"), Example("q", "b")
    parts = [{"forget": [a, b]}, {"forget": [b, a]}, {"retain": [a, b]}, {"forget": [a], "retain": [b]}]
    assert len({fingerprint(part) for part in parts}) == 4
    assert fingerprint({"forget": [a, b]}) == fingerprint({"forget": (a, b)})
    changed: list[dict[str, Any]] = [
        {"alternative_answers": ("x",)},
        {"subject": "s"},
        {"turns": (("user", "u"),)},
        {"raw_text": True},
    ]
    assert len({fingerprint({"": [replace(a, **change)]}) for change in [{}, *changed]}) == 5
    assert fingerprint({"": [replace(a, source="b.jsonl, row 2")]}) == fingerprint({"": [a]})
