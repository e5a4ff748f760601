"""Every prompt token is read: a cache that the gate did not read is read again or refused, and calls it cannot read are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaForSequenceClassification, LlamaModel

from grun import GrunConfig
from grun.core.errors import UserError
from support.adapter_kit import attach, make_rows
from support.tiny_models import tiny_model

PROMPTS = make_rows()
NEW = 6
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture
def model() -> Any:
    return attach(gate_reads="prompt", gate_layer=0)


def conversation() -> tuple[torch.Tensor, torch.Tensor]:
    """The first part of a conversation (1, T) and the whole of it."""
    first_T, second_T = PROMPTS[1][0], PROMPTS[3][0]
    return first_T[None], torch.cat([first_T, second_T])[None]


def filled(model: Any, how: str) -> Any:
    """A cache of the first part of the conversation."""
    first_BT, _ = conversation()
    length_B = torch.tensor([first_BT.shape[1]])
    if how == "adapter off":
        with model.disable_adapter():
            return model(first_BT, use_cache=True).past_key_values
    if how == "another adapter":
        model.add_adapter("other", GrunConfig(gate_layer=0, init_seed=5))
        model.set_adapter("other")
        cache = model(first_BT, prompt_lengths=length_B, use_cache=True).past_key_values
        model.set_adapter("default")
        return cache
    if how == "shorter prompt":
        return model(first_BT, prompt_lengths=torch.tensor([2]), use_cache=True).past_key_values
    turn = model.generate(first_BT, **OPTIONS, return_dict_in_generate=True)
    return turn.past_key_values


@pytest.mark.parametrize("how", ["adapter off", "another adapter", "shorter prompt"])
@torch.no_grad()
def test_generate_reads_again_what_the_gate_has_not_read(model: Any, how: str) -> None:
    _, whole_BT = conversation()
    expected = model.generate(whole_BT, **OPTIONS)
    cache = filled(model, how)
    given = {"past_key_values": cache, "attention_mask": torch.ones_like(whole_BT)}
    assert torch.equal(model.generate(whole_BT, **given, **OPTIONS), expected)


@torch.no_grad()
def test_the_models_own_earlier_answer_is_read_in_the_next_turn(model: Any) -> None:
    first_BT, _ = conversation()
    turn = model.generate(first_BT, **OPTIONS, return_dict_in_generate=True)
    whole_BT = torch.cat([turn.sequences, PROMPTS[3][0][None]], 1)
    model.generate(whole_BT, **OPTIONS)
    logits = model.base_model.last_gates["default"].logits_BG
    given = {"past_key_values": turn.past_key_values, "attention_mask": torch.ones_like(whole_BT)}
    held = turn.past_key_values.get_seq_length()
    model.generate(whole_BT, **given, **OPTIONS)
    assert held == whole_BT.shape[1] - len(PROMPTS[3][0]) - 1, "the answer was read while it was written"
    torch.testing.assert_close(model.base_model.last_gates["default"].logits_BG, logits)


@pytest.mark.parametrize("how", ["adapter off", "another adapter"])
@torch.no_grad()
def test_a_forward_call_refuses_a_cache_that_the_gate_has_not_read(model: Any, how: str) -> None:
    cache = filled(model, how)
    past = cache.get_seq_length()
    more_BT = PROMPTS[3][0][None]
    with pytest.raises(UserError, match=r"holds \d+ tokens, of which the gate .* has read \d+"):
        model(more_BT, past_key_values=cache, prompt_lengths=torch.tensor([past + more_BT.shape[1]]))


@torch.no_grad()
def test_a_cropped_cache_forgets_what_was_cut(model: Any) -> None:
    first_BT, whole_BT = conversation()
    expected = model.generate(whole_BT, **OPTIONS)
    logits = model.base_model.last_gates["default"].logits_BG
    more_BT, length_B = PROMPTS[3][0][None], torch.tensor([whole_BT.shape[1]])
    long_BT = torch.cat([first_BT, torch.full((1, 3), 7)], 1)
    cache = model(long_BT, prompt_lengths=torch.tensor([long_BT.shape[1]]), use_cache=True).past_key_values
    cache.crop(-3)
    model(more_BT, past_key_values=cache, prompt_lengths=length_B)
    torch.testing.assert_close(model.base_model.last_gates["default"].logits_BG, logits)
    cache.crop(-more_BT.shape[1] - 1)  # into what an earlier call has read
    with pytest.raises(UserError, match="has read 0"):
        model(more_BT, past_key_values=cache, prompt_lengths=length_B - 1)
    given = {"past_key_values": cache, "attention_mask": torch.ones_like(whole_BT)}
    assert torch.equal(model.generate(whole_BT, **given, **OPTIONS), expected)


@torch.no_grad()
def test_tokens_that_are_taken_back_were_never_read(model: Any) -> None:
    first_BT, _ = conversation()
    cache = model(first_BT, prompt_lengths=torch.tensor([first_BT.shape[1]]), use_cache=True).past_key_values
    expected = model(torch.tensor([[9, 11]]), past_key_values=copy.deepcopy(cache)).logits
    for taken_back in (torch.tensor([[9]]), torch.tensor([[5, 6, 7]])):
        model(taken_back, past_key_values=cache)
        cache.crop(-taken_back.shape[1])
    model(torch.tensor([[9, 40, 50]]), past_key_values=cache)
    cache.crop(-2)
    torch.testing.assert_close(model(torch.tensor([[11]]), past_key_values=cache).logits, expected[:, 1:])


@pytest.mark.parametrize("at_once", [True, False])
@torch.no_grad()
def test_a_gate_that_the_answer_opens_edits_from_there_on(at_once: bool) -> None:
    """A name stands in the answer only: what comes before it is the base model's, it and what follows are edited."""
    model, base, name, ids_BT = (
        attach(gate="linear", gate_layer=0),
        tiny_model(),
        40,
        torch.tensor([[20, 30, 31, 40, 50, 51]]),
    )
    gate = model.base_model.runtime.layers[0].gates["default"].layers[0]
    state_D = base.get_input_embeddings().weight[name]
    gate.weight.copy_(state_D[None])
    gate.bias.fill_(-0.9 * float(state_D.square().sum()))
    model.base_model.runtime.layers[0].gates["default"].threshold.fill_(0.0)
    plain = base(ids_BT).logits
    if at_once:
        found = model(ids_BT, prompt_lengths=torch.tensor([1])).logits
    else:
        cache: Any = None
        parts: list[torch.Tensor] = []
        for t in range(ids_BT.shape[1]):
            more: dict[str, Any] = {"past_key_values": cache} if t else {"prompt_lengths": torch.tensor([1])}
            out = model(ids_BT[:, t : t + 1], use_cache=True, **more)
            cache, parts = out.past_key_values, [*parts, out.logits]
        found = torch.cat(parts, 1)
    torch.testing.assert_close(found[:, :3], plain[:, :3])
    assert all(not torch.allclose(found[:, t], plain[:, t], atol=1e-4) for t in range(3, 6))
    assert float(model.base_model.last_gates["default"].values_BG.max()) == 0, "of the prompt"


@pytest.mark.parametrize(
    "more", [{"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, {"cu_seq_lens_q": torch.tensor([0, 3, 6])}]
)
def test_packed_rows_are_refused(model: Any, more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="one sequence per row"):
        model(torch.arange(6)[None] + 3, prompt_lengths=torch.tensor([6]), **more)


def test_rows_with_adapters_of_their_own_are_refused(model: Any) -> None:
    ids_BT = conversation()[0]
    with pytest.raises(UserError, match="adapter_names"):
        model(ids_BT, prompt_lengths=torch.tensor([ids_BT.shape[1]]), adapter_names=["default"])
    with pytest.raises(UserError, match="adapter_names"):
        model.generate(ids_BT, adapter_names=["default"], max_new_tokens=1)


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_models_that_write_no_text_are_refused(kind: Any) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__} writes no text"):
        get_peft_model(kind(tiny_model("llama").config), GrunConfig())


def test_a_mixed_model_is_refused() -> None:
    with pytest.raises(ValueError, match="'GRUN' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny_model(), GrunConfig(), mixed=True)
