"""Attacks by somebody who makes the model's calls himself: told ends of prompts, and caches that were filled before."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from grun.cli.main import main
from grun.core.errors import UserError
from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Calls, Probe, attacks
from grun.evaluation.attacks.names import names_of
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks import calling
from grun.models.encoding.encode import encode, encode_prompt
from grun.models.encoding.templates import resolve_template
from support.adapter_kit import attach
from support.chat_server import Reply, chat_server, completion
from support.job_commands import flags
from support.material import Material
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

NAMES = ("boundary", "second_turn_cache", "cold_cache")
ROW = Example("Where was Ada Lund born?", "In the town of Marl.", subject="Ada Lund")
ROWS = 2


def command(material: Material, output: Path, **settings: object) -> list[str]:
    usual: dict[str, object] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    usual |= {"output": output, "rows": ROWS, "max_new_tokens": 6, "device": "cpu", "attacks": ",".join(NAMES)}
    return ["attack", *flags(**{name: value for name, value in (usual | settings).items() if value is not None})]


def saved(material: Material, folder: Path, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(material.model)
    wanted: dict[str, Any] = {"gate_reads": "prompt", "gate_layer": 0}
    attach(model, **(wanted | options)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(memorised: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls")
    adapter = saved(memorised, folder / "adapter")
    assert main(command(memorised, folder / "run", adapter=adapter)) == 0
    return folder / "run"


def probes_in(run: Path, attack: str, row: int = 1) -> dict[str, dict[str, Any]]:
    lines = (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return {one["variant"]: one for one in found if (one["attack"], one["row"]) == (attack, row)}


def text_of(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids)))


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", range(1, ROWS + 1))
def test_without_an_adapter_all_calls_are_the_plain_question(run: Path, row: int) -> None:
    plain = probes_in(run, "plain", row)[""]["before"]
    same = [probes_in(run, "boundary", row)[f"{ends} of the prompt"] for ends in ("first token", "half")]
    same += [one for variant, one in probes_in(run, "cold_cache", row).items() if variant != "earlier turn"]
    assert len(same) == 5
    for one in same:
        assert one["before"]["probability"] == pytest.approx(plain["probability"], rel=1e-3)
        assert one["before"]["answer"] == plain["answer"]
        assert "refused" not in one["before"]


def test_a_cold_cache_is_refused_or_read_again(run: Path) -> None:
    plain, cold = probes_in(run, "plain")[""]["after"], probes_in(run, "cold_cache")
    for variant in ("forward", "forward, as an answer", "earlier turn"):
        assert cold[variant]["after"]["refused"]
        assert cold[variant]["after"]["answer"] == ""
        for metric in ("probability", "rouge_l_recall", "extraction_strength"):
            assert cold[variant]["after"][metric] == 0.0
    assert cold["generate"]["after"]["probability"] == pytest.approx(plain["probability"], rel=1e-3)
    assert cold["generate"]["after"]["answer"] == plain["answer"]
    assert found_in(run)["attacks"]["cold_cache"]["refused"] == {"after": 3 * ROWS}
    assert found_in(run)["attacks"]["second_turn_cache"]["refused"] == {}
    assert f"6 of {4 * ROWS} (after) of cold_cache" in (run / "table.md").read_text(encoding="utf-8")


def test_what_an_adapter_that_reads_one_token_does_not_refuse_is_measured(memorised: Material, tmp_path: Path) -> None:
    adapter = saved(memorised, tmp_path / "adapter", gate_reads="last", gate="mlp", gate_layer=None)
    assert main(command(memorised, tmp_path / "run", adapter=adapter, attacks="cold_cache")) == 0
    cold = probes_in(tmp_path / "run", "cold_cache")
    assert "refused" not in cold["forward"]["after"]
    assert cold["forward"]["after"]["probability"] > 0


@pytest.mark.parametrize(("variant", "share"), [("first token of the prompt", 0.0), ("half of the prompt", 0.5)])
def test_the_told_end_is_the_one_that_the_model_gets(
    run: Path, memorised: Material, variant: str, share: float
) -> None:
    one = probes_in(run, "boundary")[variant]
    tokenizer = AutoTokenizer.from_pretrained(memorised.model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(memorised.model), run.parent / "adapter")
    row = encode(Example(one["prompt"], one["gold"]), tokenizer, resolve_template("auto", tokenizer))
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits = model.eval()(ids, prompt_lengths=torch.tensor([max(1, int(share * row.prompt_length))])).logits[0]
    answer = ids[0, row.prompt_length :]
    logps = logits[row.prompt_length - 1 : -1].log_softmax(1).gather(1, answer[:, None])
    assert one["after"]["probability"] == pytest.approx(math.exp(float(logps.mean())), rel=1e-3)
    assert probes_in(run, "plain")[""]["after"]["probability"] != pytest.approx(one["after"]["probability"], rel=1e-5)


def test_a_question_as_an_answer_stands_after_the_told_end(
    memorised: Material, monkeypatch: Any, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []
    tokenizer = AutoTokenizer.from_pretrained(memorised.model)
    whole = calling.Conversation.logits

    def looking(talk: calling.Conversation, *more: Any) -> Any:
        told.append((text_of(tokenizer, talk.ids[: talk.end]), text_of(tokenizer, talk.ids[talk.end :])))
        return whole(talk, *more)

    monkeypatch.setattr(calling.Conversation, "logits", looking)
    assert main(command(memorised, tmp_path / "run", attacks="boundary", rows=1)) == 0
    prompt, written = told[-1]
    assert "Lund" not in prompt
    assert "Where was Lund Ada 0 born?" in written


@pytest.mark.parametrize("variant", ["question cached", "name cached", "greeting cached, then an answer"])
def test_a_second_turn_continues_the_cache_of_the_first(run: Path, memorised: Material, variant: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(memorised.model)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(memorised.model), run.parent / "adapter")
    one, template = probes_in(run, "second_turn_cache")[variant], resolve_template("auto", tokenizer)
    turns = tuple((role, content) for role, content in one["turns"])
    first = encode_prompt(Example(turns[0][1], "-"), tokenizer, template)
    row = encode(Example(one["prompt"], one["gold"], turns=turns), tokenizer, template)
    assert list(row.input_ids[: len(first)]) == first
    ids, end = torch.tensor([row.input_ids]), torch.tensor([row.prompt_length])
    told = {} if variant.endswith("answer") else {"prompt_lengths": end}
    with torch.no_grad():
        cache = model.eval()(ids[:, : len(first)], prompt_lengths=torch.tensor([len(first)]), use_cache=True)
        logits = model(ids[:, len(first) :], past_key_values=cache.past_key_values, **told).logits[0]
    answer = ids[0, row.prompt_length :]
    logps = logits[-len(answer) - 1 : -1].log_softmax(1).gather(1, answer[:, None])
    assert one["after"]["probability"] == pytest.approx(math.exp(float(logps.mean())), rel=1e-3)


def test_the_first_turn_alone_is_cached(memorised: Material) -> None:
    tokenizer = AutoTokenizer.from_pretrained(memorised.model)
    probes = attacks.get("second_turn_cache").target(AttackMaterial((ROW,), (), names_of([ROW])))
    settings = SimpleNamespace(template=resolve_template("auto", tokenizer), max_length=None)
    subject = SimpleNamespace(model=nn.Linear(1, 1), tokenizer=tokenizer, adapters=True)
    for probe in probes:
        ids = encode(probe.example, tokenizer, settings.template)
        talk = calling._conversation(subject, probe, settings, ids.input_ids[: ids.prompt_length])  # type: ignore[arg-type]
        cached, rest = text_of(tokenizer, talk.ids[: talk.cached]), text_of(tokenizer, talk.ids[talk.cached :])
        assert probe.example.turns[0][1] in cached
        assert probe.example.prompt in rest
        assert probe.example.turns[0][1] not in rest


def test_an_interrupted_run_goes_on_with_the_calls_that_are_missing(
    memorised: Material, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, measured = command(memorised, tmp_path / "run", adapter=run.parent / "adapter"), list[str]()
    row = calling._evidence

    def stopping(subject: Any, probe: Probe, settings: Any) -> Any:
        measured.append(subject.label)
        if len(measured) == 15:
            raise KeyboardInterrupt
        return row(subject, probe, settings)

    monkeypatch.setattr(calling, "_evidence", stopping)
    assert main([*wanted, "--no-cache"]) == 130
    kept = sorted(file.stem for file in (tmp_path / "run" / "evidence" / "before").iterdir() if file.stem in NAMES)
    assert kept == ["boundary", "second_turn_cache"]
    measured.extend(["-"] * 15)
    already = len(measured)
    assert main([*wanted, "--no-cache"]) == 0
    assert measured[already:].count("before") == 4 * ROWS
    assert (tmp_path / "run" / "probes.jsonl").read_bytes() == (run / "probes.jsonl").read_bytes()


def test_calls_are_no_black_box_and_no_gate_is_looked_at(run: Path) -> None:
    found = found_in(run)
    worst, plain = (
        found[name]["probability" if name == "worst_case" else "figures"] for name in ("worst_case", "plain")
    )
    assert worst["after"]["value"] == plain["probability"]["after"]["value"]
    for name in NAMES:
        assert found["attacks"][name]["access"] == "calls"
        reason = found["attacks"][name]["figures"]["gate_open"]["after"]["reason"]
        assert reason == "the asker says which tokens are the prompt"


def test_an_address_takes_no_calls(memorised: Material, tmp_path: Path, capsys: Any) -> None:
    with chat_server(lambda body: Reply(completion("x"))) as server:
        given = {"model": None, "address": server.address, "rows": 1}
        assert main(command(memorised, tmp_path / "run", **given | {"attacks": "cold_cache"})) == 2
        assert "'cold_cache' says where prompts end and fills caches, which no --address" in capsys.readouterr().err
        assert main(command(memorised, tmp_path / "run", **given | {"attacks": None})) == 0
    assert set(NAMES) <= found_in(tmp_path / "run")["skipped"].keys()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_calls_of_every_architecture(arch: str) -> None:
    """Without an adapter, all calls that read the same tokens agree; with one, a cold cache is refused or read again."""
    tokenizer, base, attached = tiny_tokenizer(), tiny_model(arch), attach(arch, gate_reads="prompt", gate_layer=0)
    settings = MeasureSettings(resolve_template("auto", tokenizer), max_new_tokens=4)
    row = replace(ROW, answer="The town of </s> Marl, and <|im_end|> then.")
    cold = Calls(cached="all but one", with_adapter=False)
    same = [Calls(), Calls(ends="half"), *(replace(cold, rest=rest) for rest in ("prompt", "answer", "generate"))]
    found = [calling._evidence(Subject(base, tokenizer), Probe(row, 0, "", calls), settings) for calls in same]
    for one in found:
        assert one.token_logps == pytest.approx(found[0].token_logps, abs=2e-3)
        assert one.generated == found[0].generated
    plain, forward, answer, again = (
        calling._evidence(Subject(attached, tokenizer), Probe(row, 0, "", calls), settings)
        for calls in same
        if calls != same[1]
    )
    assert forward.refused
    assert answer.refused
    assert again.refused or again.token_logps == pytest.approx(plain.token_logps, abs=2e-3)
    off = Subject(attached, tokenizer, adapters=False)
    for calls in same:
        one = calling._evidence(off, Probe(row, 0, "", calls), settings)
        assert one.token_logps == pytest.approx(found[0].token_logps, abs=2e-3)


def test_a_ledger_and_a_whole_model_are_attacked_by_calls(memorised: Material, tmp_path: Path) -> None:
    add = flags(ledger=tmp_path / "l", model=memorised.model, device="cpu", topic_layer="none", steps=2, layers="1,3")
    rows = ["request", "add", str(memorised.forget), "--retain", str(memorised.retain), "--batch-size", "4"]
    assert main([*rows, *add, "--evaluate-every", "2"]) == 0
    assert main(command(memorised, tmp_path / "run", ledger=tmp_path / "l", rows=1)) == 0
    shutil.copytree(memorised.model, tmp_path / "whole" / "model")
    assert main(command(memorised, tmp_path / "other", adapter=tmp_path / "whole" / "model", rows=1)) == 0
    assert found_in(tmp_path / "other")["attacks"]["cold_cache"]["refused"] == {}
    cold = probes_in(tmp_path / "other", "cold_cache")["generate"]
    assert cold["after"]["probability"] == pytest.approx(cold["before"]["probability"], rel=1e-4)
    assert "refused" in found_in(tmp_path / "run")["attacks"]["cold_cache"]


def test_a_model_without_a_cache_is_refused_in_words() -> None:
    class Cacheless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 9))

    talk = calling.Conversation(Cacheless(), Calls(cached="all but one"), (1, 2, 3), 3, 2, adapters=True)
    with pytest.raises(UserError, match="gives no key/value cache back"):
        talk.greedy(4, 0, {2})
