"""Whole runs with a gate for topics: what is written down, killed runs, later runs, and settings that rule such a gate out."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateConfig, RequestConfig
from grun.core.errors import UserError
from grun.core.process.environment import cache_directory
from grun.core.records import Example
from grun.core.storage.stored_records import CHECKSUMS
from grun.data.examples import read_examples
from grun.jobs.calibrate import calibrate
from grun.jobs.inputs import own_answers
from grun.jobs.inputs.own_answers import with_own_answers
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import with_presets
from grun.models.gates import all_gates
from grun.models.gates.calibration import share_open
from grun.models.gates.features import features_of_rows, gate_logits, gates_of, thresholds_of
from grun.models.gates.recognition import Recognition
from grun.models.loading.loaded import LoadedModel
from grun.models.row_encoder import RowEncoder
from grun.requests.ledger import LedgerState
from grun.requests.operations import add
from support.few_prompts import RARE, few_prompts
from support.material import Material, invented_rows, small_unlearning, write_rows
from support.topic_kit import few_shipped_prompts, topic_gates

WEIGHTS = "adapter_model.safetensors"
RATE = 0.05
ABOUT_TOPICS = sum(prompt.topic is not None for prompt in few_prompts())


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_shipped_prompts(monkeypatch)


@pytest.fixture
def config(memorised: Material, tmp_path: Path) -> UnlearnConfig:
    return small_unlearning(
        memorised,
        tmp_path / "run",
        steps=8,
        evaluate_every=4,
        layers="1,3",
        withhold=0.25,
        objective="idk",
        false_positive_rate=RATE,
    )


def read(result: Path, name: str) -> Any:
    return json.loads((result.parent / name).read_text())


def loaded(model: str, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).eval()


class Kill(TrainerCallback):
    """Ends a run as Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


def test_a_run_writes_down_what_its_gates_recognise(config: UnlearnConfig, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("grun").propagate = True
    caplog.set_level(logging.INFO, "grun")
    result = unlearn(config)
    assert "Withheld prompts that count as to be forgotten, rows to forget" in caplog.text
    facts = read(result, "metrics.json")
    found = facts["recognition"]
    assert found["opened"].keys() == {"forget", "normal", "topics"}
    assert found["nearest"].keys() == {"forget", "normal", "topics"}
    ordinary = len(few_prompts()) - ABOUT_TOPICS
    assert found["opened"]["forget"]["prompts"] == 8
    assert found["opened"]["normal"]["prompts"] == 6 + ordinary / 2, "those withheld, and half of those that ship"
    assert found["opened"]["topics"]["prompts"] == ABOUT_TOPICS
    assert found["left_out"] == []
    assert facts["validation_false_positive_rate"] == found["opened"]["normal"]["share"] <= RATE
    assert found["opened"]["topics"]["share"] <= 2 * RATE
    for kind in found["nearest"].values():
        margins = [one["margin"] for one in kind]
        assert margins == sorted(m for m in margins if m > 0) + sorted((m for m in margins if m <= 0), reverse=True)
    settings = read(result, "adapter/adapter_config.json")
    assert facts["topic_kept"] == {"default": settings["topic_kept"]}
    gate = topic_gates(loaded(config.model, result))["default"]
    assert [len(gate.forget), len(gate.normal)] == settings["topic_kept"]
    assert settings["topic_kept"][0] == 8
    assert settings["topic_layer"] == 1
    torch.testing.assert_close(gate.forget.norm(dim=1), torch.ones(8))


def test_rows_to_forget_that_share_a_word_with_shipped_prompts_leave_these_out(
    config: UnlearnConfig, tmp_path: Path
) -> None:
    rows = [{"question": f"Is quidditch known to {name}?", "answer": "Yes."} for name in "ABCDEFGH"]
    result = unlearn(replace(config, forget=[str(write_rows(tmp_path / "f.jsonl", rows))]))
    found = read(result, "metrics.json")["recognition"]
    assert found["left_out"] == [RARE]
    assert found["opened"]["topics"]["prompts"] == ABOUT_TOPICS - 1


@pytest.mark.parametrize(("least", "shut"), [(0.0, False), (1.1, True)])
def test_a_gate_for_topics_that_recognises_too_little_is_shut_for_good(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, least: float, shut: bool
) -> None:
    logging.getLogger("grun").propagate = True
    monkeypatch.setattr(all_gates, "LEAST_RECALL", least)
    result = unlearn(config)
    facts = read(result, "metrics.json")
    assert facts["recognition"].get("topics_shut", False) == shut
    assert ("so it stays shut" in caplog.text) == shut
    model = loaded(config.model, result)
    gate = topic_gates(model)["default"]
    closest = torch.cat(
        [gate.forget, -gate.normal, torch.nn.functional.normalize(torch.randn(500, gate.forget.shape[1]))]
    )
    is_open = gate.logits(closest) > gate.threshold
    assert bool(is_open.any()) != shut
    assert facts["recognition"]["opened"]["normal"]["share"] <= RATE
    again = RowEncoder.of(model, AutoTokenizer.from_pretrained(config.model), config)
    rows = again.encode([row for file in config.forget for row in read_examples(file)])
    logits_NG = gate_logits(features_of_rows(model, again, rows), [gate for _, gate in gates_of(model)])
    names_N = (logits_NG > thresholds_of(model))[:, 0]
    assert float(names_N.float().mean()) >= 0.75, "names are recognised with either"


@pytest.mark.parametrize("cache", ["kept", "lost"])
@pytest.mark.parametrize("answers", ["given", "own"])
def test_a_run_that_is_killed_ends_with_the_same_bytes(config: UnlearnConfig, cache: str, answers: str) -> None:
    config = config if answers == "given" else replace(config, retain=[])
    with pytest.raises(KeyboardInterrupt):
        unlearn(config, callbacks=[Kill()])
    if cache == "lost":
        shutil.rmtree(cache_directory())
    resumed, whole = unlearn(config), unlearn(replace(config, output=f"{config.output}-whole"))
    for name in (WEIGHTS, "adapter_config.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert read(resumed, "gates.json") == read(whole, "gates.json")
    recognition = [read(result, "metrics.json")["recognition"] for result in (resumed, whole)]
    assert recognition[0] == recognition[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows without an answer, by the calls that ask the base model for their answers."""
    found: list[int] = []

    def counted(base: LoadedModel, rows: Sequence[Example]) -> list[Example]:
        found.append(sum(not row.answer for row in rows))
        return with_own_answers(base, rows)

    monkeypatch.setattr("grun.jobs.unlearn.with_own_answers", counted)
    return found


def test_normal_rows_that_no_edit_changes_are_not_answered(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch, asked: list[int]
) -> None:
    monkeypatch.setattr(own_answers, "SHUT", 3)
    facts = read(unlearn(replace(config, retain=[])), "metrics.json")
    forget, *normal = asked
    assert forget == 0, "these have answers"
    for kind, count in zip(("retain", "validation"), normal, strict=True):
        opens = len(facts["open_rows"][kind])
        assert opens < count <= opens + 3 < facts["rows"][kind], "gates are fitted on all of them"


def test_a_run_of_an_earlier_version_goes_on_with_all_answers(config: UnlearnConfig, asked: list[int]) -> None:
    config = replace(config, retain=[])
    with pytest.raises(KeyboardInterrupt):
        unlearn(config, callbacks=[Kill()])
    gates = Path(config.output) / "gates.json"
    known = json.loads(gates.read_text())
    del known["open_rows"]
    gates.write_text(json.dumps(known))
    for checksums in Path(config.output).glob(f"checkpoints/*/{CHECKSUMS}"):  # it wrote none
        checksums.unlink()
    asked.clear()
    facts = read(unlearn(config), "metrics.json")
    assert facts["steps"] == 8
    assert asked == [0, facts["rows"]["retain"], facts["rows"]["validation"]]


@pytest.mark.parametrize("edit_from", ["last_prompt_on", "last_prompt_only"])
def test_the_cached_prefix_learns_what_whole_rows_learn(config: UnlearnConfig, edit_from: str) -> None:
    config = replace(config, edit_from=edit_from)
    cached, plain = unlearn(config), unlearn(replace(config, output=f"{config.output}-plain", prefix_cache=False))
    assert "prefix_cache" in read(cached, "metrics.json")
    one, two = load_file(cached / WEIGHTS), load_file(plain / WEIGHTS)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=0)
    for name, value in read(plain, "metrics.json")["validation"].items():
        assert read(cached, "metrics.json")["validation"][name] == pytest.approx(value, abs=1e-3)


def test_an_adapter_is_calibrated_and_keeps_its_promise(config: UnlearnConfig, tmp_path: Path) -> None:
    unlearn(config)
    normal = write_rows(tmp_path / "normal.jsonl", [{"prompt": row["question"]} for row in invented_rows("calm", 60)])
    shared: dict[str, Any] = {"model": config.model, "device": "cpu", "forget": config.forget, "normal": [str(normal)]}
    target = calibrate(
        CalibrateConfig(**shared, adapter=config.output, output=str(tmp_path / "to"), alpha=0.1, delta=0.1)
    )
    found = read(target, "calibration.json")
    assert len(found["thresholds"]) == len(found["places"]) == 2
    assert found["normal_open"]["open"] <= found["normal_prompts_allowed_open"]
    before, after = loaded(config.model, Path(config.output) / "adapter"), loaded(config.model, target)
    one, two = (topic_gates(model)["default"].state_dict() for model in (before, after))
    assert float(two.pop("threshold")) == pytest.approx(found["thresholds"][1])
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_later_runs_stay_shut_for_what_an_earlier_one_kept(config: UnlearnConfig, tmp_path: Path) -> None:
    lines = Path(config.forget[0]).read_text().splitlines(keepends=True)
    shared = {name: value for name, value in vars(config).items() if name not in ("output", "forget")}
    for i, part in enumerate((lines[:4], lines[4:])):
        (tmp_path / f"{i}.jsonl").write_text("".join(part))
        request = RequestConfig(**shared, ledger=str(tmp_path / "ledger"), forget=[str(tmp_path / f"{i}.jsonl")])
        add(replace(request, keep_features=True, keep_data=True))
    second = LedgerState.read(str(tmp_path / "ledger")).get("r0002")
    assert len(second.settings["shut_for"]) == 1
    assert second.metrics["in_force"]["r0001"]["open"]["r0002"] <= 0.25
    other = RequestConfig(**shared, ledger=str(tmp_path / "ledger"), forget=[str(tmp_path / "2.jsonl")])
    (tmp_path / "2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in invented_rows("Nord", 4)))
    add(replace(other, topic_layer="none"))
    third = LedgerState.read(str(tmp_path / "ledger")).get("r0003")
    assert third.settings["shut_for"] == [], "their gates read something else"


def test_features_of_another_head_are_refused(config: UnlearnConfig, tmp_path: Path) -> None:
    first = unlearn(replace(config, keep_features=True))
    kept = str(first.parent / "gate_features.safetensors")
    unlearn(replace(config, shut_for=[kept], output=str(tmp_path / "again")))
    with pytest.raises(UserError, match="holds no gate features for this run: its gates read something else"):
        unlearn(replace(config, shut_for=[kept], topic_layer="none", output=str(tmp_path / "none")))


@pytest.mark.parametrize(
    "changes",
    [{"gate": "none"}, {"gate_layer": -1}, {"fit_gate_first": False}, {"preset": "paper"}, {"adapt": "reft"}],
    ids=str,
)
def test_a_gate_for_topics_that_was_not_asked_for_is_left_out_where_it_cannot_be(changes: dict[str, Any]) -> None:
    assert with_presets(UnlearnConfig()).topic_layer == "0.4"
    assert with_presets(UnlearnConfig(**changes)).topic_layer == "none"
    assert with_presets(UnlearnConfig(**{"topic_layer": "none"} | changes)).topic_layer == "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gate": "none", "fit_gate_first": True}, "topics are recognised beside a shared gate"),
        ({"gate_layer": -1, "fit_gate_first": True}, "topics are recognised beside a shared gate"),
        ({"fit_gate_first": False}, "--topic-layer is 1, but a gate for topics is always fitted first"),
        ({"topic_layer": "soon"}, "--topic-layer contains 'soon'"),
        ({"topic_layer": "0"}, "topic_layer is 0, expected a layer above 0"),
        ({"topic_layer": "3"}, "topic_layer is 3, expected a layer above 0"),
    ],
    ids=str,
)
def test_one_that_was_asked_for_is_refused_where_it_cannot_be(
    config: UnlearnConfig, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words) as refused:
        unlearn(replace(config, **{"topic_layer": "1"} | changes))
    assert "\n" not in str(refused.value)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(("opens", "warned"), [(10, False), (9, False), (8, True), (0, True)])
def test_gates_that_generalise_badly_are_warned_of(opens: int, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("grun").propagate = True
    caplog.set_level(logging.INFO, "grun")
    logits_NG = torch.tensor([[1.0]] * opens + [[-1.0]] * (10 - opens))
    Recognition([], opened={"forget": share_open(logits_NG, torch.zeros(1))}).say()
    assert f"rows to forget: {opens} of 10" in caplog.text
    lines = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert (len(lines) == 1) == warned
    assert all(f"recognise {10 * opens} % of withheld rows to forget, expected 90 %" in line for line in lines)
