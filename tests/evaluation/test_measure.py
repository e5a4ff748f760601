"""Measuring a model: equal at any batch size, equal to plain loops, and the whole job on files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model

import grun
from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.paraphrases import with_paraphrases
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.scores import evaluate_model, score, usual_metrics
from grun.models.encoding.encode import encode
from grun.models.tuner.config import GrunConfig
from support.evaluation_kit import FORGET, ROWS, TEMPLATE, TOKENIZER, config, evidence, grun_model
from support.tiny_models import tiny_model


@pytest.mark.parametrize("make", [tiny_model, grun_model])
def test_evidence_does_not_depend_on_the_batch_size(make: Any) -> None:
    model = make()
    one, seven = evidence(model, tokens_per_batch=1), evidence(model, tokens_per_batch=700)
    for a, b in zip(one, seven, strict=True):
        assert a.example is b.example
        assert a.generated == b.generated
        assert a.token_logps == pytest.approx(b.token_logps, abs=1e-5)
        assert (a.gate_logits is None) == (make is tiny_model)
        if a.gate_logits is not None:
            assert a.gate_logits == pytest.approx(b.gate_logits, abs=1e-5)
            assert a.gate_values == pytest.approx(b.gate_values, abs=1e-5)
            assert a.gate_thresholds == b.gate_thresholds == (-math.inf,) * len(a.gate_logits)


def test_evidence_is_in_row_order_and_equals_the_models_own_loss() -> None:
    model = tiny_model()
    for found in evidence(model, tokens_per_batch=150):
        row = encode(found.example, TOKENIZER, TEMPLATE)
        labels = [-100] * row.prompt_length + list(row.input_ids[row.prompt_length :])
        loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([labels])).loss
        assert -math.fsum(found.token_logps) / len(found.token_logps) == pytest.approx(loss.item(), abs=1e-5)
        assert len(found.token_logps) == len(row.input_ids) - row.prompt_length


def test_with_adapters_off_the_base_model_is_measured_and_no_stale_gate_is_read() -> None:
    model = grun_model()
    on, off = evidence(model), evidence(model, adapters=False)
    # frozen like under an adapter: torch multiplies matrices that may need a gradient in another order, even without one
    plain = tiny_model().requires_grad_(False)
    assert [row.token_logps for row in off] == [row.token_logps for row in evidence(plain)]
    assert all(row.gate_values is None for row in off)
    assert all(row.gate_values for row in on)
    assert [row.generated for row in off] != [row.generated for row in on]


def test_scoring_and_generating_put_the_edit_at_the_same_token() -> None:
    """Greedy text fed back as the answer must be the most likely text of the scoring pass, token by token."""
    model = grun_model()
    for adapter in (GrunConfig(), GrunConfig.paper()):
        model = get_peft_model(tiny_model(), adapter).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        row = encode(ROWS[0], TOKENIZER, TEMPLATE)
        prompt = torch.tensor([row.input_ids[: row.prompt_length]])
        said = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )
        logits = model(input_ids=said, prompt_lengths=torch.tensor([row.prompt_length])).logits
        assert torch.equal(logits[0, row.prompt_length - 1 : -1].argmax(-1), said[0, row.prompt_length :])


def test_truncated_rows_are_marked() -> None:
    lengths = sorted(len(encode(row, TOKENIZER, TEMPLATE).input_ids) for row in ROWS)
    rows = evidence(tiny_model(), max_length=lengths[-1] - 1, max_new_tokens=0)
    assert 0 < sum(row.truncated for row in rows) < len(rows)
    assert all(row.generated is None for row in rows)


def test_paraphrased_splits_are_added_where_every_row_has_one() -> None:
    found = with_paraphrases({"forget": FORGET, "retain": ROWS, "mixed": (*ROWS, *FORGET)})
    assert list(found) == ["forget", "forget_paraphrased", "retain", "mixed"]
    assert found["forget_paraphrased"][1].prompt == "Tell me: What about number 1???"
    assert found["forget_paraphrased"][1].answer == FORGET[1].answer
    assert with_paraphrases(found) == found
    given = with_paraphrases({"forget": FORGET, "forget_paraphrased": ROWS})
    assert given["forget_paraphrased"] == ROWS


def test_an_empty_split_and_an_unknown_forget_split_are_refused() -> None:
    with pytest.raises(UserError, match="split 'retain' is empty"):
        with_paraphrases({"forget": FORGET, "retain": ()})
    with pytest.raises(UserError, match="'forgotten' is not among"):
        measure(
            Subject(tiny_model(), TOKENIZER), {"forget": FORGET}, MeasureSettings(TEMPLATE), forget_split="forgotten"
        )


def test_scores_are_the_metrics_of_the_evidence_and_gates_are_compared_with_the_forget_split() -> None:
    model, splits = grun_model(), {"forget": FORGET, "retain": ROWS[4:]}
    settings = MeasureSettings(TEMPLATE, max_new_tokens=4)
    results = evaluate_model(Subject(model, TOKENIZER), splits, settings, forget_split="forget")
    assert list(results) == ["forget", "forget_paraphrased", "retain"]
    assert all(set(scores) == set(usual_metrics()) for scores in results.values())
    rows = evidence(model, FORGET)
    expected = np.mean([np.exp(np.mean(row.token_logps)) for row in rows])
    assert results["forget"]["probability"].value == pytest.approx(float(expected), abs=1e-6)
    logits = {name: [max(row.gate_logits or ()) for row in evidence(model, part)] for name, part in splits.items()}
    wins = [(f > r) + 0.5 * (f == r) for f in logits["forget"] for r in logits["retain"]]
    assert results["retain"]["gate_auroc"].value == pytest.approx(float(np.mean(wins)))
    for split in ("forget", "forget_paraphrased"):
        assert results[split]["gate_auroc"].value is None
        assert results[split]["gate_auroc"].reason
    assert results["retain"]["gate_auroc_paraphrased"].value is not None


def test_nothing_is_generated_for_metrics_that_do_not_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("generated")

    monkeypatch.setattr("grun.models.scoring._PromptBatch.answer", refuse)

    def found(metric: str) -> dict:
        subject, settings = Subject(tiny_model(), TOKENIZER), MeasureSettings(TEMPLATE)
        return evaluate_model(subject, {"retain": ROWS}, settings, forget_split=None, metrics=[metric])

    assert list(found("probability")["retain"]) == ["probability"]
    with pytest.raises(AssertionError, match="generated"):
        found("exact_match")
    with pytest.raises(UserError, match="probability"):
        found("probabilty")


def test_the_job_measures_before_and_after_and_writes_what_it_found(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from grun.jobs.evaluate import evaluate

    path = evaluate(config(saved, tmp_path / "out"))
    found = json.loads((path / "metrics.json").read_text())
    assert list(found["splits"]) == ["forget", "forget_paraphrased", "retain"]
    assert found["versions"]["grun"] == grun.__version__
    assert found["machine"]["cores"] > 0
    cell = found["splits"]["retain"]["metrics"]["probability"]
    rows = [json.loads(line) for line in (path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(FORGET) + len(ROWS)
    for subject, model in (("before", tiny_model()), ("after", grun_model())):
        expected = [float(np.exp(np.mean(row.token_logps))) for row in evidence(model)]
        assert cell[subject]["value"] == pytest.approx(float(np.mean(expected)), rel=1e-4)
        assert cell[subject]["low"] < cell[subject]["value"] < cell[subject]["high"]
        assert cell[subject]["n"] == len(ROWS)
        assert [r[subject]["probability"] for r in rows if r["split"] == "retain"] == pytest.approx(expected, rel=1e-4)
    gate = found["splits"]["retain"]["metrics"]["gate_auroc"]
    assert gate["before"]["value"] is None
    assert gate["before"]["reason"]
    assert gate["after"]["value"] is not None
    assert found["gate_thresholds"] == {"after": [None] * len(gate["after"]["per_gate"])}
    lines = (path / "evidence" / "after" / "retain.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)["gate_thresholds"]) == {-math.inf} for line in lines)
    assert r"forget\_paraphrased" in (path / "table.md").read_text()
    assert "after" in capsys.readouterr().out


def test_the_job_compares_with_a_whole_model_as_well(saved: Path, tmp_path: Path) -> None:
    from grun.jobs.evaluate import evaluate

    tiny_model(seed=9).save_pretrained(tmp_path / "full" / "model")
    TOKENIZER.save_pretrained(tmp_path / "full" / "model")
    path = evaluate(config(saved, tmp_path / "out", adapter=str(tmp_path / "full"), metrics=["probability"]))
    cell = json.loads((path / "metrics.json").read_text())["splits"]["retain"]["metrics"]["probability"]
    expected = np.mean([np.exp(np.mean(row.token_logps)) for row in evidence(tiny_model(seed=9))])
    assert cell["after"]["value"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "neither was given"),
        ({"benchmark": "fictional"}, "both were given"),
        ({"data": ["forget.jsonl"]}, "expected name=file"),
        ({"data": ["a=x.jsonl"]}, "x.jsonl"),
        ({"splits": ["retian"]}, "Did you mean 'retain'"),
        ({"metrics": ["rouge"]}, "unknown metric 'rouge'"),
        ({"adapter": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(saved: Path, tmp_path: Path, changes: dict, message: str) -> None:
    from grun.jobs.evaluate import evaluate

    with pytest.raises(UserError, match=message) as caught:
        evaluate(config(saved, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)


def test_splits_and_rows_can_be_chosen(saved: Path, tmp_path: Path) -> None:
    from grun.jobs.inputs.evaluation import load_splits

    asked = load_splits(config(saved, tmp_path, splits=["retain"], max_rows=3))
    assert {name: len(rows) for name, rows in asked.splits.items()} == {"retain": 3}
    assert asked.forget is None
    asked = load_splits(config(saved, tmp_path, data=[], benchmark="fictional", splits=["forget"], max_rows=4))
    assert asked.forget == "forget"
    assert list(asked.splits) == ["forget", "forget_paraphrased"]
    assert len(asked.holdout) == 4
    assert asked.utility["general"]


def test_the_run_that_learnt_an_adapter_stands_for_it(saved: Path, tmp_path: Path) -> None:
    from grun.core.storage.run_directory import RunDirectory
    from grun.jobs.evaluate import evaluate

    given = config(saved, tmp_path / "out", max_rows=2)
    run = RunDirectory.open(tmp_path / "run", given, "unlearn")
    run.start()
    (run.path / "adapter").symlink_to(saved / "run" / "adapter")
    path = evaluate(config(saved, tmp_path / "out", max_rows=2, adapter=str(run.path)))
    assert "after" in (path / "table.md").read_text()


def test_score_is_pure(saved: Path) -> None:
    settings = MeasureSettings(TEMPLATE, max_new_tokens=2)
    found = measure(Subject(tiny_model(), TOKENIZER), {"forget": FORGET}, settings, forget_split="forget")
    assert score(found) == score(found)
    assert set(score(found, ["exact_match"])["forget"]) == {"exact_match"}


def test_an_interrupted_evaluation_goes_on_with_the_next_split(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grun.evaluation.measuring import measure as measuring
    from grun.evaluation.measuring.row_evidence import measure_rows
    from grun.jobs.evaluate import evaluate

    whole = evaluate(config(saved, tmp_path / "whole", max_rows=3, cache=False))
    measured: list[str] = []

    def counted(subject: Subject, rows: tuple[Example, ...], *settings: Any) -> object:
        measured.append(rows[0].prompt)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure_rows(subject, rows, *settings)

    monkeypatch.setattr(measuring, "measure_rows", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(saved, tmp_path / "broken", max_rows=3, cache=False))
    assert not (tmp_path / "broken" / "metrics.json").exists()
    path = evaluate(config(saved, tmp_path / "broken", max_rows=3, cache=False))
    assert len(measured) == 3 * 2 + 1, "three splits of two subjects, and the one that was interrupted twice"
    assert (path / "rows.jsonl").read_text() == (whole / "rows.jsonl").read_text()


def test_a_retain_only_model_is_compared_with_by_its_log(saved: Path, tmp_path: Path) -> None:
    from grun.jobs.evaluate import evaluate

    shared = {"adapter": None, "data": [], "benchmark": "fictional", "max_rows": 6, "splits": ["forget"]}
    log = evaluate(config(saved, tmp_path / "retrained", **shared))
    path = evaluate(config(saved, tmp_path / "other", retain_log=str(log), **shared))
    found = json.loads((path / "metrics.json").read_text())["splits"]["forget"]["metrics"]
    assert found["forget_quality"]["before"]["value"] == pytest.approx(1.0), "it was compared with itself"
    assert found["mia_reference"]["before"]["value"] == 0.5
    assert found["mia_min_k"]["before"]["value"] is not None
    with pytest.raises(UserError, match="holds 6 rows, but split 'forget' has 5; it was computed on different data"):
        evaluate(config(saved, tmp_path / "fewer", retain_log=str(log), **(shared | {"max_rows": 5})))
    with pytest.raises(UserError, match="row 1: expected '.*', found another row; it was computed on different data"):
        evaluate(config(saved, tmp_path / "seed", retain_log=str(log), **(shared | {"seed": 1})))
    with pytest.raises(UserError, match="is not an evaluation of a model"):
        evaluate(config(saved, tmp_path / "none", retain_log=str(saved), **shared))
