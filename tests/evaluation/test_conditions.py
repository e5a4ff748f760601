"""Conditions of an evaluation: other wording, quantised weights, several processes, and results that are known already."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from grun.core.config.jobs import EvaluateConfig
from grun.core.errors import UserError
from grun.core.process.environment import cache_directory
from grun.evaluation.measuring import measure as measuring
from grun.evaluation.measuring.row_evidence import measure_rows
from grun.jobs.evaluate import evaluate
from grun.jobs.inputs.evaluation import load_splits
from grun.models.loading.pretrained import load_model_and_tokenizer
from support.evaluation_kit import FORGET, ROWS, config
from support.launching import TORCHRUN, launch


def values(path: Path, split: str, metric: str) -> dict[str, float]:
    found = json.loads((path / "metrics.json").read_text())["splits"][split]["metrics"][metric]
    return {subject: one["value"] for subject, one in found.items()}


def test_questions_in_other_words_take_the_place_of_the_original_ones(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = load_splits(config(saved, tmp_path)).splits
    assert list(load_splits(config(saved, tmp_path, questions="original")).splits) == ["forget", "retain"]
    asked = load_splits(config(saved, tmp_path, questions="paraphrased"))
    assert asked.forget == "forget"
    assert asked.splits == {"forget": both["forget_paraphrased"]}
    assert "Left out, because not every row has a paraphrased question: retain" in caplog.text
    with pytest.raises(UserError, match="--questions is paraphrased, but in retain there are rows without"):
        load_splits(config(saved, tmp_path, questions="paraphrased", data=[f"retain={saved / 'retain.jsonl'}"]))
    with pytest.raises(UserError, match="--questions is 'reworded', expected one of"):
        config(saved, tmp_path, questions="reworded")


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_the_base_model_is_quantised_under_the_adapter(saved: Path, tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, _ = load_model_and_tokenizer(str(saved / "target"), device="cpu", quantize=bits)
    plain, _ = load_model_and_tokenizer(str(saved / "target"), device="cpu")
    weights = model.model.layers[0].mlp.up_proj.weight
    assert weights.dtype in (torch.int8, torch.uint8)
    assert model.get_memory_footprint() < plain.get_memory_footprint()
    asked = {"metrics": ["probability", "gate_mean"], "figures": False}
    path = evaluate(config(saved, tmp_path / "out", quantize=bits, **asked))
    exact = evaluate(config(saved, tmp_path / "exact", **asked))
    for subject in ("before", "after"):
        ours, theirs = (values(run, "retain", "probability")[subject] for run in (path, exact))
        assert ours != theirs
        assert ours == pytest.approx(theirs, rel=0.3)
    assert values(path, "retain", "gate_mean")["after"] == pytest.approx(
        values(exact, "retain", "gate_mean")["after"], abs=0.1
    )


def test_quantisation_needs_its_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--quantize 4bit needs bitsandbytes: pip install 'grun-llm\[quantize\]'"):
        load_model_and_tokenizer(str(saved / "target"), device="cpu", quantize="4bit")
    with pytest.raises(UserError, match="--quantize is '2bit'"):
        EvaluateConfig(quantize="2bit")


@pytest.fixture
def gathered_splits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were measured, call by call."""
    counts: list[int] = []

    def counting(subject: Any, rows: Any, *settings: Any) -> object:
        counts.append(len(rows))
        return measure_rows(subject, rows, *settings)

    monkeypatch.setattr(measuring, "measure_rows", counting)
    return counts


def test_what_is_known_is_not_measured_again(saved: Path, tmp_path: Path, gathered_splits: list[int]) -> None:
    first = evaluate(config(saved, tmp_path / "first", figures=False))
    assert gathered_splits == [len(FORGET), len(FORGET), len(ROWS)] * 2
    gathered_splits.clear()
    again = evaluate(config(saved, tmp_path / "again", figures=False))
    assert gathered_splits == []
    for name in ("metrics.json", "rows.jsonl", "samples.json"):
        assert (again / name).read_text() == (first / name).read_text()
    other = evaluate(config(saved, tmp_path / "other", figures=False, max_rows=2))
    assert len(gathered_splits) == 6, "other rows"
    gathered_splits.clear()
    evaluate(config(saved, tmp_path / "uncached", figures=False, cache=False))
    assert len(gathered_splits) == 6, "the cache was not to be used"
    evaluate(config(saved, other, figures=False, max_rows=2, overwrite=True, template="{prompt} "))
    assert len(gathered_splits) == 12, "another template"


def test_another_adapter_or_model_under_the_same_name_is_measured_anew(
    saved: Path, tmp_path: Path, gathered_splits: list[int]
) -> None:
    from support.evaluation_kit import grun_model

    adapter = tmp_path / "adapter"
    shutil.copytree(saved / "run" / "adapter", adapter)
    asked = {"figures": False, "metrics": ["probability"], "adapter": str(adapter)}
    one = evaluate(config(saved, tmp_path / "one", **asked))
    grun_model().save_pretrained(adapter)
    file = adapter / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
    gathered_splits.clear()
    two = evaluate(config(saved, tmp_path / "two", **asked))
    assert len(gathered_splits) == 3, "the model before was known, the adapter was not"
    assert values(one, "retain", "probability")["before"] == values(two, "retain", "probability")["before"]
    assert values(one, "retain", "probability")["after"] != values(two, "retain", "probability")["after"]


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache-of-the-test"
    monkeypatch.delenv("GRUN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "grun"


def test_two_processes_find_what_one_finds(saved: Path, tmp_path: Path) -> None:
    files = [part for name in ("forget", "retain") for part in ("--data", f"{name}={saved / name}.jsonl")]
    shared = ["--model", str(saved / "target"), "--adapter", str(saved / "run"), *files, "--device", "cpu"]
    shared += ["--max-new-tokens", "6", "--no-cache", "--no-figures"]
    launch(["-m", "grun"], ["evaluate", *shared, "--output", str(tmp_path / "one")])
    launch([*TORCHRUN, "-m", "grun"], ["evaluate", *shared, "--output", str(tmp_path / "two")])
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "rows.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for subject in ("before", "after"):
            numbers = {name: value for name, value in ours[subject].items() if isinstance(value, float)}
            assert {name: theirs[subject][name] for name in numbers} == pytest.approx(numbers, abs=1e-5)
            assert ours[subject]["answer"] == theirs[subject]["answer"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("truth_ratio", "metric 'truth_ratio' needs a column perturbed_answer"),
        ("accuracy", "metric 'accuracy' needs a column choices"),
        ("mia_loss", "metric 'mia_loss' needs rows that no model was trained on: --data holdout=FILE"),
        ("forget_quality", "metric 'forget_quality' needs a column perturbed_answer"),
        ("mia_reference", "metric 'mia_reference' needs --retain-log"),
    ],
)
def test_a_metric_that_could_have_no_value_is_refused_by_name(
    saved: Path, tmp_path: Path, metric: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        evaluate(config(saved, tmp_path / "out", model="/nowhere", metrics=[metric]))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_padding_token_is_measured_and_one_without_any_end_refused(
    saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "target", tmp_path / "target")
    file = tmp_path / "target" / "tokenizer_config.json"
    given = json.loads(file.read_text())
    asked = {"model": str(tmp_path / "target"), "figures": False, "metrics": ["probability"]}
    whole = evaluate(config(saved, tmp_path / "whole", **asked))
    file.write_text(json.dumps({**given, "pad_token": None}))
    unpadded = evaluate(config(saved, tmp_path / "unpadded", **asked))
    assert values(unpadded, "retain", "probability") == pytest.approx(values(whole, "retain", "probability"), abs=1e-6)
    file.write_text(json.dumps({**given, "pad_token": None, "eos_token": None}))
    with pytest.raises(UserError, match="no end-of-sequence token"):
        evaluate(config(saved, tmp_path / "endless", **asked))
