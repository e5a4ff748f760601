"""A ledger of requests: what is in force, what each request restores when it is withdrawn, and what cannot go wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import grun
from grun.cli.main import main
from grun.core.config.requests import CalibrateRequestsConfig, RequestConfig
from grun.core.errors import UserError
from grun.core.provenance import PROVENANCE
from grun.models.encoding.templates import resolve_template
from grun.models.gates.calibration import logits_of_prompts
from grun.models.row_encoder import RowEncoder
from grun.requests import operations
from grun.requests.active import MeasuredRows, say_crossing
from grun.requests.ledger import LedgerState, change
from grun.requests.operations import add, calibrate_active, export
from grun.requests.verification import Verification, verify
from support.material import Material, invented_rows, write_rows


@pytest.fixture
def config(memorised: Material, tmp_path: Path) -> RequestConfig:
    return RequestConfig(
        ledger=str(tmp_path / "ledger"),
        model=str(memorised.model),
        forget=[str(memorised.forget)],
        retain=[str(memorised.retain)],
        objective="npo",
        device="cpu",
        batch_size=4,
        steps=6,
        evaluate_every=3,
        layers="1,3",
        withhold=0.25,
        topic_layer="none",
    )


@pytest.fixture
def halves(config: RequestConfig, memorised: Material, tmp_path: Path) -> list[RequestConfig]:
    """The forget rows as two requests."""
    lines = memorised.forget.read_text().splitlines(keepends=True)
    found = []
    for i, part in enumerate((lines[:4], lines[4:])):
        file = tmp_path / f"part{i}.jsonl"
        file.write_text("".join(part))
        found.append(replace(config, forget=[str(file)], keep_data=True, why=f"because {i}"))
    return found


def command(config: RequestConfig, *more: str) -> list[str]:
    flags = ["--ledger", config.ledger, "--model", config.model, "--retain", config.retain[0], "--device", "cpu"]
    flags += ["--objective", config.objective]
    settings = ["--batch-size", "4", "--steps", "6", "--evaluate-every", "3", "--layers", "1,3", "--withhold", "0.25"]
    settings += ["--topic-layer", "none"]
    return ["request", "add", *config.forget, *flags, *settings, *more]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "grun", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said


def logits(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(10, 60, (3, 9), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(input_ids=ids, prompt_lengths=torch.tensor([5, 6, 7])).logits


def test_requests_are_learnt_measured_and_written_down(halves: list[RequestConfig]) -> None:
    assert [add(one) for one in halves] == ["r0001", "r0002"]
    ledger = LedgerState.read(halves[0].ledger)
    assert list(ledger.active) == ["r0001", "r0002"]
    first, second = ledger.requests.values()
    assert (first.why, first.objective, first.data["rows"]) == ("because 0", "npo", 4)
    assert first.data["fingerprint"] != second.data["fingerprint"]
    measured = second.metrics["in_force"]
    assert set(measured) == {"new", "normal", "r0001"}
    assert set(measured["new"]["open"]) == {"r0001", "r0002"}
    assert measured["new"]["probability"] < measured["new"]["probability_before"]
    assert ledger.data("r0001") != ledger.data("r0002")
    assert not list((ledger.path / ".work").iterdir())
    found = verify(halves[0].ledger, halves[0].model)["r0002"]
    assert str(found).startswith("ok (forget probability")
    assert found.ok
    assert found.was == second.forget_probability == measured["new"]["probability"]
    assert found.forget_probability == pytest.approx(found.was, abs=1e-4)


def test_gates_that_open_for_what_is_not_theirs_are_said(
    halves: list[RequestConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("grun").propagate = True
    add(halves[0])
    assert "gate" not in caplog.text
    rows = Path(halves[0].forget[0]).read_text().splitlines(keepends=True)
    (tmp_path / "again.jsonl").write_text("".join(rows[:3]))
    add(replace(halves[1], forget=[str(tmp_path / "again.jsonl")]))
    assert (
        "The gate of request r0001 opens for 100% of the new rows (is it the same request?): withdrawing r0002 alone"
        in caplog.text
    )
    assert "of the rows of request r0001: withdrawing r0001 alone" in caplog.text
    caplog.clear()
    shares = {"r0001": 0.05, "r0002": 0.06}
    measured = {"new": shares, "normal": shares, "r0001": {"r0002": 0.05}}
    say_crossing("r0002", {name: MeasuredRows(1, 1.0, 0.5, opened) for name, opened in measured.items()})
    assert set(caplog.messages) == {
        "The new gate opens for 6% of retain rows it has not seen: give more --retain rows, or calibrate the ledger with "
        "normal prompts (`grun request calibrate`)."
    }


def test_without_asking_no_row_of_the_data_is_in_the_ledger(config: RequestConfig) -> None:
    add(config)
    words = json.loads(Path(config.forget[0]).read_text().splitlines()[0])["question"].encode()
    kept = [file for file in Path(config.ledger).rglob("*") if file.is_file()]
    assert kept
    assert not any(words in file.read_bytes() for file in kept)
    assert LedgerState.read(config.ledger).data("r0001") is None


def test_the_export_is_what_is_in_force_and_withdrawing_takes_exactly_one_away(
    halves: list[RequestConfig], tmp_path: Path
) -> None:
    for one in halves:
        add(one)
    ledger = halves[0].ledger
    base = AutoModelForCausalLM.from_pretrained(halves[0].model)
    both = PeftModel.from_pretrained(base, str(export(ledger, str(tmp_path / "both")))).eval()
    apart: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
    folders = {id: str(LedgerState.read(ledger).adapter(id)) for id in ("r0001", "r0002")}
    apart = PeftModel.from_pretrained(apart, folders["r0001"], adapter_name="r0001")
    apart.load_adapter(folders["r0002"], adapter_name="r0002")
    apart.base_model.set_adapter(["r0001", "r0002"])
    torch.testing.assert_close(logits(both), logits(apart.eval()), atol=1e-5, rtol=1e-5)
    assert change(ledger, "r0001", "suspend").state == "suspended"
    left: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
    left = PeftModel.from_pretrained(left, str(export(ledger, str(tmp_path / "left")))).eval()
    alone: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
    alone = PeftModel.from_pretrained(alone, folders["r0002"]).eval()
    assert torch.equal(logits(left), logits(alone))
    assert change(ledger, "r0001", "resume").state == "active"
    again: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
    again = PeftModel.from_pretrained(again, str(export(ledger, str(tmp_path / "both")))).eval()
    assert torch.equal(logits(again), logits(both))
    assert change(ledger, "r0001", "withdraw").state == "withdrawn"
    assert [entry["what"] for entry in LedgerState.read(ledger).get("r0001").history] == [
        "active",
        "suspended",
        "active",
        "withdrawn",
    ]


def test_a_gate_learns_to_stay_shut_for_earlier_requests_if_their_features_were_kept(
    halves: list[RequestConfig], tmp_path: Path
) -> None:
    """Logits of the second request's gate on the first one's prompts, whose words it has never seen otherwise."""
    found = []
    for keep in (False, True):
        ledger = str(tmp_path / f"ledger-{keep}")
        for one in halves:
            add(replace(one, ledger=ledger, keep_features=keep))
        now = LedgerState.read(ledger)
        assert (now.features("r0001") is not None) == keep
        assert len(now.get("r0002").settings["shut_for"]) == keep
        model: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
        model = PeftModel.from_pretrained(model, str(now.adapter("r0002"))).eval()
        tokenizer = AutoTokenizer.from_pretrained(halves[0].model)
        rows = RowEncoder(tokenizer, resolve_template("auto", tokenizer), None, 4, torch.device("cpu"))
        found.append(logits_of_prompts(model, rows, now.data("r0001") or []))
    assert found[1].mean() < found[0].mean() - 1.0


def test_features_of_gates_that_read_something_else_are_left_out(
    halves: list[RequestConfig], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("grun").propagate = True
    add(replace(halves[0], keep_features=True))
    add(replace(halves[1], gate_layer=1))
    assert "The features kept of request r0001 are left out" in caplog.text
    assert LedgerState.read(halves[0].ledger).get("r0002").settings["shut_for"] == []


def test_what_a_calibration_does_not_cover_is_said(
    halves: list[RequestConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("grun").propagate = True
    normal = write_rows(tmp_path / "normal.jsonl", [{"prompt": r["question"]} for r in invented_rows("calm", 60)])
    add(halves[0])
    settings: dict[str, Any] = {"ledger": halves[0].ledger, "model": halves[0].model, "device": "cpu"}
    calibrate_active(CalibrateRequestsConfig(**settings, normal=[str(normal)], alpha=0.1, delta=0.1))
    export(halves[0].ledger, str(tmp_path / "out"))
    assert "does not cover" not in caplog.text
    add(halves[1])
    assert "does not cover r0002: run `grun request calibrate` again" in caplog.text
    assert LedgerState.read(halves[0].ledger).uncovered == ["r0002"]


def test_the_reference_scale_multiplies_by_what_the_paper_multiplies_by(
    halves: list[RequestConfig], tmp_path: Path
) -> None:
    for one in halves:
        add(one)
    target = export(halves[0].ledger, str(tmp_path / "scaled"), reference_scale=True)
    members = json.loads((target / "adapter_config.json").read_text())["members"]
    assert [member["scale"] for member in members.values()] == pytest.approx([1.8, 1.8])


def test_calibration_covers_everything_in_force(
    halves: list[RequestConfig], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for one in halves:
        add(one)
    normal = write_rows(tmp_path / "normal.jsonl", [{"prompt": r["question"]} for r in invented_rows("calm", 60)])
    settings: dict[str, Any] = {"ledger": halves[0].ledger, "model": halves[0].model, "device": "cpu"}
    found = calibrate_active(
        CalibrateRequestsConfig(**settings, normal=[str(normal)], alpha=0.1, delta=0.1, forget=halves[1].forget)
    )
    assert found.record["forget_open"]["prompts"] == 4
    assert found.requests == ("r0001", "r0002")
    assert found.record["requests"] == ["r0001", "r0002"]
    assert found.record["normal_open"]["open"] <= found.record["normal_prompts_allowed_open"]
    assert main(["request", "list", "--ledger", halves[0].ledger]) == 0
    assert "at most 0.1 of normal prompts open a gate, with confidence 0.9, in float32" in capsys.readouterr().out
    ledger = LedgerState.read(halves[0].ledger)
    assert ledger.calibration == found
    assert found.record["versions"]["grun"] == grun.__version__
    thresholds = [t for request in ledger.requests.values() for t in request.thresholds or ()]
    model: Any = AutoModelForCausalLM.from_pretrained(halves[0].model)
    model = PeftModel.from_pretrained(model, str(export(halves[0].ledger, str(tmp_path / "out"))))
    gates = model.base_model.runtime.layers[0].gates
    assert [float(gates[f"default/{id}"].threshold) for id in ledger.active] == pytest.approx(thresholds)
    calibrate_active(CalibrateRequestsConfig(**settings, normal=[str(normal)], alpha=0.1, delta=0.1))
    again = LedgerState.read(
        halves[0].ledger
    ).requests.values()  # it starts from what was learnt, not from what it left
    assert [t for request in again for t in request.thresholds or ()] == thresholds
    with pytest.raises(UserError, match=r"--normal has 60 prompts, too few for --alpha 0\.01.*299 are needed"):
        calibrate_active(CalibrateRequestsConfig(**settings, normal=[str(normal)]))
    with pytest.raises(UserError, match="--normal has 0 prompts that are no retain rows of a gate, too few"):
        calibrate_active(CalibrateRequestsConfig(**settings, normal=halves[0].retain, alpha=0.4, delta=0.4))


def test_the_same_rows_in_another_order_are_the_same_request(halves: list[RequestConfig], tmp_path: Path) -> None:
    add(halves[0])
    lines = Path(halves[0].forget[0]).read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(UserError, match="those of request 'r0001'"):
        add(replace(halves[0], forget=[str(tmp_path / "reversed.jsonl")]))
    found = verify(halves[0].ledger, data={"r0001": [str(tmp_path / "reversed.jsonl")]})
    assert found == {"r0001": Verification("r0001", True, "active", "--model is missing")}
    assert str(found["r0001"]) == "ok (active; not measured: --model is missing)"
    change(halves[0].ledger, "r0001", "withdraw")
    with pytest.raises(UserError, match="request 'r0001', which is withdrawn"):
        verify(halves[0].ledger, data={"r0001": halves[0].forget})


def test_an_add_that_failed_binds_a_ledger_to_nothing(config: RequestConfig, material: Material) -> None:
    with pytest.raises(UserError, match="layer"):
        add(replace(config, model=str(material.model), layers="77"))
    with pytest.raises(UserError, match="--why is not valid UTF-8 at character 9"):
        add(replace(config, why="Beschlu\udcdf"[:7] + "s\udcdf"))
    assert add(config) == "r0001"
    base = LedgerState.read(config.ledger).base
    assert base is not None
    assert base.name == config.model


def test_damage_is_found_and_named(halves: list[RequestConfig], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for one in halves:
        add(one)
    ledger = Path(halves[0].ledger)
    weights = ledger / "requests" / "r0002" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    found = verify(str(ledger))
    assert str(found["r0001"]).startswith("ok (active; not measured: ")
    assert "adapter_model.safetensors was changed (checksum)" in str(found["r0002"])
    assert (found["r0001"].ok, found["r0002"].ok) == (True, False)
    assert main(["request", "verify", "--ledger", str(ledger)]) == 1
    assert "1 of 2 requests" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"request 'r0002' is damaged.*restore it"):
        export(str(ledger), str(tmp_path / "out"))
    weights.unlink()
    assert "adapter_model.safetensors is missing" in str(verify(str(ledger))["r0002"])
    other = write_rows(tmp_path / "other.jsonl", invented_rows("other", 4))
    assert "fingerprint" in str(verify(str(ledger), data={"r0001": [str(other)]})["r0001"])
    assert str(verify(str(ledger), data={"r0001": halves[0].forget})["r0001"]).startswith("ok (active")


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_state(config: RequestConfig, tmp_path: Path) -> None:
    ledger = Path(config.ledger)
    finish(start(command(config)))
    expected = (ledger / "requests" / "r0001" / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(ledger)
    for seconds in (0.0, 0.4, 1.0, 2.0):
        process = start(command(config))
        deadline = time.monotonic() + 60
        while not (ledger / ".work").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (ledger / "ledger.json").exists() and LedgerState.read(ledger).requests:  # it was quicker than the kill
            assert str(verify(str(ledger))["r0001"]).startswith("ok (active")
            shutil.rmtree(ledger)
    finish(start(command(config)))
    assert str(verify(str(ledger))["r0001"]).startswith("ok (active")
    assert (ledger / "requests" / "r0001" / "adapter" / "adapter_model.safetensors").read_bytes() == expected


def test_an_add_that_an_older_version_began_is_resumed(
    config: RequestConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(operations, "measured", killed)
        with pytest.raises(KeyboardInterrupt):
            add(config)
    ledger = Path(config.ledger)
    (work,) = (ledger / ".work").iterdir()
    work = work.rename(work.with_name("older"))
    settings = json.loads((work / "settings.json").read_text())
    assert settings["gate_reads"] == "prompt"
    older = {name: value for name, value in settings.items() if name not in ("gate_reads", "keep_features")}
    (work / "settings.json").write_text(json.dumps(older))
    expected = (work / "adapter" / "adapter_model.safetensors").read_bytes()
    caplog.set_level(logging.INFO, "grun")
    monkeypatch.setattr(logging.getLogger("grun"), "propagate", True)
    assert add(config) == "r0001"
    assert f"{work} is complete already" in caplog.text
    assert (ledger / "requests" / "r0001" / "adapter" / "adapter_model.safetensors").read_bytes() == expected
    assert not list((ledger / ".work").iterdir())


def test_a_request_of_an_older_version_is_verified(config: RequestConfig) -> None:
    add(config)
    file = Path(config.ledger) / "ledger.json"
    record = json.loads(file.read_text())
    assert record["requests"][0]["metrics"]["versions"]["grun"] == grun.__version__
    assert record["requests"][0]["metrics"]["machine"]["cores"] > 0
    for name in ("gate_reads", "keep_features", "max_length"):
        del record["requests"][0]["settings"][name]
    for name in PROVENANCE:
        record["requests"][0]["metrics"].pop(name, None)
    file.write_text(json.dumps(record))
    found = verify(config.ledger, config.model, {"r0001": config.forget}, device="cpu")
    assert str(found["r0001"]).startswith("ok (forget probability")


def test_adapters_that_the_ledger_does_not_know_are_never_touched(halves: list[RequestConfig]) -> None:
    """They are those of an `add` that was killed just before it was written down, or of a newer ledger that was lost."""
    add(halves[0])
    folder = Path(halves[0].ledger) / "requests"
    shutil.copytree(folder / "r0001", folder / "r0002")
    (folder / ".r0003.abc").mkdir()  # half written
    assert add(halves[1]) == "r0003"
    assert not (folder / ".r0003.abc").exists()
    assert (folder / "r0002" / "adapter" / "adapter_config.json").is_file()
    change(halves[0].ledger, "r0001", "withdraw")
    with pytest.raises(UserError, match=r"--id 'r0002'.*is there, but not in the ledger"):
        add(replace(halves[0], id="r0002"))
    (folder.parent / "ledger.json").unlink()
    with pytest.raises(UserError, match="holds something else"):
        add(halves[0])
    with pytest.raises(UserError, match="restore it from a backup"):
        LedgerState.read(folder.parent)
    assert (folder / "r0001" / "adapter" / "adapter_config.json").is_file()


def test_a_ledger_in_a_hub_repository_is_read(config: RequestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    add(config)
    monkeypatch.setattr("huggingface_hub.snapshot_download", {"owner/ledger": config.ledger}.__getitem__)
    assert list(LedgerState.read("owner/ledger", hub=True).active) == ["r0001"]
    monkeypatch.undo()
    with pytest.raises(UserError, match="no such directory, and no hub repository could be downloaded"):
        LedgerState.read("owner/other", hub=True)
    with pytest.raises(UserError, match="there is no ledger in it"):
        change("owner/ledger", "r0001", "suspend")


def test_two_at_once_wait_for_each_other(halves: list[RequestConfig]) -> None:
    processes = [start(command(one)) for one in halves]
    for process in processes:
        finish(process)
    ledger = LedgerState.read(halves[0].ledger)
    assert list(ledger.active) == ["r0001", "r0002"]
    assert all(str(found).startswith("ok") and found.ok for found in verify(halves[0].ledger).values())


def test_the_commands_say_what_happened(config: RequestConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(command(config, "--why", "court order 7", "--id", "case-7")) == 0
    ledger = ["--ledger", config.ledger]
    assert "Request case-7 is in force" in capsys.readouterr().out
    assert main(["request", "list", *ledger]) == 0
    listed = capsys.readouterr().out
    assert "case-7" in listed
    assert "active" in listed
    assert main(["request", "show", "case-7", *ledger]) == 0
    assert json.loads(capsys.readouterr().out)["why"] == "court order 7"
    assert main(["request", "suspend", "case-7", *ledger]) == 0
    assert main(["request", "resume", "case-7", *ledger]) == 0
    assert main(["request", "export", str(tmp_path / "out"), *ledger]) == 0
    assert main(["request", "verify", *ledger]) == 0
    assert main(["request", "withdraw", "case-7", *ledger]) == 0
    withdrawn, hint = capsys.readouterr().out.splitlines()[-2:]
    assert withdrawn == "Request case-7 is withdrawn."
    assert "Adapters exported before stay as they are" in hint
    assert main(["request", "verify", *ledger]) == 0
    assert capsys.readouterr().out == "There is nothing to verify: every request is withdrawn.\n"


def test_wrong_input_is_one_line(
    config: RequestConfig, material: Material, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(command(config)) == 0
    ledger = ["--ledger", config.ledger]
    assert main(["request", "withdraw", "r0001", *ledger]) == 0
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "ledger.json").write_text('{"format": 2, "requests": [], "base": {}}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "ledger.json").write_text('{"format": 1,')
    (tmp_path / "keyless").mkdir()
    (tmp_path / "keyless" / "ledger.json").write_text('{"format": 1, "requests": [{"id": "a"}]}')
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "adapter_config.json").write_text("{}")
    (tmp_path / "filled" / "README.md").write_text("mine")
    other = replace(config, forget=[str(material.forget)], model=str(material.model))
    cases = {
        "nothing to withdraw": ["request", "withdraw", "r0001", *ledger],
        "nothing to suspend": ["request", "suspend", "r0001", *ledger],
        "nothing to resume": ["request", "resume", "r0001", *ledger],
        "has no request 'r9'": ["request", "show", "r9", *ledger],
        "has no request 'r0'": ["request", "suspend", "r0", *ledger],
        "no active request": ["request", "export", str(tmp_path / "o"), *ledger],
        "there is no ledger in it": ["request", "list", "--ledger", str(tmp_path / "nowhere")],
        "has format 2": ["request", "list", "--ledger", str(newer)],
        "is damaged (": ["request", "list", "--ledger", str(tmp_path / "keyless")],
        "its ledger.json is damaged;": ["request", "list", "--ledger", str(broken)],
        "another model": command(other),
        "holds something else": command(replace(config, ledger=str(tmp_path))),
        "is taken": command(config, "--id", "r0001"),
        "expected lower-case letters": command(config, "--id", "No 1"),
        "--id has 300 characters": command(config, "--id", "x" * 300),
        "(and not a reserved word)": command(config, "--id", "keys"),
        "reserved word": command(config, "--id", "training"),
        "only gated adapters": command(config, "--gate", "none"),
        "--ledger is missing": command(config)[:3],
        "FILES is missing": ["request", "add", *command(config)[3:]],
        "expected ID=FILE": ["request", "verify", *ledger, "--data", "r0001"],
        "has no request 'zz'": ["request", "verify", *ledger, "--data", "zz=x.jsonl"],
        "expected a finite number": ["request", "export", "o", *ledger, "--scale", "inf"],
        "choose one of them": ["request", "export", "o", *ledger, "--scale", "2", "--reference-scale"],
        "no active request in": [
            "request",
            "calibrate",
            *ledger,
            "--model",
            config.model,
            "--normal",
            config.retain[0],
        ],
    }
    capsys.readouterr()
    for words, arguments in cases.items():
        words = words.removesuffix(" in")
        more = ["--alpha", "0.2", "--delta", "0.2"] if "calibrate" in arguments else []
        assert main([*arguments, *more]) == 2, words
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("grun: "), said
        assert words in said
    assert main(command(config, "--id", "again")) == 0  # the data of a withdrawn request may be asked for again
    capsys.readouterr()
    assert main(command(config, "--id", "twice")) == 2
    assert "those of request 'again'" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere, whatever a directory's mode says")
def test_a_read_only_ledger_is_read_and_not_written(config: RequestConfig) -> None:
    add(config)
    folder = Path(config.ledger)
    folder.chmod(0o500)
    try:
        assert str(verify(config.ledger)["r0001"]).startswith("ok (active")
        with pytest.raises(UserError, match=r"cannot be written: Permission denied"):
            change(config.ledger, "r0001", "suspend")
    finally:
        folder.chmod(0o700)
