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
    "language_model",
    "longest_row",
    "quantities_at",
    "observed_outputs",
    "reference_signals",
    "side_signals",
    "thresholds_of_last_call",
    "unwrapped",
]

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.records import Batch, SideSignals
from grun.models.answer_head import answer_logps, head_of, packed_head

IGNORED = -100
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # names under which wrappers hold the model


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
    rows_of: Mapping[str, Tensor] | None = None,
    fused: bool = False,
) -> SideSignals:
    """Signals of a model on the labelled tokens of a batch, in float32.

    Args:
        model: a causal language model, with or without adapters.
        batch: on the model's device.
        wanted: quantities to return: `logps`, `logits`, `hidden`; `targets` are always returned.
        layer: the decoder layer whose output `hidden` is.
        with_grad: keep the graph for a backward pass.
        rows_of: by quantity, a bool mask (B,) of the rows that it is wanted of; None for all rows.
        fused: compute `logps` without logits, where no logits are wanted (see `applies_nothing_after_head`).

    Raises:
        ValueError: if the first token of a row is labelled: no token precedes it that could predict it.
    """
    mask_BT = batch.labels_BT != IGNORED
    if bool(mask_BT[:, 0].any()):
        raise ValueError("the first token of a row is labelled, but nothing precedes it: leave its label at -100")
    inputs: dict[str, Any] = dict(batch.model_inputs(), use_cache=False)
    if accepts_prompt_lengths(model):
        inputs["prompt_lengths"] = batch.prompt_lengths_B
    if "position_ids" in forward_parameters(model) and bool((batch.attention_mask_BT[:, 0] == 0).any()):
        inputs["position_ids"] = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
    with nullcontext() if with_grad else torch.no_grad():
        found = quantities_at(model, inputs, mask_BT, batch.input_ids_BT, wanted, layer, rows_of=rows_of, fused=fused)
    return SideSignals(mask_BT.to(found["targets"].device), found)


def quantities_at(
    model: nn.Module,
    inputs: dict[str, Any],
    answer_BT: Tensor,
    ids_BT: Tensor,
    wanted: Collection[str],
    layer: nn.Module | None,
    *,
    rows_of: Mapping[str, Tensor] | None = None,
    fused: bool = False,
) -> dict[str, Tensor]:
    """Quantities of answer tokens from one forward call, which computes the vocabulary head for them alone.

    Args:
        model: a causal language model, with or without adapters.
        inputs: arguments of the call, of C columns; C is T, or T - 1 where the last column predicts nothing and is left out.
        answer_BT: bool, true on answer tokens.
        ids_BT: int64, tokens.
        wanted, layer, rows_of, fused: as of `side_signals`.
    """
    reads = [name for name in ("logps", "logits") if name in wanted]
    of = {name: answer_BT if rows_of is None else answer_BT & rows_of[name][:, None] for name in wanted}
    read_BT = torch.stack([of[name] for name in reads]).any(0) if reads else torch.zeros_like(answer_BT)
    from_BC = nn.functional.pad(read_BT[:, 1:], (0, 1))[:, : inputs["input_ids"].shape[1]]
    base, states, fused = language_model(model), list[Tensor](), fused and reads == ["logps"]
    if "logits_to_keep" in forward_parameters(model):
        columns_K = from_BC.any(0).nonzero().squeeze(1) if reads else torch.zeros(1, dtype=torch.long)
        inputs["logits_to_keep"], from_BC = columns_K, from_BC[:, columns_K]
    with (
        observed_outputs(layer if "hidden" in wanted else None, states),
        packed_head(None if is_compiled(model) else head_of(base), from_BC, skip=fused) as packed,
    ):
        logits_XV = model(**inputs).logits
    device = logits_XV.device
    found: dict[str, Tensor] = {"targets": ids_BT[answer_BT].to(device)}
    if "hidden" in wanted:
        found["hidden"] = states[0][of["hidden"].to(states[0].device)].float().to(device)
    if not reads:
        return found
    if fused and packed:
        head: Any = head_of(base)
        h_ND = packed[0]
        return found | {"logps": answer_logps(head, h_ND, ids_BT[read_BT].to(h_ND.device)).to(device)}
    logits_NV = (logits_XV[0] if packed else logits_XV[from_BC.to(device)]).float()
    if "logps" in reads:
        own_NV = _own(logits_NV, of["logps"], read_BT)
        chosen_N = own_NV.gather(1, ids_BT[of["logps"]].to(device)[:, None]).squeeze(1)
        found["logps"] = chosen_N - own_NV.logsumexp(1)
    if "logits" in reads:
        found["logits"] = _own(logits_NV, of["logits"], read_BT)
    return found


@torch.no_grad()
def reference_signals(
    model: nn.Module,
    batch: Batch,
    *,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
    fused: bool = False,
) -> SideSignals:
    """The `side_signals` of the base model: adapters off, dropout off, no gradient."""
    with adapters_off(model), evaluating(model):
        return side_signals(model, batch, wanted=wanted, layer=layer, with_grad=False, fused=fused)


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
    gates = _last_gates(model)
    if not gates:
        return None
    return torch.cat([g.logits_BG for g in gates], dim=1), torch.cat([g.values_BG for g in gates], dim=1)


def thresholds_of_last_call(model: nn.Module) -> Tensor | None:
    """Thresholds (G,) in logits of the gates of `gates_of_last_call`, in their order; None without gates."""
    gates = _last_gates(model)
    return torch.cat([g.threshold_G for g in gates]) if gates else None


def _last_gates(model: nn.Module) -> list[Any]:
    """Decisions of the gates of each active adapter; none without gates."""
    found = getattr(getattr(unwrapped(model), "base_model", None), "last_gates", None)
    return list(found.values()) if found else []


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


def _own(logits_NV: Tensor, own_BT: Tensor, read_BT: Tensor) -> Tensor:
    """The logits of some of the tokens that were read."""
    own_N = own_BT[read_BT]
    return logits_NV if bool(own_N.all()) else logits_NV[own_N.to(logits_NV.device)]


def language_model(model: nn.Module) -> nn.Module:
    """The language model itself, inside all wrappers and a PEFT model."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]


def is_compiled(model: nn.Module) -> bool:
    """True if `torch.compile` made the model: hooks of single calls would compile it anew."""
    if "_orig_mod" in model._modules:
        return True
    return any(is_compiled(model._modules[name]) for name in WRAPPERS if name in model._modules)  # type: ignore[arg-type]


def forward_parameters(model: nn.Module) -> set[str]:
    """Parameter names of the language model's own forward call (a PEFT wrapper passes everything on)."""
    return set(inspect.signature(language_model(model).forward).parameters)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel, sharding and compiled wrappers."""
    for name in WRAPPERS:
        if name in model._modules:
            return unwrapped(model._modules[name])  # type: ignore[arg-type]
    return model
