"""Files of an earlier version (see `write_earlier.py`) are loaded, resumed, listed, verified and compared as it would have.

Where a machine rounds as that one did, which a look at the tiny model tells, results are the same to the last bit. Another
processor, or another version of torch, rounds otherwise: there numbers agree to `CLOSE`, relative to the largest of a tensor.
So does what is learnt anew, on any machine: the earlier version also computed tokens that no loss looks at.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from golden.regenerate import EARLIER_GATES
from golden.write_earlier import COMMANDS, EARLIER, machine
from grun.cli.main import main
from grun.core.config.jobs import EvaluateConfig, UnlearnConfig
from grun.core.config.requests import CalibrateConfig
from grun.core.errors import UserError
from grun.core.provenance import PROVENANCE
from grun.requests.ledger import LedgerState

WRITTEN: dict[str, Any] = json.loads((EARLIER / "commands.json").read_text())
CLOSE = 1e-3
ADDED = {
    *PROVENANCE,
    "role",
    "diversity",
    "whole_sentences",
    "gate_thresholds",
}  # of records that the earlier version lacks
WEIGHTS, FORGET = "adapter_model.safetensors", "forget.jsonl"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder as the working directory: what the records name is relative to it."""
    folder = tmp_path / "earlier"
    shutil.copytree(EARLIER, folder)
    monkeypatch.chdir(folder)
    return folder


def command(name: str) -> list[str]:
    """The words of a command of the earlier version, with values that were its defaults and are no longer ours."""
    words: list[str] = WRITTEN["commands"][name].split()
    learns = words[0] == "unlearn" or words[:2] == ["request", "add"]
    return [*words, *EARLIER_GATES] if learns else words


def run(name: str, **changes: str) -> None:
    """Repeat a command of the earlier version, with the values of some flags changed."""
    words = command(name)
    for flag, value in changes.items():
        words[words.index(f"--{flag}") + 1] = value
    assert main(words) == 0


@cache
def rounds_the_same() -> bool:
    """Whether this machine computes the same bits as the one that wrote the files."""
    return bool(WRITTEN["machine"] == machine())


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_same_adapter(found: Path, expected: Path, learnt: bool = False) -> None:
    if rounds_the_same() and not learnt:
        assert (found / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
        return
    ours, theirs = load_file(found / WEIGHTS), load_file(expected / WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=CLOSE, atol=CLOSE * float(tensor.abs().max()))


def assert_same_values(found: Any, expected: Any, close: float = CLOSE, learnt: bool = False) -> None:
    """Whatever JSON holds, with numbers compared as the machine allows; records may have the keys in `ADDED` as well."""
    if isinstance(expected, dict):
        assert found.keys() - (ADDED - expected.keys()) == expected.keys()
        for key, value in expected.items():
            assert_same_values(found[key], value, close, learnt)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same_values(ours, theirs, close, learnt)
    elif isinstance(expected, float) and (learnt or not rounds_the_same()):
        assert found == pytest.approx(expected, rel=close, abs=close)
    else:
        assert found == expected


def test_the_commands_are_those_that_wrote_the_files() -> None:
    assert WRITTEN["commands"] == COMMANDS
    assert sum(len(content) for content in contents(EARLIER).values()) < 3_000_000


@pytest.mark.parametrize("name", ["unlearned", "calibrated", "evaluation", "evaluation_first"])
def test_a_complete_run_is_known_to_be_complete(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(here / name)
    run(name)
    assert f"{name} is complete already" in capsys.readouterr().err
    assert contents(here / name) == before


@pytest.mark.parametrize(
    ("name", "settings"),
    [("unlearned", UnlearnConfig()), ("calibrated", CalibrateConfig()), ("evaluation", EvaluateConfig())],
)
def test_a_setting_that_an_earlier_version_did_not_have_had_its_default(
    here: Path, name: str, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if all that are at their defaults had been added since."""
    kept = read(here / name / "settings.json")
    usual = json.loads(json.dumps(dataclasses.asdict(settings)))
    fewer = {setting: value for setting, value in kept.items() if value != usual[setting]}
    assert len(fewer) < len(kept) - 5
    (here / name / "settings.json").write_text(json.dumps(fewer))
    run(name)
    assert f"{name} is complete already" in capsys.readouterr().err
    words = command(name)
    assert main([*words, "--seed", "3"]) == 2
    assert "--seed was 0, now 3" in capsys.readouterr().err


def test_an_interrupted_run_resumes_to_what_the_uninterrupted_one_learnt(here: Path) -> None:
    assert (here / "interrupted" / "checkpoints").is_dir()
    assert not (here / "interrupted" / "adapter").exists()
    run("interrupted")
    assert_same_adapter(here / "interrupted" / "adapter", here / "unlearned" / "adapter", learnt=True)
    ours, theirs = (steps_of(here / name / "log.json") for name in ("interrupted", "unlearned"))
    assert_same_values(ours, theirs, learnt=True)
    one, two = (read(here / name / "metrics.json")["validation"] for name in ("interrupted", "unlearned"))
    assert_same_values(one, two, learnt=True)
    record = read(here / "interrupted" / "run.json")
    assert record["complete"]
    assert record["data"] == read(here / "unlearned" / "run.json")["data"]


def steps_of(log: Path) -> list[dict[str, Any]]:
    """What was logged of the steps; `loss` is a mean since the last entry or start, and the others say what it cost."""
    told = ("loss", "train_loss", "total_flos")
    return [
        {k: v for k, v in entry.items() if k not in told and "runtime" not in k and "per_second" not in k}
        for entry in read(log)
    ]


def test_the_same_job_learns_the_same_again(here: Path) -> None:
    run("unlearned", output="again")
    assert_same_adapter(here / "again" / "adapter", here / "unlearned" / "adapter", learnt=True)
    config = read(here / "again" / "adapter" / "adapter_config.json")
    assert config.pop("base_weights")  # later versions say which weights an adapter was made for
    assert config == read(here / "unlearned" / "adapter" / "adapter_config.json")


def test_other_settings_are_not_taken_for_those_of_an_earlier_run(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("interrupted")
    words[words.index("40")] = "41"
    assert main(words) == 2
    assert "--steps was 40, now 41" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on_from_what_was_measured(here: Path) -> None:
    kept = contents(here / "evaluation_interrupted" / "evidence")
    assert "before/forget.jsonl" in kept
    assert len(kept) < len(contents(here / "evaluation" / "evidence"))
    run("evaluation_interrupted")
    evidence = contents(here / "evaluation_interrupted" / "evidence")
    assert evidence.items() >= kept.items()
    assert evidence.keys() == contents(here / "evaluation" / "evidence").keys()
    for name in ("metrics.json", "samples.json"):
        assert_same_values(*(read(here / run / name) for run in ("evaluation_interrupted", "evaluation")))


def test_an_earlier_adapter_is_measured_as_it_was(here: Path) -> None:
    run("evaluation", output="again")
    assert_same_values(read(here / "again" / "metrics.json"), read(here / "evaluation" / "metrics.json"))


def test_earlier_evaluations_are_compared_as_they_were(here: Path) -> None:
    run("comparison", output="again")
    assert_same_values(
        read(here / "again" / "comparison.json"), read(here / "comparison" / "comparison.json"), close=1e-9
    )
    assert (here / "again" / "comparison.md").read_text() == (here / "comparison" / "comparison.md").read_text()


def test_an_earlier_evaluation_serves_as_the_log_of_a_retain_model(here: Path) -> None:
    words = WRITTEN["commands"]["evaluation"].replace("--output evaluation", "--output again").split()
    assert main([*words, "--retain-log", "evaluation", "--metrics", "forget_quality"]) == 0
    found = read(here / "again" / "metrics.json")["splits"]["forget"]["metrics"]["forget_quality"]
    assert found["before"]["value"] == pytest.approx(1.0), "the same model"
    assert found["after"]["value"] < 0.05


def test_a_calibration_promises_the_same(here: Path) -> None:
    run("calibrated", output="again")
    assert_same_adapter(here / "again" / "adapter", here / "calibrated" / "adapter")
    assert_same_values(read(here / "again" / "calibration.json"), read(here / "calibrated" / "calibration.json"))


def test_a_calibrated_adapter_leaves_normal_prompts_alone_and_no_others() -> None:
    tokenizer, base = AutoTokenizer.from_pretrained("model"), AutoModelForCausalLM.from_pretrained("model")
    asked = [json.loads(file.read_text().splitlines()[0])["question"] for file in map(Path, ("normal.jsonl", FORGET))]
    prompts = [tokenizer(f"Question: {question} \nAnswer:", return_tensors="pt") for question in asked]
    with torch.no_grad():
        before = [base(**prompt).logits for prompt in prompts]
        model = PeftModel.from_pretrained(base, "calibrated/adapter").eval()
        after = [model(**prompt, prompt_lengths=prompt["attention_mask"].sum(1)).logits for prompt in prompts]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1][:, -1], before[1][:, -1])


def test_a_ledger_is_listed_and_shown(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["request", "list", "--ledger", "ledger"]) == 0
    shown = capsys.readouterr().out
    for words in ("r0001", "active", "first", "r0002", "suspended", "second", "at most 0.2 of normal prompts"):
        assert words in shown
    record = read(here / "ledger" / "ledger.json")
    for request in record["requests"]:
        assert main(["request", "show", request["id"], "--ledger", "ledger"]) == 0
        assert json.loads(capsys.readouterr().out) == request


def test_a_ledger_is_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["request", "verify", "--ledger", "ledger", "--model", "model", "--device", "cpu"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    was = LedgerState.read("ledger").requests["r0001"].metrics["in_force"]["new"]["probability"]
    assert first.startswith("r0001: ok (forget probability ")
    assert f"{was:.3f} when it was added" in first
    assert second == "r0002: ok (suspended)"


def test_a_ledger_is_exported_as_it_was(here: Path) -> None:
    """Nothing is computed but copied, so this is the same to the bit on every machine."""
    for name, change in (("exported_first", None), ("exported_both", "resume")):
        if change is not None:
            assert main(["request", change, "r0002", "--ledger", "ledger"]) == 0
        assert main(["request", "export", f"again_{name}", "--ledger", "ledger"]) == 0
        assert contents(here / f"again_{name}") == contents(here / name)


def test_a_ledger_grows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The next request is for other rows than those that are there, and its gate stays shut for what was kept of these."""
    words = command("second request")
    assert main(words) == 2
    assert "The rows are those of request 'r0002', which is suspended already" in capsys.readouterr().err
    words[words.index("forget_2.jsonl")] = "normal.jsonl"
    assert main([*words, "--objective", "npo"]) == 0
    third = LedgerState.read("ledger").get("r0003")
    assert third.settings["shut_for"] == ["ledger/requests/r0001/gate_features.safetensors"]
    assert third.metrics["in_force"]["r0001"]["open"]["r0003"] == 0.0


def test_a_changed_file_of_a_ledger_is_still_found_out(here: Path) -> None:
    (here / "ledger" / "requests" / "r0001" / "adapter" / WEIGHTS).write_bytes(b"changed")
    with pytest.raises(UserError, match=r"request 'r0001' is damaged.*checksum"):
        LedgerState.read("ledger").adapter("r0001")
