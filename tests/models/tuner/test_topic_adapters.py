"""Adapters with gates for topics: several at once, saved and loaded, of other data types, and with settings that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from grun.core.errors import UserError
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.edit import Gate
from grun.models.tuner.readers.topic import TopicStack
from grun.requests.stack_files import write_stack
from support.adapter_kit import make_rows, pad, randomise
from support.tiny_models import ARCHITECTURES, tiny_model
from support.topic_kit import HIDDEN, TOPICS, attach_topics, fill, part_open, random_units, set_thresholds, topic_gates

BATCH = pad(make_rows(5))
SHAPE: dict[str, Any] = {"rank": 2, "layers": [1, 3], "gate_hidden": [8], **TOPICS}
HIGH = SHAPE | {"layers": [2, 3]}  # no edit below any gate: edits of one adapter change what gates above them read
# Settings, and the seed of the head of each adapter's gate for topics.
MEMBERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "one": (HIGH, 0),
    "two": (HIGH, 0),
    "other-head": (HIGH, 5),
    "names-only": (HIGH | {"topic_layer": None}, None),
    "higher": (HIGH | {"topic_layer": 2, "topic_width": 6}, 7),
    "last-only": (HIGH | {"edit_from": "last_prompt_only", "gate_reads": "last", "scale": 0.5}, 0),
}


def side_by_side(names: list[str]) -> Any:
    """A model with active adapters that differ, some of them with the same head."""
    model: Any = get_peft_model(tiny_model(), GrunConfig(**MEMBERS[names[0]][0]), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, GrunConfig(**MEMBERS[name][0]))
    for seed, name in enumerate(names):
        randomise(model, seed, name)
        if name in topic_gates(model):
            fill(topic_gates(model)[name], seed, head=MEMBERS[name][1])
            model.peft_config[name].topic_kept = [5, 7]
    model.base_model.set_adapter(names)
    return model.eval()


def gate_logits(model: Any) -> dict[str, torch.Tensor]:
    return {name: found.logits_BG for name, found in model.base_model.last_gates.items()}


GROUPS = [["one", "two"], ["one", "two", "other-head"], ["one", "names-only", "two"], list(MEMBERS)]


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_several_adapters_decide_as_each_by_itself_and_their_edits_add_up(names: list[str]) -> None:
    model = side_by_side(names)
    for i, gate in enumerate(topic_gates(model).values()):
        gate.threshold.fill_(0.1 * i)
    with torch.enable_grad():
        apart, read = model(**BATCH.inputs).logits, gate_logits(model)
    with torch.no_grad():
        together = model(**BATCH.inputs).logits
        torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
        found = gate_logits(model)
        for name in names:
            model.base_model.set_adapter([name])
            model(**BATCH.inputs)
            (alone_BG,) = gate_logits(model).values()
            assert alone_BG.shape[1] == (1 if name == "names-only" else 2)
            torch.testing.assert_close(found[name], alone_BG, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(read[name], alone_BG, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("names", GROUPS, ids="+".join)
def test_one_adapter_that_opens_acts_as_if_it_were_alone(names: list[str]) -> None:
    model = side_by_side(names)
    with torch.no_grad():
        for name in names:
            set_thresholds(model, 1e9)
            for layer in model.base_model.runtime.layers:
                if name in layer.gates:
                    layer.gates[name].threshold.fill_(-torch.inf)
            model.base_model.set_adapter([name])
            alone = model(**BATCH.inputs).logits
            model.base_model.set_adapter(names)
            torch.testing.assert_close(model(**BATCH.inputs).logits, alone, atol=1e-5, rtol=1e-5)
        set_thresholds(model, 1e9)
        base = tiny_model().requires_grad_(False)(input_ids=BATCH.ids_BT, attention_mask=BATCH.mask_BT).logits
        assert torch.equal(model(**BATCH.inputs).logits, base)


def test_a_stack_of_gates_reads_in_parts_what_each_gate_reads() -> None:
    gates = [fill(topic_gates(attach_topics())["default"], seed, head=3) for seed in range(4)]
    h_BTD, prompt_BT = torch.randn(3, 9, HIDDEN), torch.arange(9) < torch.tensor([[4], [9], [7]])
    stack = TopicStack.of(gates)
    assert stack is not None
    first, _ = stack.read(h_BTD[:, :5], prompt_BT[:, :5], None, None)
    both, _ = stack.read(h_BTD[:, 5:], prompt_BT[:, 5:], None, first)
    for gate, begun, done in zip(gates, first, both, strict=True):
        torch.testing.assert_close(begun, gate(h_BTD[:, :5], prompt_BT[:, :5]))
        torch.testing.assert_close(done[:, 0], gate(h_BTD, prompt_BT)[:, 0])
    assert TopicStack.of([*gates, fill(topic_gates(attach_topics())["default"], 1, head=4)]) is None
    assert TopicStack.of([*gates, Gate(HIDDEN)]) is None


@pytest.mark.parametrize("grad", [True, False])
def test_a_stack_file_of_such_adapters_answers_as_they_do_side_by_side(tmp_path: Path, grad: bool) -> None:
    names = list(MEMBERS)
    apart, folders = side_by_side(names), {}
    for seed, (name, gate) in enumerate(topic_gates(apart).items()):
        gate.threshold.fill_(0.05 * seed)
        fill(gate, seed, head=MEMBERS[name][1], kept=(3 + seed, 4 + seed))
        apart.peft_config[name].topic_kept = [3 + seed, 4 + seed]
    for name in names:
        apart.save_pretrained(str(tmp_path / "own"), selected_adapters=[name])
        folders[name] = tmp_path / "own" / name
    (tmp_path / "stack").mkdir()
    write_stack(folders, tmp_path / "stack")
    together: Any = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "stack")).eval()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(together(**BATCH.inputs).logits, apart(**BATCH.inputs).logits, atol=1e-5, rtol=1e-5)
    expected, found = gate_logits(apart), gate_logits(together)
    for name in names:
        torch.testing.assert_close(found[f"default/{name}"], expected[name], atol=1e-5, rtol=1e-5)
    ids = torch.tensor([[20, 30, 40, 50], [21, 31, 41, 51]])
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(together.generate(ids, **settings), apart.generate(ids, **settings))
    together.save_pretrained(str(tmp_path / "again"))
    again = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "again")).eval()
    with torch.no_grad():
        assert torch.equal(again(**BATCH.inputs).logits, together(**BATCH.inputs).logits)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_adapter_survives_saving(arch: str, tmp_path: Path) -> None:
    model = attach_topics(arch, topic_layer=0.4)
    part_open(model, BATCH, names=1, topics=2)
    model.save_pretrained(str(tmp_path))
    kept = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (kept["topic_layer"], kept["topic_width"], kept["topic_nearest"], kept["topic_kept"]) == (1, 8, 2, [5, 7])
    again: Any = PeftModel.from_pretrained(tiny_model(arch), str(tmp_path)).eval()
    ours, theirs = topic_gates(model)["default"].state_dict(), topic_gates(again)["default"].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(again(**BATCH.inputs).logits, model(**BATCH.inputs).logits)
    values = [one.base_model.last_gates["default"].values_BG for one in (model, again)]
    assert torch.equal(*values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_another_type_keeps_its_gates_as_precise_as_they_were(dtype: torch.dtype) -> None:
    model = attach_topics()
    gate = topic_gates(model)["default"]
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    for changed in (model.to(dtype), model.float(), model.to(dtype)):
        after = topic_gates(changed)["default"].state_dict()
        assert all(after[name].dtype == torch.float32 and torch.equal(after[name], before[name]) for name in before)
    assert model.get_input_embeddings().weight.dtype == dtype
    model(**BATCH.inputs)
    assert model.base_model.last_gates["default"].logits_BG.dtype == torch.float32
    assert all(value.dtype == torch.float64 for value in topic_gates(model.double())["default"].state_dict().values())


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"topic_layer": 0}, "topic_layer is 0, expected a layer above 0, the other gate's, and at most 1"),
    ({"topic_layer": 1, "gate_layer": 1}, "topic_layer is 1, expected a layer above 1"),
    (
        {"topic_layer": 2},
        "topic_layer is 2, expected a layer above 0, the other gate's, and at most 1, the first edited",
    ),
    ({"topic_layer": 0.4, "gate_layer": 1}, "topic_layer is 0.4, expected a layer above 1"),
    ({"topic_layer": 1, "gate": "none"}, "topics are recognised beside a shared gate: set gate and gate_layer"),
    ({"topic_layer": 1, "gate_layer": None}, "topics are recognised beside a shared gate: set gate and gate_layer"),
    ({"topic_layer": "1"}, "topic_layer is '1', expected an index"),
    ({"topic_layer": True}, "topic_layer is True, expected an index"),
    ({"topic_layer": -1}, "topic_layer is -1, expected an index"),
    ({"topic_layer": 1.5}, "topic_layer is 1.5, expected an index"),
    ({"topic_layer": float("nan")}, "topic_layer is nan, expected an index"),
    ({"topic_width": 0}, "topic_width is 0, expected a number at least 1"),
    ({"topic_nearest": 0.5}, "topic_nearest is 0.5, expected a number at least 1"),
    ({"topic_kept": [1]}, "topic_kept is [1], expected two numbers of prompts"),
    ({"topic_kept": [1, -1]}, "topic_kept is [1, -1], expected two numbers of prompts"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=str)
def test_wrong_settings_are_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        get_peft_model(tiny_model(), GrunConfig(**(SHAPE | changes)))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("layers", "gate_layer", "given", "index"),
    [
        ([1, 3], 0, 0.4, 1),
        ([3], 0, 0.4, 1),
        ([3], 0, 0.9, 3),
        ([2, 3], 1, 0.01, 2),
        ([2], 0, 2, 2),
        ([0.65], 0, 0.4, 1),
    ],
)
def test_a_fraction_of_depth_keeps_clear_of_the_other_gate_and_of_the_edits(
    layers: list[int | float], gate_layer: int, given: int | float, index: int
) -> None:
    model: Any = get_peft_model(tiny_model(), GrunConfig(layers=layers, gate_layer=gate_layer, topic_layer=given))
    assert model.peft_config["default"].topic_layer == index
    assert [layer.index for layer in model.base_model.runtime.layers if layer.gates] == [gate_layer, index]
    assert model.peft_config["default"].shared_gates == [gate_layer, index]


def test_published_and_plain_configurations_have_no_gate_for_topics() -> None:
    for config in (GrunConfig.paper(), GrunConfig(), GrunConfig(gate="none")):
        assert config.topic_layer is None
        assert config.shared_gates in ([], [0])
        assert not any(name.startswith("topic_") for name in config.to_dict())
        assert not any(name.startswith("topic_") for name in config.own_settings())
    member = GrunConfig.stack({"a": GrunConfig(**SHAPE), "b": GrunConfig()}).to_dict()["members"]
    assert member["a"]["topic_layer"] == 1
    assert "topic_layer" not in member["b"]


def test_kept_prompts_change_their_number_with_what_is_kept() -> None:
    gate = topic_gates(attach_topics())["default"]
    gate.keep(random_units(3), random_units(9))
    assert [len(gate.state_dict()[name]) for name in ("forget", "normal")] == [3, 9]
    assert gate.forget.is_contiguous()
