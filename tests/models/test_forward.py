"""Forward passes against plain one-row loops, for every architecture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import (
    accepts_prompt_lengths,
    adapters_off,
    evaluating,
    gates_of_last_call,
    reference_signals,
    side_signals,
)
from grun.models.generation import greedy
from grun.models.tuner.config import GrunConfig
from support.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LENGTHS = ((4, 3), (9, 1), (1, 6), (6, 6), (2, 2), (7, 4), (3, 9))  # prompt and answer tokens of each row


def rows(seed: int = 0) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Encoded(tuple(torch.randint(6, 300, (prompt + answer,), generator=generator).tolist()), prompt, 0)
        for prompt, answer in LENGTHS
    ]


def plain_logps(model: nn.Module, row: Encoded) -> list[float]:
    """Token by token, without batch, padding, cache or slicing."""
    found = []
    with torch.no_grad():
        for at in range(row.prompt_length, len(row.input_ids)):
            logits_V = model(input_ids=torch.tensor([row.input_ids[:at]])).logits[0, -1]
            found.append(float(logits_V.log_softmax(-1)[row.input_ids[at]]))
    return found


def plain_greedy(model: nn.Module, prompt: list[int], limit: int, ends: set[int]) -> list[int]:
    ids: list[int] = []
    with torch.no_grad():
        while len(ids) < limit:
            token = int(model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].argmax())
            if token in ends:
                break
            ids.append(token)
    return ids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_log_probabilities_equal_a_plain_loop_over_single_rows(arch: str, side: str) -> None:
    model, encoded = tiny_model(arch), rows()
    batch = collate(encoded, 3, side, 20)
    signals = side_signals(model, batch, with_grad=False)
    assert torch.equal(signals.mask_BT, batch.labels_BT != -100)
    assert (signals.logps_BT[~signals.mask_BT] == 0).all()
    for row, logps_T, mask_T in zip(encoded, signals.logps_BT, signals.mask_BT, strict=True):
        assert logps_T[mask_T].tolist() == pytest.approx(plain_logps(model, row), abs=1e-5)


def test_gradients_equal_those_of_the_models_own_loss() -> None:
    model, batch = tiny_model(), collate(rows(), 3)
    side_signals(model, batch).mean_nll.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**batch.model_inputs(), labels=batch.labels_BT).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name


def test_half_precision_models_give_float32_and_no_gradient_where_none_is_wanted() -> None:
    model = tiny_model().bfloat16()
    signals = side_signals(model, collate(rows(), 3), with_grad=False)
    assert signals.logps_BT.dtype == torch.float32
    assert not signals.logps_BT.requires_grad
    assert side_signals(model, collate(rows(), 3)).logps_BT.requires_grad


def test_a_label_on_the_first_token_is_refused() -> None:
    batch = collate(rows(), 3)
    batch.labels_BT[2, 0] = 7
    with pytest.raises(ValueError, match="nothing precedes it"):
        side_signals(tiny_model(), batch)


class FakeGated(nn.Module):
    """Takes `prompt_lengths`, as a model with GRUN adapters does, and remembers them."""

    takes_prompt_lengths = True

    def __init__(self) -> None:
        super().__init__()
        self.last_gates: dict[str, SimpleNamespace] = {}
        self.seen: Any = None

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, prompt_lengths: Tensor, use_cache: bool
    ) -> SimpleNamespace:
        self.seen = prompt_lengths
        for name, shift in (("a", 0.0), ("b", 10.0)):
            logits_BG = prompt_lengths[:, None].float() + shift + torch.arange(2)
            self.last_gates[name] = SimpleNamespace(logits_BG=logits_BG, values_BG=logits_BG.sigmoid())
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 320))


def known_gates(model: nn.Module) -> tuple[Tensor, Tensor]:
    found = gates_of_last_call(model)
    assert found is not None
    return found


class FakePeft(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = FakeGated()
        self.forward = self.base_model.forward


def test_prompt_lengths_go_to_models_that_take_them_and_gates_come_back_in_order() -> None:
    model, batch = FakePeft(), collate(rows(), 3)
    assert accepts_prompt_lengths(model)
    assert not accepts_prompt_lengths(tiny_model())
    assert gates_of_last_call(model) is None
    side_signals(model, batch)
    assert torch.equal(model.base_model.seen, batch.prompt_lengths_B)
    logits_BG, values_BG = known_gates(model)
    assert logits_BG[0].tolist() == [4.0, 5.0, 14.0, 15.0]
    assert torch.equal(values_BG, logits_BG.sigmoid())
    assert gates_of_last_call(tiny_model()) is None


def adapted(config: Any) -> nn.Module:
    model = get_peft_model(tiny_model(), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.mark.parametrize(
    "config",
    [GrunConfig(), GrunConfig.paper(), LoraConfig(target_modules=["q_proj"], r=2)],
    ids=["default", "paper", "lora"],
)
def test_reference_log_probabilities_are_the_base_models_whatever_the_adapter(config: Any) -> None:
    model, batch = adapted(config), collate(rows(), 3)
    model.train()
    before = side_signals(tiny_model(), batch, with_grad=False).logps_BT
    found = reference_signals(model, batch)
    assert torch.equal(found.logps_BT, before)
    assert not found.logps_BT.requires_grad
    assert model.training
    with evaluating(model):
        assert not torch.allclose(side_signals(model, batch).logps_BT, before, atol=1e-2)


@pytest.mark.parametrize("config", [GrunConfig(), GrunConfig.paper()], ids=["default", "paper"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_gated_model_says_the_same_in_a_batch_and_alone(config: GrunConfig, side: str) -> None:
    model = adapted(config).eval()
    together = side_signals(model, collate(rows(), 3, side, 20), with_grad=False)
    logits_BG, values_BG = known_gates(model)
    for i, row in enumerate(rows()):
        alone = side_signals(model, collate([row], 3), with_grad=False)
        assert together.logps_BT[i][together.mask_BT[i]].tolist() == pytest.approx(
            alone.logps_BT[alone.mask_BT].tolist(), abs=1e-5
        )
        assert torch.allclose(known_gates(model)[0][0], logits_BG[i], atol=1e-5)
        assert torch.allclose(known_gates(model)[1][0], values_BG[i], atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_answers_equal_a_plain_argmax_loop_at_any_batch_size(arch: str) -> None:
    model = tiny_model(arch)
    prompts = [list(row.input_ids[: row.prompt_length]) for row in rows()]
    expected = []
    for prompt in prompts:
        ids = plain_greedy(model, prompt, 6, {2})
        expected.append(str(TOKENIZER.decode(ids, skip_special_tokens=True)).strip())
    for size in (1, 7):
        assert greedy(model, TOKENIZER, prompts, 6, size) == expected
    assert len(set(expected)) > 3


def test_greedy_ignores_what_the_models_generation_settings_ask_for() -> None:
    model, prompts = tiny_model(), [[7, 8, 9], [10, 11]]
    expected = greedy(model, TOKENIZER, prompts, 8, 2)
    settings = model.generation_config
    settings.do_sample, settings.temperature, settings.repetition_penalty, settings.num_beams = True, 5.0, 3.0, 3
    settings.no_repeat_ngram_size, settings.min_new_tokens = 1, 7
    assert greedy(model, TOKENIZER, prompts, 8, 2) == expected


def test_an_answer_ends_at_the_first_token_that_ends_it() -> None:
    model, prompt = tiny_model(), [7, 8, 9]
    ids = plain_greedy(model, prompt, 8, set())
    cut = next(i for i, token in enumerate(ids) if i and token not in ids[:i])
    model.generation_config.eos_token_id = [2, ids[cut]]
    assert greedy(model, TOKENIZER, [prompt], 8, 1) == [
        str(TOKENIZER.decode(ids[:cut], skip_special_tokens=True)).strip()
    ]
    assert ids[:cut]
    assert ids[cut:]


@pytest.mark.parametrize("arch", ["llama", "gpt2", "opt"])
def test_a_prompt_that_fills_the_context_never_shortens_the_answers_of_others(arch: str) -> None:
    model = tiny_model(arch)
    prompts = [[7, 8, 9], list(range(6, 260)), [20] * 256]
    alone = [greedy(model, TOKENIZER, [prompt], 6, 1)[0] for prompt in prompts]
    assert greedy(model, TOKENIZER, prompts, 6, 3) == alone
    assert alone[2] == ""
    assert alone[0]


def test_adapters_off_leaves_plain_models_alone() -> None:
    model, batch = tiny_model(), collate(rows(), 3)
    with adapters_off(model):
        inside = side_signals(model, batch, with_grad=False).logps_BT
    assert torch.equal(inside, side_signals(model, batch, with_grad=False).logps_BT)
