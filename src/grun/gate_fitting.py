"""Fit gates to convergence on cached features, before any edit is trained, and set their thresholds on withheld prompts.

Training gate and edit together for a few hundred steps leaves gates half open. The states that a gate reads do not depend on
the edit that it controls, so they are computed once and the gate is fitted on them like any small classifier.
"""

from __future__ import annotations

__all__ = ["GateFit", "GateFeatures", "calibrate", "fit_gates", "gate_features"]

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.adapters.edit import Gate
from grun.adapters.layer import GrunLayer
from grun.prompt_position import from_prompt_lengths
from grun.records import Batch

MAX_STEPS = 600
PATIENCE = 60
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class GateFeatures:
    """States that one gate reads: (N rows, P prompt tokens, D) in the model's dtype, and a bool mask (N, P) of real ones."""

    h_NPD: Tensor
    mask_NP: Tensor

    def logits(self, gate: Gate) -> Tensor:
        """Gate logits (N,): the largest over the tokens that the gate reads."""
        return gate(self.h_NPD).masked_fill(~self.mask_NP, -math.inf).amax(1)

    def rows(self, index: Tensor) -> GateFeatures:
        """A subset of the rows."""
        return GateFeatures(self.h_NPD[index], self.mask_NP[index])


@dataclass(frozen=True)
class GateFit:
    """How the fit of one gate went: steps taken and the balanced cross-entropy on validation rows (nats)."""

    layer: int
    steps: int
    validation_loss: float


class _Enough(Exception):
    """Raised inside a forward pass once every gate has what it reads."""


def gated_layers(model: nn.Module, adapter: str = "default") -> list[GrunLayer]:
    """The wrapped layers of a PEFT model that hold a gate of `adapter`, in order."""
    return [layer for layer in model.base_model.runtime.layers if adapter in layer.grun_gate]  # type: ignore[union-attr]


@torch.no_grad()
def gate_features(model: nn.Module, batches: Iterable[Batch], adapter: str = "default") -> list[GateFeatures]:
    """What each gate of `adapter` reads on the given prompts in the base model; one entry per gate, in layer order.

    The forward pass stops at the highest layer that a gate reads.
    """
    layers = gated_layers(model, adapter)
    rows: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        with model.disable_adapter(), _recording(layers, adapter) as states:  # type: ignore[operator]
            try:
                model(**batch.model_inputs())
            except _Enough:
                pass
        span = from_prompt_lengths(batch.prompt_lengths_B, batch.attention_mask_BT.bool())
        for gate_rows, layer in zip(rows, layers, strict=True):
            only_last = layer.configs[adapter].gate_reads == "last"
            for row, state_TD in enumerate(states[layer.index]):
                end = int(span.end_B[row])
                start = end if only_last else int(span.start_B[row])
                gate_rows.append(state_TD[start : end + 1].clone())
    return [_padded(gate_rows) for gate_rows in rows]


def fit_gates(
    model: nn.Module,
    forget: Sequence[GateFeatures],
    retain: Sequence[GateFeatures],
    validation: Sequence[GateFeatures],
    adapter: str = "default",
) -> list[GateFit]:
    """Fit every gate of `adapter`: forget prompts open it, retain prompts close it, both classes weigh the same.

    Args:
        model: PEFT model with a GRUN adapter.
        forget, retain: features of the prompts to learn from, one entry per gate.
        validation: features of normal prompts that the fit never learns from; the best state on them is kept.
    """
    layers = gated_layers(model, adapter)
    parts = zip(layers, forget, retain, validation, strict=True)
    return [_fit(layer.grun_gate[adapter], layer.index, f, r, v) for layer, f, r, v in parts]


@torch.no_grad()
def calibrate(
    model: nn.Module, normal: Sequence[GateFeatures], false_positive_rate: float, adapter: str = "default"
) -> float:
    """Set thresholds so that at most the given share of withheld normal prompts opens any gate; returns that share.

    With several gates the same number of exceedances is allowed to each, the largest for which their union keeps the bound.
    """
    gates = [layer.grun_gate[adapter] for layer in gated_layers(model, adapter)]
    logits_NG = torch.stack([f.logits(g).float() for f, g in zip(normal, gates, strict=True)], dim=1)
    allowed = int(false_positive_rate * len(logits_NG))
    descending_NG = logits_NG.sort(dim=0, descending=True).values
    for exceed in range(allowed, -1, -1):
        thresholds_G = descending_NG[min(exceed, len(descending_NG) - 1)]
        opened = (logits_NG > thresholds_G).any(1)
        if int(opened.sum()) <= allowed:
            break
    for gate, threshold in zip(gates, thresholds_G, strict=True):
        gate.threshold.copy_(threshold)
    return float(opened.float().mean())


@contextmanager
def _recording(layers: Sequence[GrunLayer], adapter: str) -> Iterator[dict[int, Tensor]]:
    """Record the states that gates read, and stop the forward pass after the last of them."""
    states: dict[int, Tensor] = {}
    last = layers[-1].index

    def keep(index: int, state: Tensor) -> None:
        states[index] = state
        if index == last:
            raise _Enough

    def before(layer: GrunLayer) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(layer.index, args[0] if args else kwargs["hidden_states"])

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    def after(layer: GrunLayer) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            keep(layer.index, output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(hook)

    handles = [after(x) if x.configs[adapter].gate_layer is None else before(x) for x in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _padded(rows: Sequence[Tensor]) -> GateFeatures:
    h_NPD = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths_N = torch.tensor([len(row) for row in rows], device=h_NPD.device)
    return GateFeatures(h_NPD, torch.arange(h_NPD.shape[1], device=h_NPD.device) < lengths_N[:, None])


def _balanced_loss(gate: Gate, forget: GateFeatures, normal: GateFeatures) -> Tensor:
    softplus = nn.functional.softplus
    return 0.5 * softplus(-forget.logits(gate)).mean() + 0.5 * softplus(normal.logits(gate)).mean()


def _fit(gate: Gate, index: int, forget: GateFeatures, retain: GateFeatures, validation: GateFeatures) -> GateFit:
    """Full-batch AdamW on standardised features until the validation loss stops falling; the best state is kept."""
    read = torch.cat([f.h_NPD[f.mask_NP] for f in (forget, retain)]).float()
    mean_D, std_D = read.mean(0), read.std(0).clamp_min(1e-6)
    forget, retain, validation = (
        GateFeatures((f.h_NPD.float() - mean_D) / std_D, f.mask_NP) for f in (forget, retain, validation)
    )
    optimizer = torch.optim.AdamW(gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_step, best_state = math.inf, 0, {k: v.clone() for k, v in gate.state_dict().items()}
    step = 0
    for step in range(1, MAX_STEPS + 1):
        optimizer.zero_grad()
        _balanced_loss(gate, forget, retain).backward()
        optimizer.step()
        with torch.no_grad():
            loss = float(_balanced_loss(gate, forget, validation))
        if loss < best:
            best, best_step, best_state = loss, step, {k: v.clone() for k, v in gate.state_dict().items()}
        elif step - best_step > PATIENCE:
            break
    gate.load_state_dict(best_state)
    _fold_standardisation(gate.layers[0], mean_D, std_D)
    return GateFit(index, step, best)


@torch.no_grad()
def _fold_standardisation(first: nn.Module, mean_D: Tensor, std_D: Tensor) -> None:
    """Make a first layer fitted on standardised features read the raw ones."""
    assert isinstance(first, nn.Linear)
    first.weight.div_(std_D)
    first.bias.sub_(first.weight @ mean_D)
