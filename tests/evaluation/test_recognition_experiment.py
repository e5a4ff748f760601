"""The experiment on recognition, on a tiny model: what is fitted, what is asked, and what the tables say."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from grun.core.config.jobs import UnlearnConfig
from grun.data.shipped_prompts import ShippedPrompt
from grun.models.loading.loaded import load
from support.material import Material
from support.tiny_models import tiny_tokenizer

SHIPPED = (
    *(ShippedPrompt(f"Please sort the list {i}, {i + 3}, {i + 1}.") for i in range(12)),
    *(ShippedPrompt(f"Tell me about the {topic}, part {i}.", topic) for topic in ("sea", "moon") for i in range(4)),
)
KINDS = {"unseen", "described", "neighbours", "ordinary"}


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with a few prompts in place of those that ship."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
    before = set(sys.modules)
    module = importlib.import_module("recognition")
    for name in ("grun.models.gates.background", "grun.models.gates.all_gates", "baselines.sentence_gate"):
        monkeypatch.setattr(f"{name}.shipped_prompts", lambda: SHIPPED)
    monkeypatch.setattr("grun.models.gates.topic_head.STEPS", 2)
    monkeypatch.setattr("grun.models.gates.fitting.MAX_STEPS", 10)
    yield module
    for name in set(sys.modules) - before:
        if not name.startswith("grun"):
            del sys.modules[name]


def recognisers(module: Any, model: Path, folder: Path) -> Any:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **small)).eval()
    embed = module.SentenceEmbedder(bert, tokenizer, folder / "vectors.safetensors")
    base = load(str(model), UnlearnConfig(device="cpu", dtype="float32"), batch_size=4)
    return module.Recognisers(module.GatesOfModel(base), embed)


def test_all_ways_are_compared_on_all_kinds_once(experiment: Any, material: Material, tmp_path: Path) -> None:
    ways = recognisers(experiment, material.model, tmp_path)
    parts, asked = experiment.of_topic("volcanoes", 1)
    assert [len(parts[kind]) for kind in ("forget", "retain", "validation")] == [60, 120, 30]
    assert {len(rows) for rows in asked.values()} == {40, 20, 60, 300}
    assert {row.prompt for part in parts.values() for row in part}.isdisjoint(
        r.prompt for p in asked.values() for r in p
    )
    parts = {kind: rows[:6] for kind, rows in parts.items()}
    asked = {kind: rows[:5] for kind, rows in asked.items()}
    names = list(dict(ways.gates.base.model.named_modules()))
    found = experiment.once(tmp_path / "one.json", ways, parts, asked, 1)
    assert list(dict(ways.gates.base.model.named_modules())) == names, "the model is as it was"
    assert list(found) == ["names and topics", "names only", "MiniLM"]
    for own in found.values():
        assert set(own) == KINDS
        assert all(share["prompts"] == 5 for share in own.values())
    (tmp_path / "one.json").write_text(json.dumps({"kept": 1}))
    assert experiment.once(tmp_path / "one.json", ways, parts, asked, 1) == {"kept": 1}


def test_vectors_do_not_depend_on_the_batch_and_are_kept(experiment: Any, material: Material, tmp_path: Path) -> None:
    embed = recognisers(experiment, material.model, tmp_path).embed
    texts = ["one", "a longer text about the sea", "two"]
    vectors_NK = embed(texts)
    torch.testing.assert_close(vectors_NK.norm(dim=1), torch.ones(3))
    embed.known.clear()
    torch.testing.assert_close(torch.cat([embed([text]) for text in texts]), vectors_NK)
    saved = experiment.SentenceEmbedder(None, None, None, dict(embed.known))
    torch.testing.assert_close(saved(texts), vectors_NK)


def test_summaries_and_questions_are_read_in_both_forms(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, number in (*((file, 30) for file in experiment.WMDP.values()), (experiment.ENCYCLOPAEDIA, 20)):
        rows = [json.dumps({"text": f"the text {name} number {i} is about a thing"}) for i in range(number)]
        (tmp_path / name).write_text("\n".join(rows))
    question = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
    (tmp_path / "bio_test.jsonl").write_text("\n".join([json.dumps(question)] * 9))
    monkeypatch.setattr(experiment, "QUESTIONS", 7)
    for name, value in (("FITTED", 20), ("NORMAL", 10), ("HELD_OUT", 8)):
        monkeypatch.setattr(experiment, name, value)
    for form in experiment.FORMS:
        parts, asked = experiment.of_wmdp(tmp_path, "bio", form, ())
        assert {kind: len(rows) for kind, rows in parts.items()} == {"forget": 20, "retain": 8, "validation": 2}
        assert {kind: len(rows) for kind, rows in asked.items()} == {
            "questions": 7,
            "summaries": 8,
            "encyclopaedia": 8,
            "ordinary": 0,
        }
        assert {row.prompt for row in parts["forget"]}.isdisjoint(row.prompt for row in asked["summaries"]) or (
            form == "first quarters"
        )
        assert all(row.raw_text == (form == "first quarters") for row in parts["forget"])
        assert asked["questions"][0].prompt.endswith("\nD. d\nAnswer:")


def test_the_tables_give_means_over_topics_with_intervals(experiment: Any) -> None:
    def seed(share: float) -> dict[str, Any]:
        return {"names and topics": {kind: {"share": share, "interval": [0.0, 1.0]} for kind in KINDS}}

    topics = {"paris": [seed(0.5), seed(0.7)], "tennis": [seed(1.0), seed(0.8)], "volcanoes": [seed(0.25)]}
    asked = {
        kind: {"share": 0.5, "interval": [0.25, 0.75]}
        for kind in ("questions", "summaries", "encyclopaedia", "ordinary")
    }
    text = experiment.table({"topics": topics, "wmdp": {"bio, whole prompts": {"MiniLM": asked}}})
    assert "| topics that nothing was chosen on (2) | names and topics | 0.750 (0.600 to 0.900) |" in text
    assert "| topics of development (1) | names and topics | 0.250 |" in text
    assert "| paris | names and topics | 0.600 |" in text
    assert "| bio, whole prompts | MiniLM | 0.500 (0.250 to 0.750) |" in text
