"""States of many prompts in the base model: what all begin with is read once, and nothing else differs by that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grun.models.gates.topics import prompt_states
from grun.models.gates.topics.prompt_states import PromptStates, read_prompts
from support.adapter_kit import PAD
from support.tiny_models import ARCHITECTURES, VOCABULARY, tiny_model
from support.topic_kit import attach_topics

ROUNDED: dict[str, Any] = {"rtol": 2**-7, "atol": 1e-2}  # states are kept in bfloat16
START = list(range(20, 32))
WINDOW: dict[str, Any] = {"sliding_window": 6}
SLIDING: dict[str, dict[str, Any]] = {
    "gemma2": WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3": WINDOW | {"layer_types": ["sliding_attention"] * 4},
    "mistral": WINDOW,
    "qwen2": WINDOW | {"use_sliding_window": True, "max_window_layers": 0},
}
MODELS: list[tuple[str, dict[str, Any]]] = [(arch, {}) for arch in ARCHITECTURES] + list(SLIDING.items())


def prompts_of(start: list[int], count: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 14, (count,), generator=generator).tolist()
    own = [torch.randint(40, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    own[1], own[2] = [50], [51]  # nothing in common behind the start
    return [[*start, *ids] for ids in own]


def alone(model: Any, layer: Any, ids: list[int]) -> Tensor:
    """The input (T, D) of a layer in the base model, one prompt at a time."""
    states: list[Tensor] = []
    handle = layer.register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return states[0][0]


def layer_of(model: Any, index: int) -> Any:
    return next(layer for layer in model.base_model.runtime.layers if layer.index == index)


def assert_states(states: PromptStates, model: Any, layer: Any, prompts: list[list[int]]) -> None:
    assert len(states.own) == len(prompts)
    for ids, own_PD in zip(prompts, states.own, strict=True):
        assert len(own_PD) >= 1
        found = torch.cat([states.shared_PD, own_PD])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), alone(model, layer, ids), **ROUNDED)


@pytest.mark.parametrize(("arch", "changes"), MODELS, ids=str)
def test_states_are_those_of_one_prompt_at_a_time_with_and_without_a_start_that_all_share(
    arch: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_topics(tiny_model(arch, **changes), layers=[3], topic_layer=3)
    layer, prompts = layer_of(model, 3), prompts_of(START)
    shared = read_prompts(model, prompts, layer, PAD)
    assert len(shared.shared_PD) in (0, len(START))
    assert changes or arch in SLIDING or len(shared.shared_PD) == len(START)
    assert_states(shared, model, layer, prompts)
    monkeypatch.setattr(prompt_states, "WORTH_SHARING", 10**6)
    apart = read_prompts(model, prompts, layer, PAD)
    assert len(apart.shared_PD) == 0
    assert_states(apart, model, layer, prompts)


@pytest.mark.parametrize("start", [0, 3, prompt_states.WORTH_SHARING - 1, prompt_states.WORTH_SHARING, 12])
def test_a_start_is_shared_if_it_is_worth_it(start: int) -> None:
    model = attach_topics()
    prompts = prompts_of(START[:start])
    states = read_prompts(model, prompts, layer_of(model, 1), PAD)
    assert len(states.shared_PD) == (start if start >= prompt_states.WORTH_SHARING else 0)
    assert_states(states, model, layer_of(model, 1), prompts)


@pytest.mark.parametrize("count", [1, 2])
def test_every_prompt_keeps_a_token_of_its_own(count: int) -> None:
    model = attach_topics()
    prompts = [START, [*START, 50]][:count]
    states = read_prompts(model, prompts, layer_of(model, 1), PAD)
    assert len(states.shared_PD) == len(START) - 1
    assert_states(states, model, layer_of(model, 1), prompts)


def test_layers_above_are_not_run_and_the_adapter_does_not_act() -> None:
    model, ran = attach_topics(layers=[3], topic_layer=1), []
    for index, layer in enumerate(model.get_base_model().model.layers):
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    read_prompts(model, prompts_of(START), layer_of(model, 1), PAD)
    assert set(ran) <= {0, 1}
    assert model.base_model.runtime.last_logits == {}
