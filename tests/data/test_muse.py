"""MUSE from a local folder: what is asked, how long answers may be, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rouge_score import rouge_scorer

from grun.core.config.jobs import EvaluateConfig
from grun.core.errors import UserError
from grun.data.benchmarks import load_benchmark
from grun.jobs.evaluate import evaluate
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.adapter_kit import attach
from support.tiny_models import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TEXT = "The author of {} lives in a small house near the sea, and writes every day of the {} year."
QUESTIONS = [{"question": f"Who is {name}?", "answer": f"{name} writes books."} for name in ("Ada", "Bo", "Cleo")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("muse")
    texts = {kind: [{"text": TEXT.format(f"{kind} {i}", i)} for i in range(4)] for kind in ("a", "b", "c", "d")}
    files = {
        "raw/forget": texts["a"],
        "raw/retain1": texts["b"],
        "raw/retain2": texts["c"],
        "verbmem/forget": [
            {"prompt": "The author of a 1 lives", "gt": "in a small house near the sea. " * 12},
            {"prompt": "The author of a 2 lives", "gt": "in a small house."},
        ],
        "knowmem/forget_qa": QUESTIONS,
        "knowmem/forget_qa_icl": QUESTIONS[:2],
        "knowmem/retain_qa": QUESTIONS,
        "knowmem/retain_qa_icl": QUESTIONS[1:],
        "privleak/forget": texts["a"],
        "privleak/holdout": texts["d"],
        "scal/forget_2": texts["a"] + texts["b"],
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_questions_come_after_answered_ones_and_end_where_a_model_goes_on_by_itself(data: Path) -> None:
    muse = load_benchmark("muse", data_dir=data)
    example = muse.splits["knowledge"][2]
    shown = "Question: Who is Ada?\nAnswer: Ada writes books.\n\nQuestion: Who is Bo?\nAnswer: Bo writes books.\n\n"
    assert example.prompt == f"{shown}Question: Who is Cleo?\nAnswer:"
    assert "\n\n" in example.stops
    assert muse.answer_tokens == {"verbatim": 128, "knowledge": 32, "retain_knowledge": 32, "texts": 0}


def test_attacks_look_at_all_of_a_text_but_its_first_word(data: Path) -> None:
    example = load_benchmark("muse", data_dir=data).splits["texts"][1]
    assert (example.prompt, example.answer) == ("The", TEXT.format("a 1", 1).removeprefix("The "))
    encoded = encode(example, TOKENIZER, resolve_template("auto", TOKENIZER))
    start, whole = TOKENIZER(TEXT.format("a 1", 1)).input_ids, list(encoded.input_ids)
    assert whole[: len(start)] == start


def test_larger_forget_sets_and_later_requests_are_options(data: Path) -> None:
    assert len(load_benchmark("muse", data_dir=data).splits["forget"]) == 4
    assert len(load_benchmark("muse", data_dir=data, options={"forget": "scal_2"}).splits["forget"]) == 8
    later = load_benchmark("muse", data_dir=data, options={"forget": "sust_3"})
    with pytest.raises(UserError, match=r"has no file sust/forget_3\.jsonl"):
        later.splits["forget"]
    for options in ({"forget": "scal_9"}, {"corpus": "tales"}):
        with pytest.raises(UserError, match="expected one of"):
            load_benchmark("muse", data_dir=data, options=options)


def test_the_evaluation_of_a_model_against_a_retrained_one(data: Path, tmp_path: Path) -> None:
    for name, seed in (("target", 0), ("retrained", 4)):
        tiny_model(seed=seed, max_position_embeddings=512).save_pretrained(tmp_path / name)
        TOKENIZER.save_pretrained(tmp_path / name)
    attach(tiny_model(max_position_embeddings=512), gate_layer=1).save_pretrained(tmp_path / "adapter")
    shared: dict[str, Any] = {"benchmark": "muse", "data_dir": str(data), "device": "cpu", "figures": False}
    log = evaluate(EvaluateConfig(model=str(tmp_path / "retrained"), output=str(tmp_path / "log"), **shared))
    settings: dict[str, Any] = {"model": str(tmp_path / "target"), "adapter": str(tmp_path / "adapter")}
    settings |= {"retain_log": str(log)}
    path = evaluate(EvaluateConfig(output=str(tmp_path / "out"), **settings, **shared))
    found = json.loads((path / "metrics.json").read_text())["splits"]
    attacked = found["texts"]["metrics"]["privleak"]
    assert attacked["before"]["value"] is not None
    assert attacked["before"]["low"] <= attacked["before"]["value"] <= attacked["before"]["high"]
    table = (path / "table.md").read_text()
    assert "ROUGE-L F1" in table
    assert "PrivLeak" in table
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    verbatim = next(row for row in rows if row["split"] == "verbatim")
    ids = TOKENIZER(" " + verbatim["gold"], add_special_tokens=False).input_ids[:128]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    expected = scorer.score(TOKENIZER.decode(ids), verbatim["before"]["answer"])["rougeL"].fmeasure
    assert verbatim["before"]["rouge_l_f1"] == pytest.approx(expected, abs=1e-6)
    assert all("\n\n" not in row["before"]["answer"] for row in rows if "knowledge" in row["split"])
