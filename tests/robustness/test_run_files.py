"""Files that runs, evaluations and ledgers wrote, damaged by rule: one line that names the file, or the right result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from golden.regenerate import EARLIER_GATES
from golden.write_earlier import EARLIER
from grun.cli.main import main
from grun.core.config.jobs import EvaluateConfig, UnlearnConfig
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.run_directory import RunDirectory
from grun.core.storage.stored_records import write_checksums
from grun.data.examples import read_examples
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.report.sweep_table import sweep_table
from grun.jobs.inputs.sweep_grid import Cell
from grun.jobs.inputs.topic_files import FORGET, TopicRows, keep_topic, read_topic
from grun.models.gates.features import load_features
from support.damaged_files import as_bytes, damaged_bytes, damaged_values

WRITTEN: dict[str, Any] = json.loads((EARLIER / "commands.json").read_text())
Run = Callable[[list[str]], tuple[int, str]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of an earlier version as the working directory, with the working directory of that time."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its exit code and what it said on standard error."""

    def execute(words: list[str]) -> tuple[int, str]:
        code = main(words)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        if code:
            assert code in (1, 2)
            assert shown.err.splitlines()[-1].startswith("grun: ")
            assert shown.err.splitlines()[-1].isprintable()
        return code, shown.err

    return execute


def command(name: str) -> list[str]:
    words: list[str] = WRITTEN["commands"][name].split()
    return [*words, *EARLIER_GATES] if words[0] == "unlearn" else words


def damages(file: Path, depth: int = 2, every: int = 1) -> Iterator[str]:
    """Writes damaged forms of a file, one after the other, and its own content at the end; gives what was done."""
    content = file.read_bytes()
    found: list[tuple[str, bytes]] = list(damaged_bytes(content).items())
    if file.suffix == ".json":
        found += [(name, as_bytes(value)) for name, value in damaged_values(json.loads(content), depth)]
    for name, damaged in found[::every]:
        file.write_bytes(damaged)
        yield name
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["unlearned", "calibrated", "evaluation"])
@pytest.mark.parametrize("record", ["run.json", "settings.json"])
def test_records_of_complete_runs(name: str, record: str, run: Run, here: Path) -> None:
    for rule in damages(here / name / record, depth=1, every=2):
        code, said = run(command(name))
        assert (code == 0 and "is complete already" in said) or (code == 2 and name in said), f"{rule}: {said}"
        if "is damaged" in said:
            assert record in said


def test_records_cut_off_are_never_another_run(run: Run, here: Path) -> None:
    for record in ("run.json", "settings.json"):
        content = (here / "unlearned" / record).read_bytes()
        for damaged in (content[: len(content) // 2], b"[]", b""):
            (here / "unlearned" / record).write_bytes(damaged)
            code, said = run(command("unlearned"))
            assert code == 2
            assert f"unlearned/{record}' is damaged" in said
        (here / "unlearned" / record).write_bytes(content)
    (here / "unlearned" / "settings.json").unlink()
    assert "settings.json' is missing" in run(command("unlearned"))[1]


@pytest.fixture
def interrupted(here: Path) -> RunDirectory:
    """A run with two checkpoints that have checksums."""
    for step in (15, 16):
        write_checksums(here / "interrupted" / "checkpoints" / f"checkpoint-{step}")
    return RunDirectory(here / "interrupted", {}, {})


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    interrupted: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    newest = interrupted.path / "checkpoints" / "checkpoint-16"
    kept = newest.parent.parent / "kept"
    shutil.copytree(newest, kept)
    count = 0
    for file in sorted(kept.iterdir()):
        for rule in list(damaged_bytes(b"x" * 40))[:3] + ["flip", "gone"]:
            shutil.copytree(kept, newest, dirs_exist_ok=True)
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            damaged = {"flip": bytes(content), "gone": None}.get(rule, bytes(content[: len(content) // 2]))
            (newest / file.name).unlink()
            if damaged is not None:
                (newest / file.name).write_bytes(damaged)
            caplog.clear()
            found = RunDirectory(interrupted.path, {}, {}).last_checkpoint()
            if file.name == "checksums.json" and rule == "gone":
                assert found == newest
                continue
            assert found is not None, (file.name, rule)
            assert found.name == "checkpoint-15", (file.name, rule)
            assert "checkpoint-16 is damaged" in caplog.text or rule == "gone"
            count += 1
    assert count >= 35


def test_a_run_goes_on_from_the_checkpoint_before(interrupted: RunDirectory, run: Run, here: Path) -> None:
    """The result is that of an undamaged run; with both checkpoints damaged, the run begins anew."""
    words, results = command("interrupted"), []
    checkpoints = here / "interrupted" / "checkpoints"
    shutil.copytree(here / "interrupted", here / "kept")
    for damaged in ([], [("16", "optimizer.pt")], [("16", "adapter_model.safetensors"), ("15", "trainer_state.json")]):
        for step, name in damaged:
            file = checkpoints / f"checkpoint-{step}" / name
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 4
            file.write_bytes(content)
        code, said = run(words)
        assert code == 0
        for step, name in damaged:
            assert f"checkpoint-{step} is damaged ({name} was changed)" in said
        results.append(load_file(here / "interrupted" / "adapter" / "adapter_model.safetensors"))
        shutil.rmtree(here / "interrupted")
        shutil.copytree(here / "kept", here / "interrupted")
    for name, tensor in results[0].items():  # the earlier version, which made the checkpoints, rounded otherwise
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def test_gates_of_an_interrupted_run(run: Run, here: Path) -> None:
    file = here / "interrupted" / "gates.json"
    own = json.loads(file.read_text())
    for value in (b"", b"{", b"[]", as_bytes(own | {"gates": 3}), as_bytes(own | {"open_rows": {"retain": [10**9]}})):
        file.write_bytes(value)
        code, said = run(command("interrupted"))
        assert code == 2
        assert "gates.json' is damaged" in said
        assert "checkpoints" in said
    file.write_bytes(as_bytes(own))
    for step in (15, 16):
        write_checksums(here / "interrupted" / "checkpoints" / f"checkpoint-{step}")
    file.write_bytes(as_bytes(own | {"gates": []}))
    code, said = run(command("interrupted"))
    assert code == 0
    assert "gates.json was changed" in said


def test_compared_evaluations(run: Run, here: Path) -> None:
    words = ["compare", "evaluation", "evaluation_first", "--metrics", "probability", "--splits", "retain"]
    assert run(words)[0] == 0
    for name in ("metrics.json", "samples.json"):
        for rule in damages(here / "evaluation" / name, depth=4, every=97 if name == "metrics.json" else 47):
            code, said = run(words)
            assert code == 0 or (code == 2 and name in said) or "evaluation" in said, f"{name}, {rule}: {said}"
            if rule.startswith(("cut at", "zeros", "pointer")):
                assert code == 2


def test_evaluations_without_summaries_are_compared(run: Run, here: Path) -> None:
    for name in ("metrics.json", "samples.json"):
        for folder in ("evaluation", "evaluation_first"):
            file = here / folder / name
            file.write_text(json.dumps(json.loads(file.read_text()) | {"summaries": {}}))
    assert run(["compare", "evaluation", "evaluation_first"])[0] == 0
    for folder in ("evaluation", "evaluation_first"):
        shutil.copytree(EARLIER / folder, here / folder, dirs_exist_ok=True)


def test_every_metric_of_a_damaged_evaluation(run: Run, here: Path) -> None:
    for name in ("metrics.json", "samples.json"):
        content = json.loads((here / "evaluation" / name).read_text())
        for rule, value in list(damaged_values(content, 5))[::997]:
            (here / "evaluation" / name).write_bytes(as_bytes(value))
            code, said = run(["compare", "evaluation_first", "evaluation", "--splits", "forget"])
            assert code == 0 or name in said or "evaluation" in said, f"{name}, {rule}: {said}"
        shutil.copy(EARLIER / "evaluation" / name, here / "evaluation" / name)


def complaint(read: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """What a reader complains of (nothing where it does not), and what it has read."""
    try:
        return "", read(*arguments)
    except UserError as error:
        return str(error), None


def examples() -> list[Example]:
    return read_examples("forget.jsonl")


def test_evidence_of_another_evaluation_by_rule(here: Path) -> None:
    folder = here / "evaluation" / "evidence" / "before"
    rows, file = examples(), folder / "forget.jsonl"
    content = file.read_bytes()
    whole = EvidenceStore(folder, is_foreign=True).read("forget", rows)
    first, rest = content.split(b"\n", 1)
    changed = [as_bytes(value) + b"\n" + rest for _, value in damaged_values(json.loads(first), 2)]
    refused = 0
    for damaged in [*damaged_bytes(content).values(), *changed]:
        file.write_bytes(damaged)
        said, _ = complaint(EvidenceStore(folder, is_foreign=True).read, "forget", rows)
        assert "forget.jsonl" in said or not said
        refused += bool(said)
        if not said:
            assert len(EvidenceStore(folder).read("forget", rows) or ()) == len(whole or ())
    assert refused >= 90


def test_evidence_through_the_command(run: Run, here: Path) -> None:
    words = command("evaluation_interrupted")
    for split in ("forget", "retain"):
        words[-1] = "new"
        file = here / "evaluation" / "evidence" / "before" / f"{split}.jsonl"
        file.write_bytes(file.read_bytes()[:-20])
        code, said = run([*words, "--retain-log", "evaluation"])
        assert code == 2
        assert f"{split}.jsonl' is damaged" in said
        shutil.copy(EARLIER / file.relative_to(here), file)
    own = next((here / "evaluation_interrupted" / "evidence").rglob("*.jsonl"))
    own.write_bytes(own.read_bytes().replace(b'"token_logps": [', b'"token_logps": ["x", ', 1))
    words[-1] = "evaluation_interrupted"
    code, said = run(words)
    assert code == 0
    assert f"{own.name}' is damaged: row 1 has no usable 'token_logps'; the split is measured again" in said


def test_damaged_files_of_the_cache_count_as_absent(run: Run, here: Path, tmp_path: Path) -> None:
    words = command("evaluation")[:-1]
    assert run([*words, "first"])[0] == 0
    cache = tmp_path / "cache-of-the-test"
    files = sorted(file for file in cache.rglob("*") if file.is_file())
    assert {file.suffix for file in files} >= {".json", ".jsonl"}
    expected = json.loads((here / "first" / "metrics.json").read_text())["splits"]
    for i, rule in enumerate(("cut at 4/8", "JSON 3", "deep lists", "zeros")):
        for file in files:
            if file.exists():
                file.write_bytes(damaged_bytes(file.read_bytes() or b"x")[rule])
        code, said = run([*words, f"again {i}"])
        assert code == 0, said
        assert json.loads((here / f"again {i}" / "metrics.json").read_text())["splits"] == expected


def test_kept_features(run: Run, here: Path) -> None:
    file = here / "ledger" / "requests" / "r0001" / "gate_features.safetensors"
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        read = [tuple(one) for one in json.loads(opened.metadata()["read"])]
    assert len(load_features(file, read)) == len(read)
    refused = 0
    for seed in range(3):
        for rule, damaged in damaged_bytes(file.read_bytes(), seed).items():
            copy = here / "features.safetensors"
            copy.write_bytes(damaged)
            said, _ = complaint(load_features, copy, read)
            assert not said or "features.safetensors' holds no gate features" in said, rule
            refused += bool(said)
    assert refused >= 70
    words = [*command("unlearned"), "--output", "new", "--shut-for", "features.safetensors"]
    copy.write_bytes(file.read_bytes()[:-8])
    code, said = run(words)
    assert code == 2
    assert "features.safetensors" in said


def test_a_ledger(run: Run, here: Path) -> None:
    words = ["request", "list", "--ledger", "ledger"]
    assert run(words)[0] == 0
    for rule in damages(here / "ledger" / "ledger.json", depth=4, every=9):
        code, said = run(words)
        assert code == 0 or (code == 2 and "ledger.json" in said) or "has format" in said, f"{rule}: {said}"
        code, said = run(["request", "show", "r0001", "--ledger", "ledger"])
        assert code == 0 or (code == 2 and "ledger" in said), f"{rule}: {said}"


def test_kept_data_of_a_ledger(run: Run, here: Path) -> None:
    file = here / "ledger" / "requests" / "r0001" / "data.json"
    for _ in damages(file, every=9):
        code, said = run(["request", "verify", "--ledger", "ledger", "--model", "model", "--device", "cpu"])
        assert code == 1
        assert "r0001" in said or "requests in" in said


def test_topic_rows_in_the_directory_of_a_run(here: Path) -> None:
    row = {"question": "Where is it?", "answer": "There.", "subject": "it"}
    rows = TopicRows({FORGET: [row] * 3, "described.jsonl": [row], "neighbours.jsonl": [row]}, {"settings": {}})
    keep_topic(rows, here)
    assert read_topic(here, {}) is not None
    refused = 0
    for name in (FORGET, "described.jsonl", "expansion.json"):
        file = here / "topic" / name
        content = file.read_bytes()
        forms = [as_bytes(value) + b"\n" + content for _, value in damaged_values(row)] if name == FORGET else []
        for damaged in [*damaged_bytes(content).values(), *forms]:
            file.write_bytes(damaged)
            said, found = complaint(read_topic, here, {})
            assert name in said or not said
            refused += bool(said)
            assert found is None or all(one.prompt and one.answer for one in (*found.forget, *found.neighbours))
        file.write_bytes(content)
    assert refused >= 60


def test_results_of_a_sweep(here: Path) -> None:
    folder = here / "runs"
    shutil.copytree(here / "evaluation", folder / "evaluation")
    shutil.copytree(here / "unlearned", folder / "unlearn")
    cell = Cell({"seed": "1"}, "target-0", UnlearnConfig(), EvaluateConfig(), folder)
    sweep_table([cell.read()])
    for name in ("evaluation/metrics.json", "unlearn/metrics.json", "unlearn/run.json"):
        for rule in damages(folder / name, depth=2 if "eval" in name else 1, every=3):
            said, found = complaint(cell.read)
            assert name in said or not said, rule
            if found is not None:
                sweep_table([found])
