"""`grun attack` as a command and from Python: its files, figures, refusals, and going on after an interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import grun
import grun.evaluation.measuring.measure
from grun.cli.main import main
from grun.core.registry import Entry
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.measuring import row_evidence
from grun.jobs.attacks import drawing
from support.adapter_kit import attach
from support.job_commands import flags
from support.material import Material, write_rows
from support.tiny_models import tiny_model, tiny_tokenizer

NAMES = ("case", "few_shot", "prefill", "mention", "after_turn")


def saved_adapter(material: Material, folder: Path, rank: int = 2) -> Path:
    model = AutoModelForCausalLM.from_pretrained(material.model)
    attach(model, rank=rank).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(memorised: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_adapter(memorised, tmp_path_factory.mktemp("edits") / "adapter")


def command(material: Material, output: Path, *more: str, **settings: object) -> list[str]:
    usual: dict[str, object] = {"model": material.model, "forget": material.forget, "retain": material.retain}
    usual |= {"output": output, "rows": 4, "max_new_tokens": 3, "device": "cpu", "attacks": ",".join(NAMES)}
    given = {name: value for name, value in (usual | settings).items() if value is not None}
    return ["attack", *flags(**given), *more]


@pytest.fixture(scope="module")
def run(memorised: Material, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model that was trained on the retain rows alone: here a random one."""
    folder = tmp_path_factory.mktemp("run")
    tiny_model(seed=5).save_pretrained(folder / "retain")
    tiny_tokenizer().save_pretrained(folder / "retain")
    assert main(command(memorised, folder / "run", adapter=adapter, retain_only=folder / "retain")) == 0
    return folder / "run"


def found_in(run: Path) -> dict[str, Any]:
    return json.loads((run / "attacks.json").read_text(encoding="utf-8"))


def probes_in(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "probes.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_attack_has_figures_of_every_subject_with_intervals(run: Path) -> None:
    found = found_in(run)
    assert list(found["attacks"]) == list(NAMES)
    for name, one in (found["attacks"] | {"plain": found["plain"], "ordinary": found["ordinary"]}).items():
        for metric in ("probability", "rouge_l_recall", "extraction_strength"):
            figures = one["figures"][metric]
            assert figures.keys() == {"before", "after", "retain_only"}, name
            for own in figures.values():
                assert own["low"] <= own["value"] <= own["high"]
                assert own["n"] == one["rows"] == 4
        assert one["figures"]["gate_open"]["after"]["value"] is not None
        assert one["figures"]["gate_open"]["before"]["reason"] == "the model has no gated adapter"
        assert ("kept" in one["figures"]) == (one["measures"] == "damage")


def test_figures_are_those_of_the_probes(run: Path) -> None:
    found, probes = found_in(run), probes_in(run)
    for name in (*NAMES, "plain", "ordinary"):
        own = found["attacks"].get(name) or found[name]
        said = [one for one in probes if one["attack"] == name]
        assert len(said) == own["probes"]
        for subject in ("before", "after"):
            by_row: dict[int, list[float]] = {}
            for one in said:
                by_row.setdefault(one["row"], []).append(one[subject]["probability"])
            expected = sum(sum(v) / len(v) for v in by_row.values()) / len(by_row)
            assert own["figures"]["probability"][subject]["value"] == pytest.approx(expected)
        if own["measures"] == "damage":
            after, before = (sum(one[subject]["probability"] for one in said) for subject in ("after", "before"))
            assert own["figures"]["kept"]["after"]["value"] == pytest.approx(after / before)


def test_the_worst_case_is_that_of_each_row_without_begun_answers(run: Path) -> None:
    probes = [one for one in probes_in(run) if one["attack"] in ("plain", "case", "few_shot")]
    worst: dict[int, float] = {}
    for one in probes:
        worst[one["row"]] = max(worst.get(one["row"], 0.0), one["after"]["probability"])
    value = found_in(run)["worst_case"]["probability"]["after"]["value"]
    assert value == pytest.approx(sum(worst.values()) / len(worst))


def noise(material: AttackMaterial) -> list[Probe]:
    """Ask for something that nobody could answer."""
    return [Probe(replace(row, prompt="zzz qqq xxx " * 4), i) for i, row in enumerate(material.forget)]


def test_what_the_target_hardly_answers_says_nothing(memorised: Material, tmp_path: Path) -> None:
    info = {"measures": "leak", "access": "prompt", "needs": ()}
    with attacks.having(Entry("noise", noise, info)):
        assert main(command(memorised, tmp_path / "run", attacks="noise,case")) == 0
    found = found_in(tmp_path / "run")
    plain = found["plain"]["figures"]["probability"]["before"]["value"]
    for name, one in found["attacks"].items():
        assert one["says_nothing"] == (one["figures"]["probability"]["before"]["value"] < plain / 3), name
    assert [name for name, one in found["attacks"].items() if one["says_nothing"]] == ["noise"]
    lines = (tmp_path / "run" / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in lines if "(says nothing)" in line] == ["noise (says nothing)"]


def test_plain_questions_are_measured_as_evaluate_measures_them(memorised: Material, run: Path, tmp_path: Path) -> None:
    rows = memorised.forget.read_text(encoding="utf-8").splitlines()[::2]
    (tmp_path / "four.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    given = flags(model=memorised.model, data=f"forget={tmp_path / 'four.jsonl'}", max_new_tokens=3, device="cpu")
    assert main(["evaluate", *given, "--metrics", "probability", "--no-figures", "--output", str(tmp_path / "e")]) == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())["splits"]["forget"]["metrics"]["probability"]
    assert found_in(run)["plain"]["figures"]["probability"]["before"] == pytest.approx(
        {name: found["before"][name] for name in ("value", "n", "low", "high", "reason")}
    )


def test_all_attacks_are_asked_by_default_and_those_left_out_say_why(memorised: Material, tmp_path: Path) -> None:
    assert main(command(memorised, tmp_path / "run", attacks=None, rows=2)) == 0
    found = found_in(tmp_path / "run")
    usual = {entry.name for entry in attacks if not entry.info.get("on_request")}
    assert set(found["attacks"]) | set(found["skipped"]) == usual
    assert found["skipped"].keys() == {
        *("paraphrases", "passage_cut", "dilution", "aliases", "descriptions"),
        *("told_apart", "probes", "adapter_removed"),
    }
    assert "at least two questions about one subject" in found["skipped"]["descriptions"]
    assert "paraphrased_question" in found["skipped"]["paraphrases"]
    assert "longer than the model's context" in found["skipped"]["dilution"]
    assert found["worst_case"]["probability"].keys() == {"before"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attacks": "few_shots"}, ("unknown attack 'few_shots'. Did you mean 'few_shot'?", "--attacks")),
        ({"attacks": "case,"}, ("unknown attack ''",)),
        ({"attacks": "passage_cut"}, ("--attacks", "'passage_cut' needs rows of running text", "column text")),
        ({"attacks": "case,paraphrases"}, ("'paraphrases' needs a column paraphrased_question",)),
        ({"rows": 0}, ("--rows is 0, expected at least 1",)),
        ({"rows": -3}, ("--rows",)),
        ({"rows": 1, "attacks": "few_shot"}, ("'few_shot' needs at least two rows",)),
        ({"forget": None}, ("--forget is missing",)),
        ({"benchmark": "fictional"}, ("--benchmark and --forget/--retain were both given",)),
        ({"ledger": "l", "adapter": "a"}, ("--adapter and --ledger were both given",)),
        ({"ledger": "no-such-ledger"}, ("no-such-ledger",)),
        ({"model": None}, ("--model is missing",)),
        ({"adapter": "no-such-folder"}, ("no-such-folder",)),
        ({"retain_only": "./no-such-model"}, ("no-such-model",)),
        ({"forget": "no-such-file.jsonl"}, ("no-such-file.jsonl",)),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    memorised: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, settings: Any, words: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command(memorised, tmp_path / "run", **settings)) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(word in said for word in words), said
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "cache-of-the-test"])


def test_a_run_goes_on_with_what_is_measured_and_refuses_other_settings(
    memorised: Material, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wanted = command(memorised, tmp_path / "run", "--no-cache", adapter=adapter)
    measured: list[int] = []
    rows = row_evidence.measure_rows

    def stopping(subject: Any, examples: Any, *more: Any) -> Any:
        measured.append(len(examples))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return rows(subject, examples, *more)

    monkeypatch.setattr(grun.evaluation.measuring.measure, "measure_rows", stopping)
    assert main(wanted) == 130
    assert "the attacks that are measured are kept" in capsys.readouterr().err
    assert len(list((tmp_path / "run" / "evidence" / "before").iterdir())) == 3
    assert not (tmp_path / "run" / "attacks.json").exists()
    assert main(command(memorised, tmp_path / "run", "--no-cache", adapter=adapter, seed=1)) == 2
    assert "--seed was 0, now 1" in capsys.readouterr().err
    assert main(wanted) == 0
    assert len(measured) == 4 + 2 * (len(NAMES) + 2) - 3
    assert main(command(memorised, tmp_path / "whole", "--no-cache", adapter=adapter)) == 0
    for name in ("probes.jsonl", "table.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_changed_adapter_is_another_run(memorised: Material, tmp_path: Path, capsys: Any) -> None:
    saved_adapter(memorised, tmp_path / "a")
    assert main(command(memorised, tmp_path / "run", adapter=tmp_path / "a", attacks="case")) == 0
    saved_adapter(memorised, tmp_path / "a", rank=3)
    assert main(command(memorised, tmp_path / "run", adapter=tmp_path / "a", attacks="case")) == 2
    assert "the content of its data differs" in capsys.readouterr().err


def test_rows_without_answers_and_ordinary_prompts_get_the_models_own(memorised: Material, tmp_path: Path) -> None:
    assert main(command(memorised, tmp_path / "run", retain=None, attacks="mention", rows=3)) == 0
    asked = [one for one in probes_in(tmp_path / "run") if one["attack"] == "mention"]
    assert len(asked) == 6
    assert all(one["before"]["probability"] > 0 for one in asked)


def test_passages_and_odd_texts_pass_through(memorised: Material, tmp_path: Path) -> None:
    texts = [" ".join(f"word{i}{j}" for j in range(12)) for i in range(3)]
    rows = write_rows(tmp_path / "text.jsonl", [{"text": text} for text in texts])
    odd = [
        {"question": q, "answer": a} for q, a in (("Ä? {} %s \\1", "{x}"), ("東京はどこ", "日本"), ("[b]a[/b]", "|"))
    ]
    assert main(command(memorised, tmp_path / "t", forget=rows, attacks=None)) == 0
    assert "passage_cut" in found_in(tmp_path / "t")["attacks"]
    assert main(command(memorised, tmp_path / "o", forget=write_rows(tmp_path / "odd.jsonl", odd), attacks=None)) == 0
    found = found_in(tmp_path / "o")
    assert found["plain"]["figures"]["rouge_l_recall"]["before"]["value"] is None
    assert found["plain"]["figures"]["probability"]["before"]["value"] is not None


def test_a_ledger_is_attacked_as_what_is_in_force(memorised: Material, tmp_path: Path) -> None:
    add = flags(ledger=tmp_path / "l", model=memorised.model, device="cpu", topic_layer="none", steps=3, layers="1,3")
    rows = ["request", "add", str(memorised.forget), "--retain", str(memorised.retain), "--batch-size", "4"]
    assert main([*rows, *add, "--evaluate-every", "2"]) == 0
    assert main(command(memorised, tmp_path / "run", ledger=tmp_path / "l", attacks="case")) == 0
    assert main(["request", "export", str(tmp_path / "a"), "--ledger", str(tmp_path / "l")]) == 0
    assert main(command(memorised, tmp_path / "other", adapter=tmp_path / "a", attacks="case")) == 0
    assert probes_in(tmp_path / "run") == probes_in(tmp_path / "other")
    assert main(command(memorised, tmp_path / "run", ledger=tmp_path / "l", attacks="case")) == 0  # it is complete


def test_from_python_with_a_loaded_model(memorised: Material, adapter: Path, tmp_path: Path, run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(memorised.model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [json.loads(line) for line in memorised.forget.read_text(encoding="utf-8").splitlines()]
    result = grun.attack(
        model, rows, memorised.retain, adapter=adapter, attacks="case", rows=4, max_new_tokens=3, output=tmp_path / "r"
    )
    assert isinstance(result, grun.AttackResult)
    assert result.value("case") == pytest.approx(
        found_in(run)["attacks"]["case"]["figures"]["probability"]["after"]["value"]
    )
    assert result.value("worst_case", "probability", "before") is not None
    assert "| case |" in result.table
    assert model.state_dict().keys() == state.keys()
    with pytest.raises(grun.UserError, match="rows is 0"):
        grun.attack(model, rows, rows=0)


def test_the_document_has_the_figures(memorised: Material, tmp_path: Path, capsys: Any) -> None:
    assert main([*command(memorised, tmp_path / "run", attacks="case", rows=2), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "attack"
    assert document["attacks"]["case"]["probability"]["before"] > 0
    assert document["worst_case"]["probability"]["before"] > 0
    assert Path(document["table"]).is_file()


def test_of_drawn_answers_the_best_counts(memorised: Material, adapter: Path, tmp_path: Path, capsys: Any) -> None:
    wanted = {"adapter": adapter, "attacks": "case", "samples": 5, "rows": 3, "max_new_tokens": 8}
    assert main(command(memorised, tmp_path / "run", temperature=2, **wanted)) == 0
    own = found_in(tmp_path / "run")["attacks"]["sampling"]
    drawn = [one for one in probes_in(tmp_path / "run") if one["attack"] == "sampling"]
    assert (own["rows"], own["probes"], len(drawn)) == (3, 15, 15)
    assert len({one["before"]["answer"] for one in drawn}) > 3
    for subject in ("before", "after"):
        best = [max(one[subject]["rouge_l_recall"] for one in drawn if one["row"] == row) for row in (1, 2, 3)]
        assert own["figures"]["rouge_l_recall"][subject]["value"] == pytest.approx(sum(best) / 3)
    assert own["figures"]["probability"]["after"]["reason"] == "nothing but answers was looked at"
    assert main(command(memorised, tmp_path / "again", "--no-cache", temperature=2, **wanted)) == 0
    assert (tmp_path / "again" / "probes.jsonl").read_bytes() == (tmp_path / "run" / "probes.jsonl").read_bytes()
    assert main(command(memorised, tmp_path / "cold", temperature=0.01, **wanted)) == 0
    cold = [one for one in probes_in(tmp_path / "cold") if one["attack"] in ("sampling", "plain")]
    for row in (1, 2, 3):
        assert len({one["before"]["answer"] for one in cold if one["row"] == row}) == 1
    assert main(command(memorised, tmp_path / "other", address="http://127.0.0.1:9", samples=2)) == 2
    assert "--samples was given with --address" in capsys.readouterr().err


def test_every_leak_attack_is_drawn_for_some_rows_with_its_forms_in_turn(
    memorised: Material, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "DRAWN_ROWS", 2)
    wanted = {"adapter": adapter, "attacks": "case,prefill,mention,boundary", "samples": 4, "max_new_tokens": 8}
    assert main(command(memorised, tmp_path / "run", temperature=2, **wanted)) == 0
    found, probes = found_in(tmp_path / "run")["attacks"], probes_in(tmp_path / "run")
    assert {name for name in found if "sampling" in name} == {"sampling", "sampling_case", "sampling_prefill"}
    assert found["sampling"]["rows"] == 4
    own = [one for one in probes if one["attack"] == "sampling_case"]
    rows = sorted({one["row"] for one in own})
    assert (found["sampling_case"]["rows"], len(rows), len(own)) == (2, 2, 8)
    forms = [[one["variant"] for one in own if one["row"] == row] for row in rows]
    assert {form: forms[0].count(form) for form in forms[0]} == {"upper": 2, "lower": 1, "mixed": 1}
    assert {form: forms[1].count(form) for form in forms[1]} == {"upper": 1, "lower": 2, "mixed": 1}
    assert len({one["after"]["answer"] for one in own}) > 3
    best = [max(one["after"]["rouge_l_recall"] for one in own if one["row"] == row) for row in rows]
    assert found["sampling_case"]["figures"]["rouge_l_recall"]["after"]["value"] == pytest.approx(sum(best) / 2)
    table = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "| sampling_case (best answer) |" in table.replace("\\", "")
    assert main(command(memorised, tmp_path / "again", "--no-cache", temperature=2, **wanted)) == 0
    assert (tmp_path / "again" / "probes.jsonl").read_bytes() == (tmp_path / "run" / "probes.jsonl").read_bytes()


def test_a_whole_model_is_attacked_as_well(memorised: Material, tmp_path: Path) -> None:
    whole = tmp_path / "run" / "model"
    shutil.copytree(memorised.model, whole)
    for named in (whole, whole.parent):
        words = ["attack", "--model", memorised.model, "--adapter", named, "--forget", memorised.forget, "--rows", 2]
        words += [
            "--attacks",
            "case",
            "--device",
            "cpu",
            "--max-new-tokens",
            2,
            "--output",
            tmp_path / f"out-{named.name}",
        ]
        assert main([str(word) for word in words]) == 0
