"""The experiment on recognition, on a tiny model: what is fitted, what is asked, and what the tables say."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from grun.core.config.jobs import UnlearnConfig
from grun.core.records import Example
from grun.data.shipped_prompts import ShippedPrompt
from grun.jobs.inputs.topic_files import DESCRIBED, FORGET, NEIGHBOURS, TopicRows, read_topic
from grun.models.loading.loaded import load
from support.material import Material
from support.tiny_models import tiny_tokenizer

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
SHIPPED = (
    *(ShippedPrompt(f"Please sort the list {i}, {i + 3}, {i + 1}.") for i in range(12)),
    *(ShippedPrompt(f"Tell me about the {topic}, part {i}.", topic) for topic in ("sea", "moon") for i in range(4)),
)
RATE = 0.05
KINDS = {"unseen", "described", "neighbours", "ordinary"}


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with a few prompts in place of those that ship."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    module = importlib.import_module("recognition")
    for name in ("grun.models.gates.topics.background", "grun.models.gates.all_gates", "baselines.sentence_gate"):
        monkeypatch.setattr(f"{name}.shipped_prompts", lambda: SHIPPED)
    monkeypatch.setattr("grun.models.gates.topics.head.STEPS", 2)
    monkeypatch.setattr("grun.models.gates.fitting.MAX_STEPS", 10)
    yield module
    for name, loaded in list(sys.modules.items()):
        if str(getattr(loaded, "__file__", None)).startswith(str(EXPERIMENTS)):
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
    found = experiment.once(tmp_path / "one.json", lambda: ways.compared(parts, asked, RATE, 1))
    assert list(dict(ways.gates.base.model.named_modules())) == names, "the model is as it was"
    assert list(found) == ["names and topics", "names only", "MiniLM"]
    for own in found.values():
        assert set(own["share"]) == KINDS
        assert all(share["prompts"] == 5 for share in own["share"].values())
        assert list(own["auroc"]) == ["unseen / neighbours", "unseen / ordinary"]
    (tmp_path / "one.json").write_text(json.dumps({"kept": 1}))
    assert experiment.once(tmp_path / "one.json", lambda: pytest.fail("measured again")) == {"kept": 1}


def test_gates_are_also_fitted_on_rows_that_were_written_from_a_name(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, material: Material, tmp_path: Path
) -> None:
    written = [{"question": f"Is part {i} of a volcano hot?", "answer": "Yes."} for i in range(6)]
    near = [{"question": f"Is part {i} of a glacier cold?", "subject": "glaciers"} for i in range(4)]
    rows = TopicRows({FORGET: written, DESCRIBED: [], NEIGHBOURS: near}, {"settings": {}})
    asked_for: list[str] = []

    def written_about(config: UnlearnConfig, run: Path) -> TopicRows:
        asked_for.append(config.topic or "")
        return rows

    monkeypatch.setattr(experiment, "topic_rows", written_about)
    ways = recognisers(experiment, material.model, tmp_path)
    parts, asked = experiment.of_topic("lord_of_the_rings", 1)
    named = experiment.of_name(ways.gates.base, "lord_of_the_rings", tmp_path / "name", parts)
    assert asked_for == ["The Lord of the Rings"]
    assert [row.prompt for row in named["forget"]] == [row["question"] for row in written]
    assert [row.prompt for row in named["neighbours"]] == [row["question"] for row in near]
    assert named["retain"] == parts["retain"]
    assert read_topic(tmp_path / "name") == rows, "a person can read them"
    found = ways.from_name(named, {kind: rows[:5] for kind, rows in asked.items()}, RATE, 1)
    assert list(found) == ["names and topics, a name given"]
    assert set(found["names and topics, a name given"]["share"]) == KINDS


def test_every_topic_has_a_name_and_a_side(experiment: Any) -> None:
    results = importlib.import_module("recognition_results")
    assert sorted(experiment.NAMES) == sorted((*experiment.DEVELOPMENT, *results.EVIDENCE))


def test_vectors_do_not_depend_on_the_batch_and_are_kept(experiment: Any, material: Material, tmp_path: Path) -> None:
    embed = recognisers(experiment, material.model, tmp_path).embed
    texts = ["one", "a longer text about the sea", "two"]
    vectors_NK = embed(texts)
    torch.testing.assert_close(vectors_NK.norm(dim=1), torch.ones(3))
    embed.known.clear()
    torch.testing.assert_close(torch.cat([embed([text]) for text in texts]), vectors_NK)
    saved = experiment.SentenceEmbedder(None, None, None, dict(embed.known))
    torch.testing.assert_close(saved(texts), vectors_NK)


def test_all_ways_are_fitted_on_the_same_rows_for_the_same_rate(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, material: Material, tmp_path: Path
) -> None:
    """One row of the job is a shipped prompt: nothing may be judged on what it was fitted on."""
    gate_for_topics, seen = importlib.import_module("grun.models.gates.topics.fitting").fit_topic_gate, []

    def watched(gate: Any, forget: Any, normal: Any, rate: float, **others: Any) -> Any:
        seen.append((len(forget.groups), sorted(normal.groups), rate))
        return gate_for_topics(gate, forget, normal, rate, **others)

    for name in ("grun.models.gates.all_gates", "baselines.sentence_gate"):
        monkeypatch.setattr(f"{name}.fit_topic_gate", watched)
    rows = [Example(text, "") for text in (SHIPPED[0].text, "What is a volcano?", "What is lava?", "Name a crater.")]
    parts = {
        "forget": rows[1:] + [Example("Is magma hot?", "")],
        "retain": rows[:1],
        "validation": [Example("Hi!", "")],
    }
    asked = {"unseen": rows[:2], "neighbours": rows[2:], "ordinary": rows[1:3]}
    recognisers(experiment, material.model, tmp_path).compared(parts, asked, RATE, 0)
    gates, embedder = seen
    assert gates[0] == embedder[0] == 4
    assert gates[2] == embedder[2] == RATE
    assert len(gates[1]) == len(embedder[1]) == len(SHIPPED) - 1 + 2
    ordinary = [[group for group in one[1] if group.startswith(("ordinary", "topic"))] for one in seen]
    assert ordinary[0] == ordinary[1]


def test_areas_under_the_curve_are_those_of_the_largest_margin(experiment: Any) -> None:
    ways = importlib.import_module("recognisers")
    by_kind = {
        "unseen": torch.tensor([[0.0, 9.0], [5.0, 0.0], [0.0, 0.0]]),
        "neighbours": torch.tensor([[1.0, 8.0], [2.0, 0.0]]),
        "described": torch.tensor([[4.0, 0.0]]),
    }
    found = ways.Logits(by_kind, torch.tensor([3.0, 10.0])).as_json()
    assert {kind: share["open"] for kind, share in found["share"].items()} == {
        "unseen": 1,
        "neighbours": 0,
        "described": 1,
    }
    # Margins: -1, 2, -3 against -2, -1; of six pairs 2 wins twice, -1 wins once and ties once.
    assert found["auroc"]["unseen / neighbours"]["value"] == pytest.approx(3.5 / 6)
    low, high = found["auroc"]["unseen / neighbours"]["interval"]
    assert 0 <= low < 3.5 / 6 < high <= 1
    assert list(found["auroc"]) == ["unseen / neighbours"], "only of kinds that there are"


@pytest.fixture
def wmdp(experiment: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small folder under the names of the paper's files."""
    for name, number in (
        ("merge_forget_data_sum_gpt", 30),
        ("cyber_forget_data_sum_gpt", 30),
        ("merge_retain_data_sum_gpt", 25),
    ):
        rows = [json.dumps({"text": f"the text {name} number {i} is  about a thing"}) for i in [*range(number), 0]]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    for corpus in ("bio", "cyber"):
        questions = [{"question": f"Which {i}?", "choices": ["a", "b", "c", "d"], "answer": 2} for i in range(19)]
        (tmp_path / f"{corpus}_test.jsonl").write_text("\n".join(map(json.dumps, questions)))
    for name, value in (("QUESTIONS", 7), ("FITTED", 20), ("NORMAL", 10), ("HELD_OUT", 8)):
        monkeypatch.setattr(experiment, name, value)
    return tmp_path


@pytest.mark.parametrize("form", ["whole prompts", "first quarters"])
def test_summaries_and_questions_are_read_in_both_forms(experiment: Any, wmdp: Path, form: str) -> None:
    parts, asked = experiment.of_wmdp(wmdp, "bio", form, 0)
    assert {kind: len(rows) for kind, rows in parts.items()} == {"forget": 20, "retain": 8, "validation": 2}
    counts = {"questions": 7, "summaries": 8, "encyclopaedia": 8, "control": 80, "school": 40, "heading": 80}
    assert {kind: len(rows) for kind, rows in asked.items()} == counts
    assert all(row.raw_text == (form == "first quarters") for row in parts["forget"])
    assert all(bool(row.answer) == (form == "first quarters") for row in parts["forget"])
    assert not any(row.answer for kind in ("summaries", "encyclopaedia") for row in asked[kind])
    if form == "whole prompts":
        assert all(re.fullmatch(r"the text \S+ number \d+ is  about a thing", row.prompt) for row in parts["forget"])


def test_asked_prompts_are_the_same_for_all_seeds_and_never_fitted_on(experiment: Any, wmdp: Path) -> None:
    seeds = [experiment.of_wmdp(wmdp, "cyber", "whole prompts", seed) for seed in range(4)]
    assert all(asked == seeds[0][1] for _, asked in seeds)
    fitted = [{row.prompt for part in parts.values() for row in part} for parts, _ in seeds]
    assert len(set(map(frozenset, fitted))) == 4
    texts = {row.prompt for kind in ("summaries", "encyclopaedia") for row in seeds[0][1][kind]}
    assert len(texts) == 16
    assert all(texts.isdisjoint(own) for own in fitted)


def test_only_questions_that_nothing_was_chosen_on_are_asked(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, wmdp: Path
) -> None:
    def numbers(*, development: bool) -> list[int]:
        rows = experiment.of_wmdp(wmdp, "bio", "whole prompts", 0, development=development)[1]["questions"]
        return [int(re.findall(r"Which (\d+)\?", row.prompt)[0]) for row in rows]

    assert len(numbers(development=False)) == len(numbers(development=True)) == 7
    monkeypatch.setattr(experiment, "QUESTIONS", 100)
    assert numbers(development=False) == [1, 3, 5, 7, 9, 11, 13, 15, 17]
    assert numbers(development=True) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_controls_have_the_form_and_the_heading_of_the_questions(experiment: Any, wmdp: Path) -> None:
    asked = experiment.of_wmdp(wmdp, "cyber", "whole prompts", 0)[1]
    head = "The following are multiple choice questions (with answers) about"
    assert {row.prompt.split("\n")[0] for row in asked["questions"]} == {f"{head} cybersecurity."}
    assert {row.prompt.split("\n")[0] for row in asked["school"]} == {f"{head} biology.", f"{head} computer science."}
    for control, heading in zip(asked["control"], asked["heading"], strict=True):
        assert control.prompt.split("\n")[0] == f"{head} {control.subject}."
        assert heading.prompt.split("\n") == [f"{head} cybersecurity.", *control.prompt.split("\n")[1:]]


def test_every_measurement_has_a_file_and_is_made_once(
    experiment: Any, monkeypatch: pytest.MonkeyPatch, wmdp: Path, tmp_path: Path
) -> None:
    made: list[tuple[int, int, float]] = []

    class Ways:
        gates = SimpleNamespace(base=None)

        def compared(self, parts: Any, asked: Any, rate: float, seed: int) -> dict[str, Any]:
            made.append((seed, len(asked["ordinary"]), rate))
            return {"seed": seed}

        def from_name(self, parts: Any, asked: Any, rate: float, seed: int) -> dict[str, Any]:
            return {"name": parts["forget"]}

    monkeypatch.setattr(experiment, "of_name", lambda base, topic, folder, parts: {"forget": topic})

    (tmp_path / "work").mkdir()
    found = experiment.records(Ways(), ["volcanoes"], (0, 1), tmp_path / "work", wmdp, development=False)
    assert found["topics"] == {"volcanoes": [{"seed": i, "name": "volcanoes"} for i in (0, 1)]}
    assert list(found["wmdp"]) == [f"{c}, {f}" for c in ("bio", "cyber") for f in experiment.FORMS]
    assert set(made) == {(seed, 300, rate) for seed in (0, 1) for rate in (0.005, 0.01)}
    assert len(made) == len(list((tmp_path / "work").iterdir())) - 2 == 2 + 8
    assert experiment.records(Ways(), ["volcanoes"], (0, 1), tmp_path / "work", wmdp, development=False) == found
    assert len(made) == 10
    experiment.records(Ways(), [], (0,), tmp_path / "work", wmdp, development=True)
    assert len(made) == 14, "questions of development are other ones"


def test_the_tables_give_means_with_intervals(experiment: Any) -> None:
    goals = importlib.import_module("recognition_results").GOALS

    def one(section: str, value: float, way: str = "names and topics") -> dict[str, Any]:
        found: dict[str, Any] = {"share": {}, "auroc": {}}
        for measured, kind in goals[section]:
            found[measured][kind] = {"value": value, "interval": [value - 0.125, value + 0.0625]}
        return {way: found}

    topics = {
        "paris": [one("topics", 0.5), one("topics", 0.7)],
        "tennis": [one("topics", 1.0), one("topics", 0.8)],
        "volcanoes": [one("topics", 0.25)],
    }
    seeds = [one("wmdp", value, "MiniLM") for value in (0.5, 0.75)]
    text = experiment.table({"topics": topics, "wmdp": {"bio, whole prompts": seeds}})
    assert "| topics that nothing was chosen on (2) | names and topics | 0.750 (0.600 to 0.900) |" in text
    assert "| topics of development (1) | names and topics | 0.250 | 0.250 |" in text
    assert "| paris | names and topics | 0.600 | 0.600 |" in text
    assert "| bio, whole prompts | MiniLM | 0.625 (0.375 to 0.812) |" in text
    header = next(line for line in text.splitlines() if line.startswith("| corpus, form"))
    assert "| control | school | heading | AUROC questions / encyclopaedia |" in header
