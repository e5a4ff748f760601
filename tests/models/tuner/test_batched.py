"""Several adapters at once: one product gives what one after the other gives, and shut ones cost and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model

from grun.models.tuner.batched import EditStack, GateStack
from grun.models.tuner.config import GrunConfig
from grun.models.tuner.edit import Gate, LowRankEdit
from support.adapter_kit import make_rows, pad, randomise
from support.tiny_models import tiny_model


def stacked(count: int, **options: Any):
    """A model with several active adapters that differ."""
    settings = {"rank": 2, "layers": [1, 3], "gate_hidden": [8], "gate_layer": 1, **options}
    model: Any = get_peft_model(tiny_model(), GrunConfig(**settings), adapter_name="a0")
    for i in range(1, count):
        model.add_adapter(f"a{i}", GrunConfig(**settings))
    for i in range(count):
        randomise(model, seed=i, adapter=f"a{i}")
    model.base_model.set_adapter([f"a{i}" for i in range(count)])
    return model.eval()


def thresholds(model, value: float) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("threshold"):
            buffer.fill_(value)


@pytest.mark.parametrize(("hidden", "window"), [((), 1), ((8,), 1), ((8,), 3), ((8, 5), 1), ((8, 5), 3)])
def test_a_stack_of_gates_reads_what_each_gate_reads(hidden: tuple[int, ...], window: int) -> None:
    torch.manual_seed(0)
    gates = [Gate(16, hidden, window) for _ in range(5)]
    h_BTD, prompt_BT = torch.randn(3, 9, 16), torch.arange(9) < torch.tensor([[4], [9], [7]])
    stack = GateStack.of(gates)
    assert stack is not None
    with torch.no_grad():
        found, _ = stack.read(h_BTD, prompt_BT, None, None)
        later, _ = stack.read(h_BTD.flip(1), prompt_BT, None, found)
        for i, gate in enumerate(gates):
            one = gate(h_BTD, prompt_BT)
            torch.testing.assert_close(found[i], one)
            torch.testing.assert_close(later[i], gate(h_BTD.flip(1), prompt_BT, one))
    assert GateStack.of([Gate(16, (8,), 1), Gate(16, (9,), 1)]) is None


def test_a_stack_of_edits_is_their_weighted_sum() -> None:
    torch.manual_seed(0)
    edits = [LowRankEdit(16, rank, identity=False) for rank in (2, 4, 3)]
    h_BTD, values_BTN = torch.randn(2, 5, 16), torch.rand(2, 5, 3)
    with torch.no_grad():
        found = EditStack.of(edits, torch.float32)(h_BTD, values_BTN)
        expected = h_BTD + sum(values_BTN[..., i, None] * edit(h_BTD) for i, edit in enumerate(edits))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"gate_layer": None}, {"gate": "none"}, {"edit_from": "last_prompt_only"}])
def test_without_gradients_the_output_is_that_of_one_after_the_other(options: dict) -> None:
    model = stacked(4, **options)
    batch = pad(make_rows())
    apart = model(**batch.inputs)
    gates = {name: found.logits_BG for name, found in model.base_model.last_gates.items()}
    with torch.no_grad():
        together = model(**batch.inputs)
    torch.testing.assert_close(together.logits, apart.logits, atol=1e-4, rtol=1e-4)
    for name, found in model.base_model.last_gates.items():
        torch.testing.assert_close(found.logits_BG, gates[name], atol=1e-5, rtol=1e-5)
    base = tiny_model()(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
    assert (together.logits - base).abs().max() > 0.01


def test_adapters_of_different_shapes_stack_too() -> None:
    model = stacked(2)
    model.add_adapter("other", GrunConfig(rank=3, layers=[2], gate_hidden=[6, 4], gate_layer=1))
    randomise(model, seed=9, adapter="other")
    model.base_model.set_adapter(["a0", "a1", "other"])
    batch = pad(make_rows())
    apart = model(**batch.inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(model(**batch.inputs).logits, apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("count", "reads"), [(1, "last"), (3, "last"), (1, "prompt"), (3, "prompt")])
def test_shut_adapters_change_nothing_and_are_passed_over_in_decoding(count: int, reads: str) -> None:
    """Gates that read every token of prompts read those of answers too; their edits are passed over."""
    model = stacked(count, gate_reads=reads)
    base = tiny_model().requires_grad_(False)  # torch multiplies frozen weights in another order
    thresholds(model, 1e9)
    ids = torch.tensor([[20, 30, 40, 50], [21, 31, 41, 51]])
    settings: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    settings |= {"return_dict_in_generate": True}
    settings |= {"output_logits": True, "attention_mask": torch.ones_like(ids)}
    idle: list[bool] = []
    handle = model.base_model.runtime.layers[0].base_layer.register_forward_pre_hook(
        lambda *_: idle.append(model.base_model.runtime.idle)
    )
    found, expected = model.generate(input_ids=ids, **settings), base.generate(input_ids=ids, **settings)
    handle.remove()
    assert torch.equal(found.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))
    assert idle == [False, *[reads == "last"] * 5]
    assert not model.base_model.runtime.idle


def test_one_open_adapter_among_shut_ones_edits_as_if_it_were_alone() -> None:
    model, alone = stacked(3), stacked(1)
    thresholds(model, 1e9)
    for name, buffer in model.named_buffers():
        if name.endswith("threshold") and ".a0." in name:
            buffer.fill_(-1e9)
    thresholds(alone, -1e9)
    ids = torch.tensor([[20, 30, 40, 50], [21, 31, 41, 51]])
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(input_ids=ids, **settings), alone.generate(input_ids=ids, **settings))


def test_another_threshold_takes_effect_in_the_next_call() -> None:
    model = stacked(3)
    batch = pad(make_rows())
    with torch.no_grad():
        opened = model(**batch.inputs).logits
        thresholds(model, 1e9)
        shut = model(**batch.inputs).logits
        base = tiny_model().requires_grad_(False)(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
    assert torch.equal(shut, base)
    assert not torch.equal(opened, base)
