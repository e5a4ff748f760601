"""`grun calibrate --paraphrases --miss-rate`: what is bounded and kept, on which rows, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import grun
from grun.cli.main import main
from grun.data.examples import read_examples
from grun.models.encoding.templates import resolve_template
from grun.models.gates.calibration import logits_of_prompts
from grun.models.gates.features import gates_of, thresholds_of
from grun.models.gates.guarantee import Guarantee, upper_bound
from grun.models.gates.misses import Paraphrases
from grun.models.loading.pretrained import load_adapter, load_model_and_tokenizer
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate
from grun.requests.ledger import LedgerState
from support.material import Material, invented_rows, write_rows
from support.topic_kit import few_shipped_prompts

NAMES = ("Brisela Quont", "Tavro Imbrel", "Oskia Dwarne", "Velmi Partusk", "Jorund Acklaby", "Ninive Skolt")
TRAINING = ["--steps", "1", "--batch-size", "4", "--device", "cpu", "--layers", "1,3"]
TEXT = ["--topic-layer", "none"]  # no gate beside the one that reads text
PROMISE = ["--alpha", "0.1", "--delta", "0.1", "--device", "cpu"]


def rows(words: str, count: int, names: Iterable[str] = NAMES) -> list[dict[str, str]]:
    """Prompts about the names in turn, each with a number of its own."""
    known = list(names)
    return [{"prompt": f"{words} {known[i % len(known)]}, for page {i} of the book"} for i in range(count)]


@pytest.fixture(scope="module")
def folder(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, and adapters: with a gate that knows the names, one that knows them half, and one for topics beside that."""
    where = tmp_path_factory.mktemp("misses")
    asked = {"Where was {} born?": "{} was born in Lund.", "Who taught {}?": "Nobody taught {} to paint."}
    about = [(name, question, answer) for question, answer in asked.items() for name in NAMES]
    forget = [{"question": q.format(name), "answer": a.format(name)} for name, q, a in about]
    write_rows(where / "forget.jsonl", forget)
    named = [{**row, "subject": name} for row, (name, _, _) in zip(forget, about, strict=True)]
    write_rows(where / "named.jsonl", named)
    write_rows(where / "normal.jsonl", [{"prompt": row["question"]} for row in invented_rows("calm", 60)])
    write_rows(where / "other_words.jsonl", rows("Tell me the birthplace of", 60))
    write_rows(where / "unnamed.jsonl", rows("Tell me the birthplace of", 60, ["that painter", "their sister"]))
    given = ["--model", str(material.model), *TRAINING, "--retain", str(material.retain)]
    for name, file, *more in (("text", "named", *TEXT), ("weak", "forget", *TEXT), ("topics", "forget")):
        with pytest.MonkeyPatch.context() as patch:
            few_shipped_prompts(patch)
            rows_of = ["--forget", str(where / f"{file}.jsonl"), "--output", str(where / name)]
            assert main(["unlearn", *given, *rows_of, *more]) == 0
    return where


def calibrate(material: Material, folder: Path, output: Path, *more: str, adapter: str = "text") -> int:
    given = ["--model", str(material.model), "--adapter", str(folder / adapter), "--output", str(output), *PROMISE]
    return main(["calibrate", *given, "--normal", str(folder / "normal.jsonl"), *more])


def files(*names: Path) -> list[str]:
    return [word for name in names for word in ("--paraphrases", str(name))]


def record(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "calibration.json").read_text())
    return found


def logits(material: Material, adapter: Path, file: Path) -> tuple[torch.Tensor, Any]:
    base, tokenizer = load_model_and_tokenizer(str(material.model), device="cpu")
    model = load_adapter(base, str(adapter))
    reading = RowEncoder(tokenizer, resolve_template("auto", tokenizer), None, 4, torch.device("cpu"))
    return logits_of_prompts(model, reading, read_examples(str(file), need_answers=False)), model


def shut(logits_NG: torch.Tensor, threshold_G: torch.Tensor) -> torch.Tensor:
    return (logits_NG <= threshold_G).all(1)


def test_a_bound_leaves_thresholds_as_they_are(
    material: Material, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = files(folder / "other_words.jsonl", folder / "unnamed.jsonl")
    assert calibrate(material, folder, tmp_path / "plain") == 0
    capsys.readouterr()
    assert calibrate(material, folder, tmp_path / "bounded", *both) == 0
    said = " ".join(capsys.readouterr().err.split())
    plain, found = record(tmp_path / "plain"), record(tmp_path / "bounded")
    missed = found.pop("paraphrases_missed")
    assert {name: found[name] for name in plain if name != "machine"} == {
        name: plain[name] for name in plain if name != "machine"
    }
    assert found.keys() == plain.keys()
    assert "paraphrases_missed" not in plain
    counts = []
    for file in (folder / "other_words.jsonl", folder / "unnamed.jsonl"):
        logits_NG, model = logits(material, tmp_path / "bounded", file)
        counts.append(int(shut(logits_NG, thresholds_of(model)).sum()))
    assert counts == [0, 60], "the names open the gate, and nothing else"
    assert missed == {"missed": 60, "prompts": 120, "share": 0.5, "bound": upper_bound(60, 120, 0.1)}
    assert "60 of 120 paraphrases open no gate (50.00 %)" in said
    assert f"with the same confidence, at most {missed['bound']:.3g} of all such prompts open none" in said


def test_a_rate_that_is_kept_already_changes_no_threshold(material: Material, folder: Path, tmp_path: Path) -> None:
    assert calibrate(material, folder, tmp_path / "plain") == 0
    words = files(folder / "other_words.jsonl")
    assert calibrate(material, folder, tmp_path / "kept", *words, "--miss-rate", "0.1") == 0
    plain, found = record(tmp_path / "plain"), record(tmp_path / "kept")
    assert found["thresholds"] == plain["thresholds"]
    assert found["paraphrases_missed"] == {"missed": 0, "prompts": 30, "share": 0.0, "bound": upper_bound(0, 30, 0.1)}


@pytest.mark.parametrize("adapter", ["weak", "topics"])
def test_a_rate_takes_the_highest_thresholds_that_keep_it(
    material: Material, folder: Path, tmp_path: Path, adapter: str
) -> None:
    file, output = folder / "other_words.jsonl", tmp_path / "out"
    assert calibrate(material, folder, tmp_path / "plain", *files(file), adapter=adapter) == 0
    assert record(tmp_path / "plain")["paraphrases_missed"]["share"] > 0.2
    assert calibrate(material, folder, output, *files(file), "--miss-rate", "0.2", adapter=adapter) == 0
    found, misses = record(output), Guarantee(0.2, 0.1)
    all_NG, model = logits(material, output, file)
    kinds = {type(gate) for _, gate in gates_of(model)}
    assert kinds == ({LexicalGate} if adapter == "weak" else {LexicalGate, TopicGate})
    prompts = read_examples(str(file), need_answers=False)
    set_on, apart = Paraphrases(prompts, 0.2).halves()
    assert (found["miss_rate"], found["paraphrases_set_on"]) == (0.2, 30)
    assert found["paraphrases_allowed_missed"] == misses.allowed(30) == 2
    threshold_G, place_G = thresholds_of(model), torch.tensor(found["places"])
    assert threshold_G.tolist() == found["thresholds"]
    margin_G = threshold_G - place_G
    torch.testing.assert_close(margin_G, margin_G[:1].expand_as(margin_G), atol=0.05, rtol=0.01)
    is_set_on = torch.tensor([row in set_on for row in prompts])
    assert int(shut(all_NG[is_set_on], threshold_G).sum()) <= 2
    higher_G = threshold_G + 2 * (1e-3 * (1 + threshold_G.abs()) + torch.tensor(found["deviations"]))
    assert int(shut(all_NG[is_set_on], higher_G).sum()) > 2, "a higher threshold would miss more"
    missed = found["paraphrases_missed"]
    assert missed["prompts"] == len(apart) == 30
    assert missed["bound"] == upper_bound(missed["missed"], 30, 0.1)
    if not any(found["deviations"]):
        assert missed["missed"] == int(shut(all_NG[~is_set_on], threshold_G).sum())
    normal_NG, _ = logits(material, output, folder / "normal.jsonl")
    assert int((~shut(normal_NG, threshold_G)).sum()) <= found["normal_prompts_allowed_open"]


def test_bounds_that_contradict_are_refused_with_values_that_do_not(
    material: Material, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_rows(tmp_path / "mixed.jsonl", rows("Tell me the birthplace of", 60, [*NAMES, "him", "her", "a cat"]))
    output = tmp_path / "out"
    assert calibrate(material, folder, output, *files(few)) == 0
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    for place, more in ((output, ["--overwrite"]), (tmp_path / "new", [])):
        capsys.readouterr()
        assert calibrate(material, folder, place, *files(few), "--miss-rate", "0.1", *more) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        numbers = r"let up to (\d+) of 30 --paraphrases pass \(bound ([0-9.]+)\).* up to 60 of 60 --normal prompts"
        assert re.search(r"--miss-rate 0\.1 and --alpha 0\.1 cannot both be kept\. .*" + numbers, said)
        assert "Traceback" not in said
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before
    assert not (tmp_path / "new").exists()
    (instead,) = re.findall(r"Give --miss-rate ([0-9.]+), or learn", said)
    assert calibrate(material, folder, tmp_path / "new", *files(few), "--miss-rate", instead) == 0
    assert record(tmp_path / "new")["normal_open"]["open"] <= 2
    nothing = files(folder / "unnamed.jsonl")
    assert calibrate(material, folder, tmp_path / "none", *nothing, "--miss-rate", "0.1") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "30 of 30 --paraphrases pass (bound 1)" in said
    assert "Give" not in said


def test_rows_that_a_gate_or_threshold_was_made_from_do_not_count(
    material: Material, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        capsys.readouterr()
        assert calibrate(material, folder, tmp_path / "never", *more) == 2
        assert not (tmp_path / "never").exists()
        return " ".join(capsys.readouterr().err.split())

    none = "--paraphrases has 0 prompts that neither a gate nor a threshold is made from; at least 1 is needed"
    for file, why in (
        (folder / "forget.jsonl", "a row that a gate was learnt with (12)"),
        (material.retain, "a row that a gate was learnt with (24)"),
        (folder / "normal.jsonl", "a prompt that thresholds are set on (60)"),
    ):
        said = refused(*files(file))
        assert none in said
        assert why in said
    shouted = [{"prompt": f"  WHERE was {name}   BORN?"} for name in NAMES]
    assert none in refused(*files(write_rows(tmp_path / "shouted.jsonl", shouted)))
    words = folder / "other_words.jsonl"
    assert none in refused(*files(words), "--forget", str(words)), "the places of gates are set by --forget"
    twice = write_rows(tmp_path / "twice.jsonl", rows("Tell me the birthplace of", 40) * 2)
    said = refused(*files(twice), "--miss-rate", "0.1")
    assert "40 of 80 paraphrases are left out: given before (40)" in said
    assert "--paraphrases has 40 prompts that neither a gate nor a threshold is made from, too few" in said
    some = write_rows(tmp_path / "some.jsonl", [*rows("Tell me of", 3), {"prompt": f"Who taught {NAMES[0]}?"}])
    assert calibrate(material, folder, tmp_path / "out", *files(some)) == 0
    assert record(tmp_path / "out")["paraphrases_missed"]["prompts"] == 3
    shutil.copytree(folder / "text" / "adapter", tmp_path / "bare")
    capsys.readouterr()
    assert calibrate(material, tmp_path, tmp_path / "b", "--normal", str(folder / "normal.jsonl"), adapter="bare") == 2
    assert calibrate(material, folder, tmp_path / "b", *files(some), adapter=str(tmp_path / "bare")) == 0
    assert "make sure that --paraphrases holds none of them" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            ["--miss-rate", "0.1"],
            "--paraphrases is missing: --miss-rate needs a file of prompts to forget in other words",
        ),
        (["WORDS", "--miss-rate", "0.05"], "60 prompts, too few for --miss-rate 0.05 with --delta 0.1: 90 are needed"),
        (
            ["WORDS", "--miss-rate", "0.1", "--delta", "0.01"],
            "too few for --miss-rate 0.1 with --delta 0.01: 88 are needed",
        ),
        (["WORDS", "WORDS"], "other_words.jsonl'; give every prompt once"),
        (["--paraphrases", "no-such.jsonl"], "no-such.jsonl"),
        *(
            (["WORDS", "--miss-rate", value], "--miss-rate")
            for value in ("0", "-0.1", "0.6", "1", "nan", "inf", "many")
        ),
    ],
)
def test_wrong_input_is_one_line(
    material: Material,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    given = [part for one in more for part in (files(folder / "other_words.jsonl") if one == "WORDS" else [one])]
    code = calibrate(material, folder, tmp_path / "never", *given)
    said = capsys.readouterr().err
    assert code == 2
    assert words in " ".join(said.split())
    assert "Traceback" not in said
    assert not (tmp_path / "never").exists()


def test_as_many_as_are_needed_are_enough(material: Material, folder: Path, tmp_path: Path) -> None:
    enough = write_rows(tmp_path / "enough.jsonl", rows("Tell me the birthplace of", 44))
    assert calibrate(material, folder, tmp_path / "out", *files(enough), "--miss-rate", "0.1") == 0
    found = record(tmp_path / "out")
    assert (found["paraphrases_set_on"], found["paraphrases_allowed_missed"]) == (22, 0)


def test_other_paraphrases_are_another_run(
    material: Material, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path / "words.jsonl", rows("Tell me the birthplace of", 6))
    for said, code in (("", 0), ("is complete already", 0), ("the content of its data differs", 2)):
        capsys.readouterr()
        assert calibrate(material, folder, tmp_path / "out", *files(file)) == code
        assert said in " ".join(capsys.readouterr().err.split())
        if said:
            write_rows(file, rows("Tell me the birthplace of", 5))


def test_a_ledger_records_the_bound_and_says_when_it_is_gone(
    material: Material, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (folder / "forget.jsonl").read_text().splitlines(keepends=True)
    model, ledger = ["--model", str(material.model)], ["--ledger", str(tmp_path / "ledger")]
    for number in (0, 1):  # every second name is a request
        half = tmp_path / f"half{number}.jsonl"
        half.write_text("".join(lines[number::2]))
        more = ["--retain", str(material.retain), "--topic-layer", "none", *TRAINING]
        assert main(["request", "add", str(half), *model, *ledger, *more]) == 0
    words = ["--normal", str(folder / "normal.jsonl"), *files(folder / "other_words.jsonl")]
    again = ["request", "calibrate", *model, *ledger, *PROMISE, *words]
    before = (tmp_path / "ledger" / "ledger.json").read_bytes()
    unnamed = files(folder / "unnamed.jsonl")
    assert main([*again[:-2], *unnamed, "--miss-rate", "0.1"]) == 2
    assert "cannot both be kept" in capsys.readouterr().err
    assert main([*again[:-2], *files(tmp_path / "half0.jsonl")]) == 2
    assert "a row that a gate was learnt with (6)" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "ledger" / "ledger.json").read_bytes() == before
    assert main([*again, "--miss-rate", "0.1", "--forget", str(folder / "other_words.jsonl")]) == 0
    kept = LedgerState.read(tmp_path / "ledger").calibration
    assert kept is not None
    assert kept.record["miss_rate"] == 0.1
    assert kept.record["paraphrases_missed"]["prompts"] == 30
    assert kept.miss_bound == kept.record["paraphrases_missed"]["bound"]
    capsys.readouterr()
    bound = f"at most {kept.miss_bound:.3g} of prompts to forget in other words open none"
    assert main(["request", "list", *ledger]) == 0
    assert bound in " ".join(capsys.readouterr().out.split())
    for change, gone in (("suspend", True), ("resume", False), ("withdraw", True)):
        assert main(["request", change, "r0001", *ledger]) == 0
        assert ("was measured with r0001, now out of force" in " ".join(capsys.readouterr().err.split())) is gone
        assert main(["request", "list", *ledger]) == 0
        assert (bound in " ".join(capsys.readouterr().out.split())) is not gone
    assert main([*again]) == 0
    assert record_of(tmp_path / "ledger")["paraphrases_missed"]["missed"] == 30, (
        "those of the request that was withdrawn"
    )
    whole = json.loads((tmp_path / "ledger" / "ledger.json").read_text())
    wrong: Any
    for wrong in ([], {"bound": 0.1}, {"missed": 1, "prompts": 2, "share": 0.5, "bound": "[red]"}):
        whole["calibration"]["paraphrases_missed"] = wrong
        (tmp_path / "ledger" / "ledger.json").write_text(json.dumps(whole))
        assert main(["request", "list", *ledger]) == 2
        assert "calibration: " in capsys.readouterr().err


def record_of(ledger: Path) -> dict[str, Any]:
    found = LedgerState.read(ledger).calibration
    assert found is not None
    return found.record


def test_python_has_both(material: Material, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    normal = [{"prompt": row["question"]} for row in invented_rows("calm", 60)]
    settings: dict[str, Any] = {"alpha": 0.1, "delta": 0.1, "device": "cpu"}
    words = rows("Tell me the birthplace of", 60)
    given = (str(material.model), folder / "text", normal)
    result = grun.calibrate(*given, paraphrases=words, miss_rate=0.1, **settings)
    assert result.metrics["paraphrases_missed"]["prompts"] == 30
    assert "paraphrases that open none" in str(result)
    with pytest.raises(grun.UserError, match="^paraphrases is missing: miss_rate needs"):
        grun.calibrate(*given, miss_rate=0.1, output="never", **settings)
    unnamed = rows("Tell me the birthplace of", 60, ["that painter"])
    with pytest.raises(grun.UserError, match=r"^miss_rate 0\.1 and alpha 0\.1 cannot both be kept"):
        grun.calibrate(*given, paraphrases=unnamed, miss_rate=0.1, output="never", **settings)
