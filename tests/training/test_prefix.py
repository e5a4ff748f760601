"""Training from a cached prefix: the plain engine's losses, gates and gradients, on every architecture and setting."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.encoding.templates import resolve_template
from grun.models.forward import gates_of_last_call, side_signals
from grun.models.gates.features import gates_of
from grun.models.row_encoder import RowEncoder
from grun.training.forward_engines.prefix import engine as prefix_engine
from grun.training.forward_engines.prefix.batching import parts_by_length
from grun.training.forward_engines.prefix.building import base_model_parts
from grun.training.forward_engines.prefix.engine import PrefixEngine
from grun.training.forward_engines.prefix.store import PartStore
from support.adapter_kit import CONFIGS, attach, config_id, make_rows
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer
from support.topic_kit import attach_topics

TOKENIZER = tiny_tokenizer()
ENCODER = RowEncoder(TOKENIZER, resolve_template("qa", TOKENIZER), None, 1, torch.device("cpu"))
ROWS = [Encoded(tuple(ids.tolist()), prompt, 0) for ids, prompt in make_rows(6)]
WANTED = ("logps", "logits", "hidden")


def loss_of(side: SideSignals, gates: tuple[Tensor, Tensor] | None) -> Tensor:
    """Something that depends on everything."""
    weights_N = torch.linspace(0.5, 1.5, len(side.logps_N))
    loss = -(side.logps_N * weights_N).sum() + side.hidden_ND.tanh().sum() + side.logits_NV.logsumexp(1).square().mean()
    return loss if gates is None else loss + nn.functional.softplus(gates[0]).sum()


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(model: Any, rows: list[Encoded] = ROWS) -> None:
    model = model.double()  # rounding noise would hide small mistakes
    layer = model.base_model.runtime.layers[-1]
    engine = PrefixEngine(model, ENCODER, layer)
    engine.add(rows)
    plain = side_signals(model, collate(rows, 3), wanted=WANTED, layer=layer)
    plain_gates = gates_of_last_call(model)
    expected = gradients(model, loss_of(plain, plain_gates))
    found = engine.signals(model, engine.batch(rows), WANTED)
    gates = gates_of_last_call(model)
    grads = gradients(model, loss_of(found, gates))
    for name in ("targets", *WANTED):
        torch.testing.assert_close(found.quantities[name], plain.quantities[name], atol=1e-5, rtol=1e-5)
    assert (gates is None) == (plain_gates is None)
    if gates is not None and plain_gates is not None:
        torch.testing.assert_close(gates[0], plain_gates[0], atol=1e-5, rtol=1e-5)
    assert grads.keys() == expected.keys()
    assert expected
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient"
        torch.testing.assert_close(grads[name], gradient, atol=1e-5, rtol=1e-4, msg=partial("{}: {}".format, name))


@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_signals_and_gradients_are_those_of_the_plain_engine(arch: str, options: dict) -> None:
    compare(attach(arch, **options))


@pytest.mark.parametrize("options", [{}, {"layers": [2, 3], "topic_layer": 2, "edit_from": "last_prompt_only"}])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_with_a_gate_for_topics_too(arch: str, options: dict) -> None:
    compare(attach_topics(arch, **options))


@pytest.mark.parametrize(
    "options", [{"gate": "none"}, {"gate_layer": 0}, {"gate_layer": 0, "layers": [0, 2, 3]}, {"layers": [3]}]
)
def test_without_a_gate_with_a_gate_on_the_embeddings_and_at_the_ends_of_the_model(options: dict) -> None:
    compare(attach(**options))


@pytest.mark.parametrize(("arch", "kinds"), [("gemma2", ("sliding", "full")), ("gemma3", ("sliding", "sliding"))])
def test_a_prefix_longer_than_a_sliding_window(arch: str, kinds: tuple[str, str]) -> None:
    window: dict[str, Any] = {"sliding_window": 4, "layer_types": [f"{kind}_attention" for kind in kinds] * 2}
    model = attach(tiny_model(arch, **window), gate_layer=1).double()
    for row in ROWS:  # padding wider than the window is not a number in the plain engine
        compare(model, [row])
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    alone = torch.cat([side_signals(model, collate([row], 3)).logps_N for row in ROWS])
    torch.testing.assert_close(
        engine.signals(model, engine.batch(ROWS), ("logps",)).logps_N, alone, atol=1e-5, rtol=1e-5
    )


def test_a_batch_moves_as_a_whole_and_says_how_many_tokens_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrefixEngine(attach(gate_layer=1), ENCODER)
    engine.add(ROWS)
    inputs = engine.batch(ROWS)
    parts = inputs["batch"].parts
    assert inputs["input_ids"].numel() == sum(part.ids_BC.numel() for part in parts)
    held = [value for part in parts for value in vars(part).values()]
    tensors = [value for value in held if isinstance(value, Tensor)]
    tensors += [tensor for value in held if isinstance(value, dict) for pair in value.values() for tensor in pair]
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    assert inputs["batch"].pin_memory() == inputs["batch"]
    assert {id(tensor) for tensor in pinned} == {id(tensor) for tensor in tensors}
    moved = send_to_device(inputs, "meta")["batch"]  # as the trainer's data loader does
    assert moved.places == inputs["batch"].places
    for part in moved.parts:
        (states,) = part.gate_states.values()
        assert all(value.is_meta for value in vars(part).values() if isinstance(value, Tensor))
        assert all(tensor.is_meta for tensor in states)


def test_a_frozen_gate_is_read_once_per_prompt() -> None:
    model = attach(gate_layer=1)
    for _, gate in gates_of(model, "default"):
        gate.requires_grad_(False)
    compare(model)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    for part in engine.batch(ROWS)["batch"].parts:
        assert not part.gate_states
        assert list(part.gate_logits) == [("default", 1)]


def test_the_model_is_whole_again_after_a_step_that_fails() -> None:
    model = attach(gate_layer=1)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    before = [type(layer) for layer in model.get_base_model().model.layers]
    inputs = engine.batch(ROWS)
    wrong = tuple(replace(part, ids_BC=part.ids_BC + 10**6) for part in inputs["batch"].parts)
    with pytest.raises((RuntimeError, IndexError)):
        engine.signals(model, {**inputs, "batch": replace(inputs["batch"], parts=wrong)}, ("logps",))
    assert [type(layer) for layer in model.get_base_model().model.layers] == before
    assert model.base_model.runtime.continuation is None
    plain = side_signals(model, collate(ROWS, 3))
    torch.testing.assert_close(engine.signals(model, inputs, ("logps",)).logps_N, plain.logps_N)


def test_prompts_shared_by_several_answers_and_prompts_of_one_token() -> None:
    first = ROWS[0]
    prompt = first.input_ids[: first.prompt_length]
    rows = [first, Encoded((*prompt, 40, 41, 2), first.prompt_length, 0), Encoded((50, 60, 2), 1, 0), ROWS[3]]
    for options in CONFIGS:
        compare(attach(**options), rows=rows)
    compare(attach(), rows=[Encoded((50, 60, 2), 1, 0), Encoded((51, 61, 62, 2), 1, 0)])


def test_references_are_those_of_the_base_model_and_more_can_be_asked_for_later() -> None:
    model = attach()
    engine = PrefixEngine(model, ENCODER, model.base_model.runtime.layers[0])
    engine.add(ROWS[:4])
    engine.add(ROWS, {"logits", "hidden"})
    with model.disable_adapter(), torch.no_grad():
        found = engine.references(ROWS, {1, 4}, WANTED)
        for i, row in enumerate(ROWS):
            plain = side_signals(
                model, collate([row], 3), wanted=WANTED, layer=model.base_model.runtime.layers[0].base_layer
            )
            for name in WANTED:
                expected = plain.quantities[name] if i in (1, 4) else torch.empty(0)
                torch.testing.assert_close(found[name][i], expected, atol=1e-5, rtol=1e-5)


def test_half_precision_is_kept_as_it_is() -> None:
    model = attach(tiny_model().to(torch.bfloat16), gate_layer=1)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    inputs = engine.batch(ROWS)
    assert {part.hidden_BCD.dtype for part in inputs["batch"].parts} == {torch.bfloat16}
    assert {part.keys_values_LBHPK.dtype for part in inputs["batch"].parts} == {torch.bfloat16}
    plain = side_signals(model, collate(ROWS, 3))
    torch.testing.assert_close(engine.signals(model, inputs, ("logps",)).logps_N, plain.logps_N, atol=0.15, rtol=0.05)


def test_probability_is_that_of_the_whole_rows() -> None:
    model = attach(gate_layer=1)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    assert engine.probability(model, ROWS) == pytest.approx(ENCODER.probability(model, ROWS), rel=1e-5)
    with model.disable_adapter():
        assert engine.base_probability(ROWS) == pytest.approx(ENCODER.probability(model, ROWS), rel=1e-5)


def test_a_folder_is_built_once_and_goes_on_after_a_kill(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = attach(gate_layer=1), PartStore(tmp_path / "prefix")
    real, passes, again = base_model_parts, [], None

    def counting(model, rows, *others, **more):
        passes.append(len(rows))
        if len(passes) == 2 and again is None:
            raise TimeoutError
        return real(model, rows, *others, **more)

    monkeypatch.setattr(prefix_engine, "base_model_parts", counting)
    first = PrefixEngine(model, ENCODER, store=store)
    with pytest.raises(TimeoutError):
        first.add(ROWS)
    again = PrefixEngine(model, ENCODER, store=store)
    again.add(ROWS)
    assert sum(passes[2:]) == len(ROWS) - passes[0], "the batch that was complete was not computed again"
    passes.clear()
    third = PrefixEngine(model, ENCODER, store=store)
    third.add(ROWS)
    assert passes == []
    fresh = PrefixEngine(model, ENCODER)
    fresh.add(ROWS)
    a, b = (one.signals(model, one.batch(ROWS), ("logps",)).logps_N for one in (third, fresh))
    assert torch.equal(a, b)
    for file in (tmp_path / "prefix").glob("*.safetensors"):
        shorter = file.with_suffix(".part")
        shorter.write_bytes(file.read_bytes()[:50])
        shorter.replace(file)
    damaged = PrefixEngine(model, ENCODER, store=store)
    damaged.add(ROWS)
    assert torch.equal(damaged.signals(model, damaged.batch(ROWS), ("logps",)).logps_N, b)


def cost(parts: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(max(lengths[i] for i in part) * len(part) + overhead for part in parts)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 40))
def test_parts_are_the_cheapest_of_all(lengths: list[int], overhead: int) -> None:
    parts = parts_by_length(lengths, overhead)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    cuts = [[i for i in range(1, len(order)) if chosen & (1 << (i - 1))] for chosen in range(2 ** (len(order) - 1))]
    every = [[order[a:b] for a, b in zip([0, *cut], [*cut, len(order)], strict=True)] for cut in cuts]
    assert cost(parts, lengths, overhead) == min(cost(one, lengths, overhead) for one in every)


@pytest.mark.parametrize("overhead", [0.0, 1e15])
@pytest.mark.parametrize("options", CONFIGS, ids=config_id)
def test_one_part_or_many_say_the_same(monkeypatch: pytest.MonkeyPatch, options: dict, overhead: int) -> None:
    monkeypatch.setattr("grun.training.forward_engines.prefix.batching.PART_OVERHEAD", overhead)
    model = attach(**options)
    engine = PrefixEngine(model, ENCODER)
    engine.add(ROWS)
    assert len(engine.batch(ROWS)["batch"].parts) == (
        1 if overhead else len({len(r.input_ids) - r.prompt_length for r in ROWS})
    )
    compare(model)
