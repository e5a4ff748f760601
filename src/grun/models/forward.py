"""Forward passes on rows of text: log-probabilities of answers, and the gates of the last call."""

from __future__ import annotations

__all__ = [
    "Enough",
    "accepts_prompt_lengths",
    "adapters_off",
    "context_length",
    "evaluating",
    "forward_parameters",
    "gates_of_last_call",
    "longest_row",
    "observed_outputs",
    "reference_signals",
    "side_signals",
    "unwrapped",
]

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.records import Batch, SideSignals

IGNORED = -100


def accepts_prompt_lengths(model: nn.Module) -> bool:
    """True if the model's forward call takes `prompt_lengths`, as that of a model with GRUN adapters does."""
    return bool(getattr(getattr(unwrapped(model), "base_model", None), "takes_prompt_lengths", False))


class Enough(Exception):
    """Raised inside a forward pass to end it once everything that was asked for is known."""


def side_signals(
    model: nn.Module,
    batch: Batch,
    *,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
    with_grad: bool = True,
) -> SideSignals:
    """Signals of a model on the labelled tokens of a batch, in float32.

    Args:
        model: a causal language model, with or without adapters.
        batch: on the model's device.
        wanted: quantities to return: `logps`, `logits`, `hidden`; `targets` are always returned.
        layer: the decoder layer whose output `hidden` is.
        with_grad: keep the graph for a backward pass.

    Raises:
        ValueError: if the first token of a row is labelled: no token precedes it that could predict it.
    """
    mask_BT = batch.labels_BT != IGNORED
    if bool(mask_BT[:, 0].any()):
        raise ValueError("the first token of a row is labelled, but nothing precedes it: leave its label at -100")
    states: list[Tensor] = []
    with (
        nullcontext() if with_grad else torch.no_grad(),
        observed_outputs(layer if "hidden" in wanted else None, states),
    ):
        logits_BCV, columns_C = _logits(model, batch, mask_BT, everything="logps" in wanted or "logits" in wanted)
        device = logits_BCV.device
        found: dict[str, Tensor] = {"targets": batch.labels_BT[mask_BT].to(device)}
        if "hidden" in wanted:
            found["hidden"] = states[0][mask_BT.to(states[0].device)].float().to(device)
        if "logps" in wanted or "logits" in wanted:
            logits_NV = logits_BCV[mask_BT[:, columns_C + 1].to(device)].float()
        if "logps" in wanted:
            chosen_N = logits_NV.gather(1, found["targets"][:, None]).squeeze(1)
            found["logps"] = chosen_N - logits_NV.logsumexp(1)
        if "logits" in wanted:
            found["logits"] = logits_NV
    return SideSignals(mask_BT.to(device), found)


@torch.no_grad()
def reference_signals(
    model: nn.Module,
    batch: Batch,
    *,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
) -> SideSignals:
    """The `side_signals` of the base model: adapters off, dropout off, no gradient."""
    with adapters_off(model), evaluating(model):
        return side_signals(model, batch, wanted=wanted, layer=layer, with_grad=False)


def context_length(model: nn.Module) -> int | None:
    """Longest input of the model in tokens, from its configuration; None if the configuration does not say."""
    config = getattr(unwrapped(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config  # type: ignore[union-attr]
    longest = getattr(text, "max_position_embeddings", None)
    return None if longest is None else int(longest)


def longest_row(model: nn.Module, asked: int | None) -> int | None:
    """Longest row in tokens: the smaller of `asked` and the model's context; None if neither is known."""
    return min(filter(None, (asked, context_length(model))), default=None)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Context in which a PEFT model acts as its base model; any other model stays as it is."""
    disable: Callable[[], Any] = getattr(unwrapped(model), "disable_adapter", nullcontext)
    with disable():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which the model is in evaluation mode; afterwards every module is in its former mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def gates_of_last_call(model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Gate logits and values, (B, G) each, of the last call that read prompts; None without gates.

    The gates of all active adapters, those of each adapter in layer order. A call with adapters off does not change them:
    after it they are still those of an earlier call.
    """
    found = getattr(getattr(unwrapped(model), "base_model", None), "last_gates", None)
    if not found:
        return None
    gates = list(found.values())
    return torch.cat([g.logits_BG for g in gates], dim=1), torch.cat([g.values_BG for g in gates], dim=1)


@contextmanager
def observed_outputs(layer: nn.Module | None, states: list[Tensor]) -> Iterator[None]:
    """Context in which the outputs of a layer are appended to `states` (after the edit of a GRUN adapter at that layer)."""
    if layer is None:
        yield
        return

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _logits(model: nn.Module, batch: Batch, mask_BT: Tensor, everything: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, K, V) of the columns whose next token is labelled in some row, and those columns (K,).

    Models that support it compute no other logits: with a large vocabulary they are most of a step's memory. Where no logits
    are wanted, one column is computed.
    """
    columns_C = mask_BT[:, 1:].any(0).nonzero().squeeze(1)
    columns_C = columns_C if everything else columns_C[:1]
    parameters = forward_parameters(model)
    inputs: dict[str, Any] = dict(batch.model_inputs(), use_cache=False)
    if accepts_prompt_lengths(model):
        inputs["prompt_lengths"] = batch.prompt_lengths_B
    if "position_ids" in parameters and bool((batch.attention_mask_BT[:, 0] == 0).any()):
        inputs["position_ids"] = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
    if "logits_to_keep" in parameters:
        return model(**inputs, logits_to_keep=columns_C).logits, columns_C
    return model(**inputs).logits[:, columns_C], columns_C


def forward_parameters(model: nn.Module) -> set[str]:
    """Parameter names of the language model's own forward call (a PEFT wrapper passes everything on)."""
    inner = unwrapped(model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]
    return set(inspect.signature(base.forward).parameters)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel, sharding and compiled wrappers."""
    for name in ("module", "_orig_mod", "_fsdp_wrapped_module"):
        if name in model._modules:
            return unwrapped(model._modules[name])  # type: ignore[arg-type]
    return model
