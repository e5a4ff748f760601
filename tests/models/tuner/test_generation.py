"""`generate` in all its forms equals the plain model run step by step without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from grun.core.errors import UserError
from support.adapter_kit import CONFIGS, attach, config_id, make_rows, pad, pad_one, reference_state
from support.plain_grun import plain_grun
from support.tiny_models import ARCHITECTURES, tiny_model

NEW = 4
PROMPTS = [(ids_T[:length], length) for ids_T, length in make_rows(4)]


def generate(model: Any, prompts: Any = PROMPTS, **options: Any) -> torch.Tensor:
    """New tokens (B, NEW) of left-padded prompts."""
    batch = pad(prompts, "left")
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    out = model.generate(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, **options)
    return out[:, batch.ids_BT.shape[1] :]


def by_hand(model: Any, arch: str, end_of_sequence: int = 2) -> torch.Tensor:
    """Greedy tokens from the plain implementation, the whole sequence run anew for every token."""
    base, state, config, out = tiny_model(arch), reference_state(model), model.peft_config["default"], []
    for ids_T, prompt in PROMPTS:
        for _ in range(NEW):
            logits_TV, _ = plain_grun(base, state, ids_T, prompt, config)
            logits_TV[-1, end_of_sequence] = -torch.inf  # as min_new_tokens does
            ids_T = torch.cat([ids_T, logits_TV[-1].argmax()[None]])
        out.append(ids_T[prompt:])
    return torch.stack(out)


@pytest.fixture(params=CONFIGS, ids=config_id)
def model(request: pytest.FixtureRequest) -> Any:
    return attach(**request.param)


@pytest.mark.parametrize("options", [CONFIGS[0], CONFIGS[1], CONFIGS[-1]], ids=config_id)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_with_and_without_cache_equals_the_plain_model(arch: str, options: dict) -> None:
    model = attach(arch, **options)
    expected = by_hand(model, arch)
    assert torch.equal(generate(model), expected)
    assert torch.equal(generate(model, use_cache=False), expected)
    with model.disable_adapter():
        base = generate(model)
    assert torch.equal(base, generate(tiny_model(arch)))
    assert not torch.equal(base, expected), "the adapter must change the answers"
    assert torch.equal(generate(model), expected)


def test_left_padding_equals_batch_size_one(model: Any) -> None:
    together = generate(model)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(generate(model, [prompt])[0], together[i])


VARIANTS: dict[str, dict[str, Any]] = {
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_ways_of_decoding_do_not_change_greedy_answers(model: Any, variant: str) -> None:
    prompts = PROMPTS[:1] if variant == "prompt lookup" else PROMPTS
    assert torch.equal(generate(model, prompts, **VARIANTS[variant]), generate(model, prompts))


def test_prompt_lookup_accepts_candidates_and_changes_nothing(model: Any) -> None:
    ids_T = torch.tensor([20, 21, 22, 23] * 4)
    expected = generate(model, [(ids_T, 16)])
    assert torch.equal(generate(model, [(ids_T, 16)], prompt_lookup_num_tokens=4), expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search_in_a_batch_equals_beam_search_alone(model: Any, use_cache: bool) -> None:
    options = {"num_beams": 3, "num_return_sequences": 2, "use_cache": use_cache}
    together = generate(model, **options)
    alone = torch.cat(
        [generate(model, [prompt], num_beams=3, num_return_sequences=2, use_cache=False) for prompt in PROMPTS]
    )
    assert torch.equal(together, alone)


def test_sampling_is_repeatable_and_does_not_depend_on_the_cache(model: Any) -> None:
    def sample(**options: Any) -> torch.Tensor:
        torch.manual_seed(5)
        return generate(model, do_sample=True, num_return_sequences=3, **options)

    assert sample().shape == (3 * len(PROMPTS), NEW)
    assert torch.equal(sample(), sample())
    assert torch.equal(sample(), sample(use_cache=False))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("arch", ["gemma2", "mistral"])
def test_sliding_window_caches(arch: str, cache: str) -> None:
    model = attach(tiny_model(arch, sliding_window=4))
    expected = generate(model, use_cache=False)
    assert torch.equal(generate(model, cache_implementation=None if cache == "dynamic" else cache), expected)


def test_embeddings_as_prompt(model: Any) -> None:
    batch = pad_one(PROMPTS[1])
    embeds_BTD = model.get_input_embeddings()(batch.ids_BT)
    found = model.generate(inputs_embeds=embeds_BTD, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert torch.equal(found, generate(model, PROMPTS[1:2]))


def test_padding_is_found_without_a_mask(model: Any) -> None:
    batch = pad(PROMPTS, "left")
    out = model.generate(batch.ids_BT, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert torch.equal(out[:, batch.ids_BT.shape[1] :], generate(model))


def prefill(model: Any, **options: Any) -> Any:
    batch = pad(PROMPTS, "left")
    positions_BT = (batch.mask_BT.cumsum(1) - 1).clamp_min(0)
    return model(**batch.inputs, position_ids=positions_BT, use_cache=True, **options)


def step(model: Any, cache: Any, rows: list[int]) -> torch.Tensor:
    """Logits of one more token for rows that hold the given prompts, in the given order."""
    mask_BT = pad(PROMPTS, "left").mask_BT[rows]
    mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], 1)
    position_B1 = mask_BT.sum(1, keepdim=True) - 1
    ids_B1 = torch.tensor([[30 + row] for row in rows])
    return model(input_ids=ids_B1, attention_mask=mask_BT, position_ids=position_B1, past_key_values=cache).logits[
        :, -1
    ]


CACHE_OPERATIONS: dict[str, tuple[Any, list[int]]] = {
    "reorder": (lambda c: c.reorder_cache(torch.tensor([3, 3, 0, 1])), [3, 3, 0, 1]),
    "repeat": (lambda c: c.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2, 3, 3]),
    "select": (lambda c: c.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
}


@pytest.mark.parametrize("operation", CACHE_OPERATIONS)
@torch.no_grad()
def test_gates_follow_their_rows_through_the_cache(model: Any, operation: str) -> None:
    change, rows = CACHE_OPERATIONS[operation]
    expected_BV = step(model, prefill(model).past_key_values, [0, 1, 2, 3])
    cache = prefill(model).past_key_values
    change(cache)
    torch.testing.assert_close(step(model, cache, rows), expected_BV[rows], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_copied_cache_decodes_alike_and_on_its_own(model: Any) -> None:
    cache = prefill(model).past_key_values
    copied = copy.deepcopy(cache)
    expected_BV = step(model, cache, [0, 1, 2, 3])
    assert torch.equal(step(model, copied, [0, 1, 2, 3]), expected_BV)
    cache.reorder_cache(torch.tensor([1, 1, 1, 1]))
    assert copied.get_seq_length() == cache.get_seq_length()


@torch.no_grad()
def test_manual_decoding_equals_one_forward_pass(model: Any) -> None:
    expected = []
    for row, (ids_T, length) in enumerate(PROMPTS):
        batch = pad_one((torch.cat([ids_T, torch.tensor([30 + row])]), length))
        expected.append(model(**batch.inputs).logits[0, -1])
    found_BV = step(model, prefill(model).past_key_values, [0, 1, 2, 3])
    torch.testing.assert_close(found_BV, torch.stack(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_reset_static_cache_forgets_the_gates(model: Any) -> None:
    from transformers import StaticCache

    cache: Any = StaticCache(config=model.config, max_cache_len=32)
    prefill(model, past_key_values=cache)
    assert cache._grun_readings
    cache.reset()
    assert cache._grun_readings == {}


@torch.no_grad()
def test_a_second_turn_equals_the_whole_conversation_read_at_once() -> None:
    """With the paper's gate a conversation continued from its cache is read at its newest prompt token."""
    model = attach(gate_reads="last", edit_from="last_prompt_only")
    first_T, second_T = PROMPTS[1][0], PROMPTS[3][0]
    whole = torch.cat([first_T, second_T])[None]
    with model.disable_adapter():
        cache = model(first_T[None], use_cache=True).past_key_values
    options = {"attention_mask": torch.ones_like(whole), "max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(model.generate(whole, past_key_values=cache, **options), model.generate(whole, **options))
    turn = model.generate(first_T[None], max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    whole = torch.cat([turn.sequences[0], second_T])[None]
    model.generate(whole, past_key_values=turn.past_key_values, attention_mask=torch.ones_like(whole), max_new_tokens=1)
    assert len(model.base_model.last_gates["default"].logits_BG) == 1


def test_where_the_boundary_cannot_be_known_nothing_is_guessed() -> None:
    model = attach()
    ids_BT = PROMPTS[1][0][None]
    with model.disable_adapter():
        cache = model(ids_BT, use_cache=True).past_key_values
    with pytest.raises(UserError, match="prompt_lengths.*labels"):
        model(ids_BT[:, -1:], past_key_values=cache)
    cache = model(ids_BT, prompt_lengths=torch.tensor([ids_BT.shape[1]]), use_cache=True).past_key_values
    with pytest.raises(UserError, match="attention_mask of the whole sequence"):
        model.generate(ids_BT, past_key_values=cache, max_new_tokens=1)
    with pytest.raises(UserError, match="needs a prompt"):
        model.generate(max_new_tokens=1)
    with pytest.raises(UserError, match="prompt_lengths.*labels"):
        model.base_model.model.generate(ids_BT, max_new_tokens=1)


def test_generating_leaves_no_state_behind() -> None:
    model = attach()
    with torch.inference_mode():
        generate(model)
    runtime = model.base_model.runtime
    assert runtime.generation is None
    assert runtime.call is None
    batch = pad(make_rows(2))
    model(**batch.inputs).logits.sum().backward()  # nothing computed under inference mode was kept


def test_parameters_changed_behind_autograd_take_effect() -> None:
    model = attach()
    before = generate(model)
    for name, parameter in model.named_parameters():
        if name.endswith("rotation"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))
            assert parameter.requires_grad
    after = generate(model)
    assert not torch.equal(before, after)
    assert torch.equal(after, by_hand(model, "llama"))


def test_threads_may_share_a_model() -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = attach()
    expected = [generate(model, [prompt]) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: generate(model, [prompt]), PROMPTS * 3))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 3, strict=True))
