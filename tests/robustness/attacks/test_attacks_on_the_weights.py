"""Attacks by somebody who holds the weights: what they change, what they find, and that they leave the model as it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grun.cli.main import main
from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import NotPossible, Opened
from grun.evaluation.attacks.searching import loss
from grun.evaluation.measuring import row_evidence
from grun.jobs.attacks import opened as carried_out
from grun.models.encoding.templates import resolve_template
from grun.models.forward import gates_of_last_call, language_model, observed_outputs
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.base_model import decoder_layers
from support.adapter_kit import attach
from support.chat_server import Reply, chat_server, completion
from support.job_commands import flags
from support.material import Material, invented_rows, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer

BY_WEIGHTS = [entry for entry in attacks if entry.info["access"] == "weights"]
FEW: dict[str, dict[str, Any]] = {"relearning": {"steps": (1, 2)}}
CHANGING = [entry for entry in BY_WEIGHTS if entry.info["measures"] == "leak"]


def rows_of(file: Path) -> tuple[Example, ...]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return tuple(Example(line["question"], line["answer"]) for line in lines)


@pytest.fixture
def material(memorised: Material) -> AttackMaterial:
    forget, ordinary = rows_of(memorised.forget), rows_of(memorised.retain)[:6]
    unknown = tuple(Example(row["question"], row["answer"]) for row in invented_rows("Zorn", 6))
    return AttackMaterial(forget, ordinary, unknown=unknown, unrelated=ordinary[:3])


def opened(memorised: Material, *, adapted: bool = True, steps: int = 3, **options: Any) -> Opened:
    base = AutoModelForCausalLM.from_pretrained(memorised.model).eval()
    tokenizer = tiny_tokenizer()
    encoder = RowEncoder(tokenizer, resolve_template("auto", tokenizer), 64, 8, torch.device("cpu"))

    def requantized(width: str) -> Any:
        raise NotPossible("nothing can be loaded")

    return Opened(attach(base, **options) if adapted else base, encoder, adapted, adapted, steps, requantized)


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    parameters = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    hooks = {name: len(m._forward_hooks) for name, m in model.named_modules()}
    training = [name for name, m in model.named_modules() if m.training]
    return {"parameters": parameters, "hooks": hooks, "training": training}


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("entry", CHANGING, ids=lambda entry: entry.name)
def test_a_model_is_as_it_was_after_an_attack(entry: Any, adapted: bool, memorised: Material, material: Any) -> None:
    one = opened(memorised, adapted=adapted)
    for parameter in list(one.model.parameters())[::3]:
        parameter.requires_grad = False
    values = {name: value.clone() for name, value in one.model.state_dict().items()}
    before = state_of(one.model)
    try:
        trials = list(entry.target(material, one, **FEW.get(entry.name, {})))
    except NotPossible:
        assert entry.name == "quantized" or (entry.name == "adapter_removed" and not adapted)
    else:
        keys = [(probe.row, probe.variant) for trial in trials for probe in trial.probes]
        assert len(set(keys)) == len(keys) > 0
        assert all(probe.example.answer == material.forget[probe.row].answer for t in trials for probe in t.probes)
    for stop in (1, 2):
        attack = entry.target(material, one, **FEW.get(entry.name, {}))
        for _ in range(stop if entry.name == "relearning" else 0):
            next(attack)
        attack.close()
    assert state_of(one.model) == before
    assert all(torch.equal(value, values[name]) for name, value in one.model.state_dict().items())


def test_what_is_trained_on_is_not_asked(memorised: Material, material: AttackMaterial) -> None:
    trials = list(attacks.get("relearning").target(material, opened(memorised), steps=(1, 2)))
    assert len(trials) == 12
    for trial in trials:
        assert [probe.row for probe in trial.probes] == [1, 3, 5, 7]


def test_an_edit_behind_a_shut_gate_is_trained_by_nothing(memorised: Material, material: AttackMaterial) -> None:
    one = opened(memorised, gate_layer=1)
    for name, tensor in one.model.state_dict().items():
        if name.endswith("threshold"):
            tensor.fill_(1e9)
    plain = float(loss(one, material.forget))
    for trial in attacks.get("relearning").target(material, one, steps=(3,)):
        changed = float(loss(one, material.forget)) != plain
        assert changed == trial.probes[0].variant.startswith("LoRA")


@pytest.fixture(scope="module")
def retain_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retain-only")
    tiny_model(seed=5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(memorised: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edits") / "adapter"
    attach(AutoModelForCausalLM.from_pretrained(memorised.model)).save_pretrained(folder)
    return folder


def command(material: Material, output: Path, *more: str, **settings: object) -> list[str]:
    usual: dict[str, object] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    usual |= {"output": output, "max_new_tokens": 4, "device": "cpu", "search_steps": 3}
    given = {name: value for name, value in (usual | settings).items() if value is not None}
    return ["attack", *flags(**given), *more]


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


def probes_in(run: Path, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["attack"] == name]


def value(run: Path, name: str, subject: str, variant: str | None = None) -> float:
    """Probability of the answers."""
    one = found_in(run)["attacks"][name]
    found: float = (
        one["figures"]["probability"][subject]["value"]
        if variant is None
        else one["variants"][variant]["probability"][subject]
    )
    return found


@pytest.fixture(scope="module")
def silenced(memorised: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter without a gate that was trained to give other answers to the rows to forget."""
    folder = tmp_path_factory.mktemp("silenced")
    given = flags(model=memorised.model, forget=memorised.forget, retain=memorised.retain, output=folder / "run")
    more = flags(adapt="grun", gate="none", objective="npo", steps=20, learning_rate=0.05, batch_size=4, device="cpu")
    assert main(["unlearn", *given, *more, "--no-fit-gate-first"]) == 0
    return folder / "run" / "adapter"


@pytest.fixture(scope="module")
def run(memorised: Material, silenced: Path, retain_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All attacks on the weights in one run."""
    folder = tmp_path_factory.mktemp("all")
    unknown = write_rows(folder / "unknown.jsonl", invented_rows("Zorn", 8))
    names = ",".join(entry.name for entry in BY_WEIGHTS)
    given: dict[str, Any] = {"adapter": silenced, "retain_only": retain_only, "unknown": unknown, "attacks": names}
    assert main(command(memorised, folder / "run", search_steps=12, **given)) == 0
    return folder / "run"


def test_every_attack_has_figures_of_the_models_that_undergo_it(run: Path) -> None:
    found = found_in(run)["attacks"]
    assert set(found) | set(found_in(run)["skipped"]) == {entry.name for entry in BY_WEIGHTS}
    for entry in BY_WEIGHTS:
        if entry.name in found_in(run)["skipped"]:
            assert entry.name == "quantized"
            continue
        one, metric = found[entry.name], "AUC" if entry.info["measures"] == "recognition" else "probability"
        others = {*entry.info.get("references", ()), *entry.info.get("asks", ())}
        assert (one["access"], one["left_out"]) == ("weights", 0)
        assert one["figures"][metric].keys() == {"after", *others}, entry.name
        for figure in one["figures"][metric].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] == (16 if metric == "AUC" else one["rows"])


def test_without_its_adapter_the_model_gives_everything_back(run: Path) -> None:
    plain = found_in(run)["plain"]["figures"]["probability"]
    assert plain["after"]["value"] < 0.5 * plain["before"]["value"]
    assert value(run, "adapter_removed", "after") == pytest.approx(plain["before"]["value"], rel=1e-4)
    table = (run / "table.md").read_text(encoding="utf-8")
    assert "access control, not erasure" in table


def test_a_little_training_brings_back_what_was_not_trained_on(run: Path) -> None:
    rows = {line["row"] for line in probes_in(run, "relearning")}
    assert rows == {2, 4, 6, 8}
    before = [line["after"]["probability"] for line in probes_in(run, "plain") if line["row"] in rows]
    variants = found_in(run)["attacks"]["relearning"]["variants"]
    assert list(variants) == [
        f"{way}, {what}, {steps} steps"
        for way in ("LoRA", "adapter")
        for what in ("forgotten rows", "neighbours", "unrelated rows")
        for steps in (20, 60)
    ]
    for way, least in (("LoRA", 4.0), ("adapter", 1.2)):
        variant = f"{way}, forgotten rows, 60 steps"
        back = value(run, "relearning", "after", variant)
        assert back > least * sum(before) / len(before), variant
        assert back > value(run, "relearning", "retain_only", variant) + 0.1, variant
    two_names = [value(run, "relearning", "retain_only", f"{way}, neighbours, 20 steps") for way in ("LoRA", "adapter")]
    assert two_names[0] == two_names[1]
    table = (run / "table.md").read_text(encoding="utf-8")
    assert all(f"relearning: {variant} |" in table for variant in variants)


def test_attacks_on_the_weights_are_not_in_the_worst_case(run: Path) -> None:
    found = found_in(run)
    worst, plain = found["worst_case"]["probability"], found["plain"]["figures"]["probability"]
    assert worst["after"]["value"] == pytest.approx(plain["after"]["value"])
    assert value(run, "adapter_removed", "after") > worst["after"]["value"]


def test_fewer_bits_are_measured_before_and_after(run: Path) -> None:
    pytest.importorskip("bitsandbytes")
    assert list(found_in(run)["attacks"]["quantized"]["variants"]) == ["8bit", "4bit"]
    plain = found_in(run)["plain"]["figures"]["probability"]
    for subject in ("before", "after"):
        own = [value(run, "quantized", subject, bits) for bits in ("8bit", "4bit")]
        assert own[0] == pytest.approx(plain[subject]["value"], abs=0.05)
        assert own[0] != own[1]


def test_searches_find_what_makes_the_answers_likelier(run: Path, memorised: Material, material: Any) -> None:
    for name in ("soft_prompt", "suffix_search"):
        assert {line["row"] for line in probes_in(run, name)} == {2, 4, 6, 8}
    lines = probes_in(run, "suffix_search")
    assert all(
        "prompt" not in line["before"] for line in lines
    )  # it is asked the words that were found for the other one
    assert all(line["retain_only"]["prompt"] != line["prompt"] for line in lines)
    added = {tuple(line["prompt"].rsplit(" ", 8)[1:]) for line in lines}
    assert len(added) == 1
    assert all(word.isalpha() for word in next(iter(added)))
    with torch.no_grad():
        found = [suffix_loss(memorised, material, steps) for steps in (1, 25)]
    assert found[1] < found[0]


def suffix_loss(memorised: Material, material: AttackMaterial, steps: int) -> float:
    one = opened(memorised, steps=steps)
    (trial,) = attacks.get("suffix_search").target(material, one)
    words = trial.probes[0].example.prompt.removeprefix(material.forget[1].prompt)
    return float(loss(one, [replace(row, prompt=row.prompt + words) for row in material.forget[::2]]))


def test_a_soft_prompt_is_learnt_against_the_edit_and_against_the_gate(memorised: Material, material: Any) -> None:
    found: dict[str, tuple[float, float]] = {}
    one = opened(memorised, steps=30, gate_layer=1)
    rows = [0, 2, 4, 6]
    for trial in attacks.get("soft_prompt").target(material, one):
        prefix = trial.probes[0].example.prompt.removesuffix(material.forget[1].prompt)
        learnt = [replace(material.forget[i], prompt=prefix + material.forget[i].prompt) for i in rows]
        value = float(loss(one, learnt))
        gates = gates_of_last_call(one.model)
        assert gates is not None
        found[trial.probes[0].variant] = value, float(gates[0].mean())
    plain = float(loss(one, [replace(material.forget[i], prompt=prefix + material.forget[i].prompt) for i in rows]))
    edit, gate = found["against the edit"], found["against the gate"]
    assert edit[0] < plain
    assert gate[1] < edit[1]
    ungated = attacks.get("soft_prompt").target(material, opened(memorised, gate="none"))
    assert [trial.probes[0].variant for trial in ungated] == ["against the edit"]


def test_probes_read_the_states_above_the_edits_at_the_end_of_the_prompt(memorised: Material, material: Any) -> None:
    one = opened(memorised)
    layers = decoder_layers(language_model(one.model))[1]
    found = attacks.get("probes").target(material, one)["last layer"]
    assert found.shape == (14, 32)
    for i, row in enumerate([*material.forget, *material.unknown]):
        (encoded,) = one.encoder.encode([row])
        ids = torch.tensor([encoded.input_ids[: encoded.prompt_length]])
        states: list[torch.Tensor] = []
        with torch.no_grad(), observed_outputs(layers[-1], states):
            one.model(input_ids=ids, prompt_lengths=torch.tensor([ids.shape[1]]))
        assert found[i] == pytest.approx(states[0][0, -1].numpy(), abs=1e-4)
    plain = attacks.get("probes").target(material, replace(one, adapters=False))["last layer"]
    assert abs(plain - found).max() > 0.01


def test_an_interrupted_run_carries_no_finished_attack_out_again(
    memorised: Material, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried: list[str] = []
    measured = row_evidence.measure_rows

    def counting(subject: Any, *more: Any) -> Any:
        carried.append(subject.label)
        if len(carried) == 2:
            raise KeyboardInterrupt
        return measured(subject, *more)

    wanted = {"adapter": adapter, "attacks": "adapter_removed,suffix_search,soft_prompt"}
    monkeypatch.setattr(carried_out, "measure_rows", counting)
    assert main(command(memorised, tmp_path / "run", **wanted)) == 130
    assert main(command(memorised, tmp_path / "run", search_steps=4, **wanted)) == 2  # other settings
    assert main(command(memorised, tmp_path / "run", **wanted)) == 0
    assert len(carried) == 5 - (len(found_in(tmp_path / "run")["attacks"]["soft_prompt"]["variants"]) == 1)
    assert main(command(memorised, tmp_path / "whole", **wanted)) == 0
    for name in ("probes.jsonl", "table.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


LINE = {"row": 0, "variant": "", "prompt": "x"}
CHANGED = [
    LINE | one for one in ({"row": 99}, {"row": -1}, {"row": 0.5}, {"variant": 1}, {"prompt": None}, {"prompt": 1})
]


@pytest.mark.parametrize("damage", ["", "{", "[]\n", "\x00\n", *(f"{json.dumps(line)}\n" * 3 for line in CHANGED)])
def test_a_damaged_record_of_an_attack_is_made_again(
    damage: str, memorised: Material, adapter: Path, tmp_path: Path
) -> None:
    wanted = command(memorised, tmp_path / "run", adapter=adapter, attacks="adapter_removed", rows=3, max_new_tokens=1)
    assert main(wanted) == 0
    before = (tmp_path / "run" / "probes.jsonl").read_bytes()
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"complete": False}), encoding="utf-8")
    (asked,) = (tmp_path / "run" / "evidence" / "after").glob("*.found.jsonl")
    whole = asked.read_text(encoding="utf-8")
    asked.write_text(damage, encoding="utf-8")
    assert main(wanted) == 0
    assert asked.read_text(encoding="utf-8") == whole
    assert (tmp_path / "run" / "probes.jsonl").read_bytes() == before


def test_behind_an_address_they_are_left_out_with_the_reason(
    memorised: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return Reply(completion("I do not know."))

    with chat_server(reply) as server:
        given = {"address": server.address, "forget": memorised.forget, "retain": memorised.retain, "rows": 2}
        assert main(["attack", *flags(**given, output=tmp_path / "run")]) == 0
        assert main(["attack", *flags(**given, attacks="case,relearning", output=tmp_path / "other")]) == 2
    assert (
        "needs the model itself, which no --address gives" in found_in(tmp_path / "run")["skipped"]["adapter_removed"]
    )
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--attacks: 'relearning' needs the model itself, which no --address gives." in said
    assert not (tmp_path / "other").exists()


def test_a_whole_model_has_no_adapter_to_leave_out_and_is_attacked_all_the_same(
    memorised: Material, tmp_path: Path
) -> None:
    shutil.copytree(memorised.model, tmp_path / "whole" / "model")
    wanted = {"adapter": tmp_path / "whole", "rows": 4, "attacks": "adapter_removed,suffix_search,soft_prompt"}
    assert main(command(memorised, tmp_path / "run", **wanted)) == 0
    found = found_in(tmp_path / "run")
    assert list(found["skipped"].items()) == [("adapter_removed", "the model has no adapter that could be left out")]
    assert found["attacks"]["soft_prompt"]["variants"].keys() == {"against the edit"}


def test_what_cannot_be_done_is_left_out_with_the_reason(
    memorised: Material, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None)
    long = [{"question": f"{'word ' * 60} {i}", "answer": "x"} for i in range(6)]
    unknown = write_rows(tmp_path / "unknown.jsonl", long)
    given = {"adapter": adapter, "unknown": unknown, "attacks": "quantized,probes,suffix_search", "max_length": 26}
    assert main(command(memorised, tmp_path / "run", **given)) == 0
    found = found_in(tmp_path / "run")["skipped"]
    assert found.keys() == {"quantized", "probes", "suffix_search"}
    assert "bitsandbytes" in found["quantized"]
    assert found["probes"] == "0 rows of --unknown fit into the model's context, and 4 are needed"
    assert "leave room for more words" in found["suffix_search"]


def test_a_model_to_compare_with_that_cannot_undergo_the_same_is_left_out_alone(
    memorised: Material, adapter: Path, retain_only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = attacks.get("suffix_search")

    def picky(material: AttackMaterial, one: Opened) -> Any:
        if not one.adapters:
            raise NotPossible("this one cannot")
        yield from entry.target(material, one)

    with attacks.having(replace(entry, name="picky", target=picky)):
        given = {"adapter": adapter, "retain_only": retain_only, "attacks": "picky", "rows": 4}
        assert main(command(memorised, tmp_path / "run", **given)) == 0
    found = found_in(tmp_path / "run")
    assert found["attacks"]["picky"]["figures"]["probability"].keys() == {"before", "after"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"search_steps": 0}, ("--search-steps is 0, expected at least 1",)),
        ({"search_steps": -1}, ("--search-steps",)),
        ({"search_steps": 2_000_000}, ("--search-steps is 2000000",)),
        ({"attacks": "relearn"}, ("unknown attack 'relearn'. Did you mean 'relearning'?",)),
        ({"attacks": "relearning", "rows": 1}, ("'relearning' needs at least two rows to forget",)),
        ({"attacks": "probes"}, ("'probes' needs at least four rows to forget", "--unknown")),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    memorised: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Any, words: Any
) -> None:
    assert main(command(memorised, tmp_path / "run", **settings)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert not (tmp_path / "run").exists()
