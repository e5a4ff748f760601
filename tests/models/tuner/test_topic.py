"""The gate for topics: its logit, its reading in parts and in padded batches, and what it opens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grun.models.tuner.readers.topic import TopicGate
from support.adapter_kit import Padded, make_rows, pad, reference_state
from support.plain_grun import plain_grun, plain_topic_logit
from support.tiny_models import ARCHITECTURES, tiny_model
from support.topic_kit import HIDDEN, attach_topics, fill, part_open, set_thresholds, topic_gates

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
NEW = 4
ROWS = make_rows(5)
PROMPTS = [(ids_T[:length], length) for ids_T, length in ROWS]
EDITS: list[dict[str, Any]] = [{}, {"edit_from": "last_prompt_only"}, {"gate_reads": "last", "layers": [2, 3]}]


def gate_of(seed: int = 0, nearest: int = 2, kept: tuple[int, int] = (5, 7)) -> TopicGate:
    return fill(TopicGate(HIDDEN, 8, nearest=nearest), seed, kept=kept)


def states(count: int, length: int, seed: int = 0) -> Tensor:
    """States of very different norms, as attention sinks have them."""
    generator = torch.Generator().manual_seed(seed)
    h_BTD = torch.randn(count, length, HIDDEN, generator=generator)
    return h_BTD * torch.randn(count, length, 1, generator=generator).mul(2).exp()


def logits(model: Any, batch: Padded) -> list[Tensor]:
    """Logits of each row, without padding."""
    positions_BT = (batch.mask_BT.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logits_BTV = model(**batch.inputs, position_ids=positions_BT).logits
    return [batch.row(logits_BTV, i) for i in range(len(logits_BTV))]


def generate(model: Any, prompts: Any = PROMPTS, **options: Any) -> Any:
    batch = pad(prompts, "left")
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    found = model.generate(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return found.sequences[:, batch.ids_BT.shape[1] :], torch.stack(found.logits)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4), st.tuples(st.integers(1, 6), st.integers(1, 6)))
@settings(max_examples=40, deadline=None)
def test_the_logit_is_the_one_computed_token_by_token(
    seed: int, length: int, nearest: int, kept: tuple[int, int]
) -> None:
    gate, h_1PD = gate_of(seed, nearest, kept), states(1, length, seed)
    tensors = {name: value for name, value in gate.state_dict().items() if name != "threshold"}
    expected = plain_topic_logit(tensors, h_1PD[0], nearest)
    found = gate(h_1PD, torch.ones(1, length, dtype=torch.bool))[0, 0]
    torch.testing.assert_close(found.double(), expected, **CLOSE)


@pytest.mark.parametrize("options", EDITS, ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_equal_the_plain_model_one_at_a_time(arch: str, options: dict) -> None:
    """Some rows open one gate only, and at least one opens none."""
    model = attach_topics(arch, **options)
    names, topics = part_open(model, pad(ROWS), names=1, topics=3)
    assert (sum(names), sum(topics)) == (1, 3)
    base, state, config = tiny_model(arch), reference_state(model), model.peft_config["default"]
    with torch.no_grad():
        expected = [plain_grun(base, state, ids_T, prompt, config) for ids_T, prompt in ROWS]
    for side in ("right", "left", "both"):
        found = logits(model, pad(ROWS, side, extra=2))
        gates_BG = model.base_model.last_gates["default"].logits_BG
        for i, (logits_TV, gate_logits) in enumerate(expected):
            torch.testing.assert_close(found[i], logits_TV, **CLOSE)
            torch.testing.assert_close(gates_BG[i], torch.stack(gate_logits), **CLOSE)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 11), max_size=4, unique=True))
@settings(max_examples=30, deadline=None)
def test_a_prompt_read_in_parts_is_read_as_a_whole(seed: int, cuts: list[int]) -> None:
    gate, h_BTD = gate_of(seed), states(3, 12, seed)
    prompt_BT = torch.arange(12) < torch.tensor([[12], [7], [1]])
    prompt_BT[0, :3] = False  # padding on the left
    whole_BS = gate(h_BTD, prompt_BT)
    before_BS: Tensor | None = None
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 12], strict=True):
        before_BS = gate(h_BTD[:, start:end], prompt_BT[:, start:end], before_BS)
    assert before_BS is not None
    torch.testing.assert_close(before_BS[:, 0], whole_BS[:, 0], **CLOSE)


def test_padding_of_any_content_does_not_count_and_nothing_read_is_no_logit() -> None:
    gate, h_BTD = gate_of(), states(3, 9)
    prompt_BT = torch.arange(9) < torch.tensor([[9], [4], [0]])
    expected = gate(h_BTD, prompt_BT)[:, 0]
    assert expected[2] == -math.inf
    assert gate.value(expected)[2] == 0
    for content in (0.0, 1e9, math.nan, math.inf):
        filled_BTD = h_BTD.masked_fill(~prompt_BT[..., None], content)
        torch.testing.assert_close(gate(filled_BTD, prompt_BT)[:, 0], expected, rtol=1e-6, atol=1e-6)
    for i, length in enumerate((9, 4)):
        alone = gate(h_BTD[i : i + 1, :length], torch.ones(1, length, dtype=torch.bool))[0, 0]
        torch.testing.assert_close(alone, expected[i], rtol=1e-5, atol=1e-5)


def test_the_norm_of_a_state_does_not_matter() -> None:
    gate, h_BTD, everything_BT = gate_of(), states(2, 5), torch.ones(2, 5, dtype=torch.bool)
    scaled_BTD = h_BTD * torch.tensor([1e-2, 1.0, 1e3, 5.0, 0.3])[:, None]
    torch.testing.assert_close(gate(scaled_BTD, everything_BT)[:, 0], gate(h_BTD, everything_BT)[:, 0], **CLOSE)


@pytest.mark.parametrize("options", EDITS, ids=str)
@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2", "opt"])
def test_below_both_thresholds_everything_is_the_base_models_to_the_bit(arch: str, options: dict) -> None:
    model, base = attach_topics(arch, **options), tiny_model(arch).requires_grad_(False)
    set_thresholds(model, 1e9)
    batch = pad(ROWS)
    with torch.no_grad():
        plain = base(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
        assert torch.equal(model(**batch.inputs).logits, plain)
    with torch.enable_grad():
        assert torch.equal(model(**batch.inputs).logits, plain)
    for way in ({}, {"use_cache": False}, {"num_beams": 3}, {"num_beams": 2, "use_cache": False}):
        for ours, theirs in zip(generate(model, **way), generate(base, **way), strict=True):
            assert torch.equal(ours, theirs), way


@pytest.mark.parametrize("options", EDITS, ids=str)
def test_a_row_at_its_threshold_is_the_base_models_and_a_row_above_either_is_edited(options: dict) -> None:
    model, base, batch = attach_topics(**options), tiny_model().requires_grad_(False), pad(ROWS)
    with torch.no_grad():
        plain = base(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
        for names, topics in ((0, 2), (2, 0), (0, 0), (1, 4)):
            by_name, by_topic = part_open(model, batch, names, topics)
            found = model(**batch.inputs).logits
            for i in range(len(ROWS)):
                opens = by_name[i] or by_topic[i]
                ours, theirs = (
                    batch.row(logits, i)[: ROWS[i][1]] for logits in (found, plain)
                )  # an answer may open it
                assert torch.equal(ours, theirs) != opens
        for gate in topic_gates(model).values():  # exactly at the largest logit: none is above it
            gate.threshold.copy_(model.base_model.last_gates["default"].logits_BG[:, 1].max())
        model.base_model.runtime.layers[0].gates["default"].threshold.fill_(1e9)
        assert torch.equal(model(**batch.inputs).logits, plain)


def test_the_edit_is_worth_the_larger_of_the_two_values() -> None:
    """With both gates open, one factor, and it is the same whichever of them gives it."""
    model, batch = attach_topics(scale=0.7), pad(ROWS)
    with torch.no_grad():
        model(**batch.inputs)
        values_BG = model.base_model.last_gates["default"].values_BG
        largest_B = values_BG.max(1).values
        expected = model(**batch.inputs).logits
        for i in range(2):  # that gate alone, shut for the rows where the other one is worth more
            set_thresholds(model, -math.inf)
            held = [layer.gates["default"] for layer in model.base_model.runtime.layers if "default" in layer.gates]
            held[1 - i].threshold.fill_(math.inf)
            found = model(**batch.inputs).logits
            for row in range(len(ROWS)):
                same = torch.allclose(batch.row(found, row), batch.row(expected, row), **CLOSE)
                assert same == (values_BG[row, i] == largest_B[row])


@pytest.mark.parametrize("options", EDITS, ids=str)
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt_neox"])
def test_every_way_of_decoding_gives_the_answers_of_one_prompt_alone(arch: str, options: dict) -> None:
    model = attach_topics(arch, **options)
    part_open(model, pad(PROMPTS), names=1, topics=2)
    expected = torch.cat([generate(model, [prompt], use_cache=False)[0] for prompt in PROMPTS])
    assert not torch.equal(expected, generate(tiny_model(arch))[0]), "the adapter must change the answers"
    for way in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}):
        assert torch.equal(generate(model, **way)[0], expected), way
    beams = torch.cat([generate(model, [prompt], num_beams=3, use_cache=False)[0] for prompt in PROMPTS])
    assert torch.equal(generate(model, num_beams=3)[0], beams)
