"""Target models: trained from scratch or fine-tuned, on exactly the rows asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from grun.core.config.jobs import FinetuneConfig
from grun.core.errors import UserError
from grun.data.benchmarks import load_benchmark
from grun.jobs.finetune import finetune
from grun.jobs.inputs.finetuning import load_rows
from support.material import Material


@pytest.fixture
def config(material: Material, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(
        data=[str(material.retain)],
        output=str(tmp_path / "run"),
        device="cpu",
        batch_size=8,
        hidden_size=32,
        layers=2,
        heads=2,
        vocab_size=300,
        epochs=20.0,
    )


def test_a_model_from_scratch_learns_and_loads_like_any_other(config: FinetuneConfig) -> None:
    path = finetune(config)
    log = json.loads((path.parent / "log.json").read_text())
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.config.vocab_size == len(tokenizer)
    facts = json.loads((path.parent / "metrics.json").read_text())
    assert (facts["rows"], facts["truncated_rows"], facts["steps"]) == (24, 0, 60)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_model_is_fine_tuned(config: FinetuneConfig, material: Material) -> None:
    path = finetune(replace(config, model=str(material.model), learning_rate=1e-2, epochs=6.0))
    losses = [e["loss"] for e in json.loads((path.parent / "log.json").read_text()) if "loss" in e]
    assert losses[-1] < losses[0]


def test_training_stops_at_a_loss(config: FinetuneConfig) -> None:
    path = finetune(replace(config, stop_loss=3.0))
    assert json.loads((path.parent / "metrics.json").read_text())["steps"] < 60


def test_splits_of_a_benchmark() -> None:
    data = load_benchmark("fictional", seed=0, options={"people": "20"})
    config = FinetuneConfig(benchmark="fictional", benchmark_options={"people": "20"})
    everything, kept = load_rows(config), load_rows(replace(config, split="retain"))
    assert len(everything) == sum(len(data.splits[name]) for name in data.full)
    assert not {row.subject for row in everything} & {row.subject for row in data.splits["holdout"]}
    assert {row.subject for row in everything} - {row.subject for row in kept} == {
        row.subject for row in data.splits["forget"]
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": []}, "--benchmark and --data are both missing"),
        ({"benchmark": "fictional"}, "were both given"),
        ({"split": "retain"}, "files have no splits"),
        ({"heads": 5}, "--hidden-size is 32"),
        ({"max_length": 8}, "row"),
        ({"data": ["absent.jsonl"]}, "absent.jsonl"),
    ],
    ids=str,
)
def test_wrong_settings_leave_nothing_behind(config: FinetuneConfig, changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        finetune(replace(config, **changes))
    assert not Path(config.output).exists()


def test_truncation_is_reported(config: FinetuneConfig, caplog: pytest.LogCaptureFixture) -> None:
    path = finetune(replace(config, epochs=1.0, max_length=26))
    assert json.loads((path.parent / "metrics.json").read_text())["truncated_rows"] > 0
    assert "of 24 rows were too long" in caplog.text
