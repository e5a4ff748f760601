"""Hidden states of many prompts in a base model; what all prompts begin with is read once."""

from __future__ import annotations

__all__ = ["PromptStates", "read_prompts"]

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from grun.core.process.progress import tracked
from grun.models.encoding.batching import length_batches
from grun.models.forward import Enough
from grun.models.tuner.layer import GrunLayer

ROWS = 16  # of a batch; attention of many long rows takes much memory
WORTH_SHARING = 8  # tokens


@dataclass(frozen=True)
class PromptStates:
    """States at the input of one layer, in bfloat16 on the CPU.

    Attributes:
        shared_PD: of the tokens that all prompts begin with; P may be 0.
        own: states (P, D) of the other tokens of each prompt, at least one.
    """

    shared_PD: Tensor
    own: list[Tensor]


@torch.no_grad()
def read_prompts(model: Any, prompts: Sequence[Sequence[int]], layer: GrunLayer, pad: int) -> PromptStates:
    """Read prompts in the base model up to the input of a wrapped layer.

    Args:
        model: PEFT model with a GRUN adapter.
        prompts: token ids.
        layer: the wrapped layer.
        pad: token that fills rows up.
    """
    device = next(layer.parameters()).device if model.device.type == "meta" else model.device
    count = _common_start(prompts) if _attends_to_everything(model) else 0
    shared = list(prompts[0][:count])
    cache: DynamicCache | None = None
    shared_PD = torch.zeros(0, model.config.get_text_config().hidden_size, dtype=torch.bfloat16)
    with model.disable_adapter():
        if shared:
            cache = DynamicCache()
            ids_1P = torch.tensor([shared], device=device)
            shared_PD = _stored(_input_of(model, layer, input_ids=ids_1P, past_key_values=cache, use_cache=True)[0])
        found: dict[int, Tensor] = {}
        chunks = length_batches([len(prompt) for prompt in prompts], ROWS)
        for chunk in tracked(chunks, "read normal prompts", len(prompts), "prompt", len):
            own = [list(prompts[i][count:]) for i in chunk]
            width = max(map(len, own))
            ids_BT = torch.tensor([ids + [pad] * (width - len(ids)) for ids in own], device=device)
            mask_BT = torch.tensor([[1] * (count + len(ids)) + [0] * (width - len(ids)) for ids in own], device=device)
            past: dict[str, Any] = {"use_cache": False}
            if cache is not None:
                repeated = copy.deepcopy(cache)
                repeated.batch_repeat_interleave(len(own))
                past = {"use_cache": True, "past_key_values": repeated}
            h_BTD = _input_of(model, layer, input_ids=ids_BT, attention_mask=mask_BT, **past)
            found |= {i: _stored(h_TD[: len(ids)]) for i, ids, h_TD in zip(chunk, own, h_BTD, strict=True)}
    return PromptStates(shared_PD, [found[i] for i in range(len(prompts))])


def _input_of(model: Any, layer: GrunLayer, **inputs: Any) -> Tensor:
    """Input of a layer in a forward call, which ends there."""
    states: list[Tensor] = []
    with _keeping_input(layer, states), suppress(Enough):
        model(**inputs)
    return states[0]


@contextmanager
def _keeping_input(layer: GrunLayer, states: list[Tensor]) -> Iterator[None]:
    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        raise Enough

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _stored(h_PD: Tensor) -> Tensor:
    return h_PD.to("cpu", torch.bfloat16, copy=True)


def _attends_to_everything(model: Any) -> bool:
    """Check whether all layers keep keys and values of all tokens; other kinds of layers need caches of their own."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    return set(kinds or ["full_attention"]) == {"full_attention"}


def _common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, such as a template's; 0 if they are few. Each keeps one of its own."""
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # everything between them in order begins alike
    most = min(map(len, prompts)) - 1
    same = next((i for i in range(most) if first[i] != last[i]), most)
    return same if same >= WORTH_SHARING else 0
