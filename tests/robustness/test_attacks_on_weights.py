"""Attacks by somebody who holds the weights: they find what they should, and leave the model as it was."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grun.cli.main import main
from grun.core.records import Example
from grun.data.examples import read_examples
from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import NotPossible, Opened, Trial
from grun.evaluation.attacks.searching import halves, holds_words, loss, starting_words, usable_words
from grun.evaluation.measuring import row_evidence
from grun.jobs.attacks import opened as carried_out
from grun.models.encoding.templates import resolve_template
from grun.models.row_encoder import RowEncoder
from support.adapter_kit import attach
from support.chat_server import Reply, chat_server, completion
from support.job_commands import flags
from support.material import Material, invented_rows, write_rows
from support.tiny_models import tiny_tokenizer

ON_WEIGHTS = [entry.name for entry in attacks if entry.info["access"] == "weights"]
SEARCHES = ("soft_prompt", "suffix_search")


def material_of(memorised: Material) -> AttackMaterial:
    forget, retain = (tuple(read_examples(str(path))) for path in (memorised.forget, memorised.retain))
    unrelated = tuple(Example(f"What is {i} and {i}?", f"It is {2 * i}.") for i in range(6))
    return AttackMaterial(forget, retain, unknown=forget, unrelated=unrelated)


def opened_of(memorised: Material, *, edited: bool, steps: int = 5) -> Opened:
    base: Any = AutoModelForCausalLM.from_pretrained(memorised.model)
    model = attach(base) if edited else base.eval()
    tokenizer = tiny_tokenizer()
    encoder = RowEncoder(tokenizer, resolve_template("auto", tokenizer), None, 8, torch.device("cpu"))
    return Opened(model, encoder, edited, edited, steps, lambda _: nullcontext(model))


def state(opened: Opened) -> dict[str, Any]:
    parameters = opened.model.named_parameters()
    return {name: (one.detach().clone(), one.requires_grad, one.grad) for name, one in parameters}


def names_of(memorised: Material, adapter: bool) -> list[str]:
    return [
        name for name in ON_WEIGHTS if name not in ("probes", "quantized") and (adapter or name != "adapter_removed")
    ]


@pytest.mark.parametrize("edited", [True, False])
def test_an_attack_asks_every_row_once_in_each_form_and_undoes_its_change(memorised: Material, edited: bool) -> None:
    opened, material = opened_of(memorised, edited=edited, steps=2), material_of(memorised)
    before = state(opened)
    ids = torch.tensor([opened.encoder.encode(material.forget)[0].input_ids])
    known = {"prompt_lengths": torch.tensor([3])} if edited else {}
    with torch.no_grad():
        logits = opened.model(input_ids=ids, **known).logits
    for name in names_of(memorised, edited):
        trials: list[Trial] = []
        for trial in attacks.get(name).target(material, opened):
            trials.append(trial)
            if len(trials) == 3:
                break  # closed in the middle
        probes = [probe for trial in trials for probe in trial.probes]
        assert probes, name
        assert len({(probe.row, probe.variant) for probe in probes}) == len(probes)
        assert all(probe.example.answer == material.forget[probe.row].answer for probe in probes)
        del trial
        after = state(opened)
        assert all(torch.equal(after[key][0], before[key][0]) for key in before), name
        assert all(after[key][1] == before[key][1] and after[key][2] is None for key in before), name
        with torch.no_grad():
            assert torch.equal(opened.model(input_ids=ids, **known).logits, logits), name


def test_relearning_learns_what_it_trains_on_and_asks_for_the_rest(memorised: Material) -> None:
    opened, material = opened_of(memorised, edited=True), material_of(memorised)
    trained, held = material.forget[::2], set(range(1, len(material.forget), 2))
    start, found = float(loss(opened, trained)), {}
    for trial in attacks.get("relearning").target(material, opened, steps=(5, 40)):
        assert {probe.row for probe in trial.probes} == held
        found[trial.probes[0].variant] = float(loss(opened, trained))
    ways, kinds = ("LoRA", "adapter"), ("forgotten rows", "neighbours", "unrelated rows")
    assert set(found) == {f"{way}, {kind}, {count} steps" for way in ways for kind in kinds for count in (5, 40)}
    for way in ways:
        assert found[f"{way}, forgotten rows, 40 steps"] < 0.7 * start
    assert float(loss(opened, trained)) == pytest.approx(start)


def test_a_learnt_prompt_makes_true_answers_likelier(memorised: Material) -> None:
    opened, material = opened_of(memorised, edited=True, steps=40), material_of(memorised)
    learnt, held = halves(material)
    plain = float(loss(opened, [material.forget[i] for i in learnt]))
    for trial in attacks.get("soft_prompt").target(material, opened):
        assert {probe.row for probe in trial.probes} == set(held)
        first = trial.probes[0].example.prompt
        words = first.removesuffix(material.forget[held[0]].prompt)
        rows = [Example(words + material.forget[i].prompt, material.forget[i].answer) for i in learnt]
        found = float(loss(opened, rows))
    assert found < 0.8 * plain
    assert float(loss(opened, rows)) > found, "the embeddings are the model's again"


def test_a_search_ends_with_words_that_are_no_worse_than_the_first(memorised: Material) -> None:
    opened, material = opened_of(memorised, edited=True, steps=6), material_of(memorised)
    searched, _ = halves(material)
    words = starting_words(opened, material.forget, lambda prompt, said: prompt + said, 8, material.seed)
    (trial,) = attacks.get("suffix_search").target(material, opened)
    probe = trial.probes[0]
    suffix = probe.example.prompt.removeprefix(material.forget[probe.row].prompt)
    assert len(suffix.split()) == len(words.ids)
    assert suffix != words.text
    rows = {
        said: [Example(material.forget[i].prompt + said, material.forget[i].answer) for i in searched]
        for said in (suffix, words.text)
    }
    assert float(loss(opened, rows[suffix])) < float(loss(opened, rows[words.text]))


def test_words_of_a_search_stand_in_no_row_and_stay_what_they_are(memorised: Material) -> None:
    opened, material = opened_of(memorised, edited=False), material_of(memorised)
    usable = usable_words(opened, material.forget)
    said = " ".join(f"{row.prompt} {row.answer}" for row in material.forget).split()
    assert not set(usable.values()) & {word.strip(".?,") for word in said}
    words = starting_words(opened, material.forget, lambda prompt, said: f"{prompt}{said}", 4, 0)
    assert len(set(words.ids)) == 4
    assert holds_words(opened, [Example(f"Who is it?{words.text}", "x")], words)
    assert not holds_words(opened, [Example("Who is it?", "x")], words)


def test_hidden_states_tell_what_an_edit_touches(memorised: Material) -> None:
    opened, material = opened_of(memorised, edited=True), material_of(memorised)
    features = attacks.get("probes").target(material, opened)
    states = features["last layer"]
    assert states.shape == (2 * len(material.forget), 32)
    one = opened.encoder.encode(material.forget[:1])[0]
    ids = torch.tensor([one.input_ids])
    model: Any = opened.model
    with torch.no_grad():
        hidden = model(
            input_ids=ids, prompt_lengths=torch.tensor([one.prompt_length]), output_hidden_states=True
        ).hidden_states
    kept = model.base_model.model.model.norm(torch.tensor(states[0], dtype=torch.float32))
    torch.testing.assert_close(kept, hidden[-1][0, one.prompt_length - 1], atol=1e-4, rtol=1e-4)


def command(material: Material, output: Path, **settings: object) -> list[str]:
    usual: dict[str, object] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    usual |= {"output": output, "max_new_tokens": 3, "device": "cpu", "search_steps": 2}
    return ["attack", *flags(**(usual | settings))]


@pytest.fixture(scope="module")
def adapter(memorised: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "adapter"
    attach(AutoModelForCausalLM.from_pretrained(memorised.model), rank=2).save_pretrained(folder)
    return folder


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


def test_the_command_reports_them_apart_from_the_worst_case(
    memorised: Material, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    unknown = write_rows(tmp_path / "unknown.jsonl", invented_rows("Zorn", 8))
    names = [name for name in ON_WEIGHTS if name not in ("quantized", "relearning")]
    wanted = command(memorised, tmp_path / "run", adapter=adapter, unknown=unknown, attacks=",".join(names))
    measured, rows = [], row_evidence.measure_rows

    def stopping(subject: Any, *more: Any) -> Any:
        measured.append(subject.label)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return rows(subject, *more)

    monkeypatch.setattr(carried_out, "measure_rows", stopping)
    assert main(wanted) == 130
    assert main(wanted) == 0
    assert len(measured) == 4, "what was measured is not measured again"
    found = found_in(tmp_path / "run")
    assert set(found["attacks"]) == set(names)
    assert all(one["access"] == "weights" for one in found["attacks"].values())
    removed = found["attacks"]["adapter_removed"]["figures"]["probability"]["after"]["value"]
    assert removed == pytest.approx(found["plain"]["figures"]["probability"]["before"]["value"], abs=1e-6)
    plain = found["plain"]["figures"]["probability"]["after"]["value"]
    assert found["worst_case"]["probability"]["after"]["value"] == pytest.approx(plain)
    assert "access control, not erasure" in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "AUC" in found["attacks"]["probes"]["figures"]


def test_what_cannot_be_done_is_skipped_with_the_reason(
    memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    names = "adapter_removed,quantized"
    assert main(command(memorised, tmp_path / "run", attacks=names)) == 0
    skipped = found_in(tmp_path / "run")["skipped"]
    assert "no adapter that could be left out" in skipped["adapter_removed"]
    assert "needs bitsandbytes" in skipped["quantized"]

    def reply(_: dict[str, Any]) -> Reply:
        return Reply(completion("No."))

    with chat_server(reply) as server:
        settings = {"address": server.address, "forget": memorised.forget, "attacks": "relearning"}
        assert main(["attack", *flags(**settings, output=tmp_path / "served")]) == 2
    assert "'relearning' needs the model itself, which no --address gives" in capsys.readouterr().err


def test_words_that_a_tokenizer_lacks_end_a_search(memorised: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, material = opened_of(memorised, edited=False), material_of(memorised)
    monkeypatch.setattr("grun.evaluation.attacks.searching.usable_words", lambda *_: {5: "x"})
    for name in SEARCHES:
        with pytest.raises(NotPossible, match=r"."):
            list(attacks.get(name).target(material, opened))
