"""Fit gates to convergence on cached features, before any edit is trained, and set their thresholds on withheld prompts.

Training gate and edit together for a few hundred steps leaves gates half open. The states that a gate reads do not depend on
the edit that it controls, so they are computed once and the gate is fitted on them like any small classifier.
"""

from __future__ import annotations

__all__ = ["GateFit", "GateFeatures", "calibrate", "fit_gates", "gate_features"]

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.adapters.edit import Gate
from grun.adapters.layer import GrunLayer
from grun.prompt_position import from_prompt_lengths
from grun.records import Batch

MAX_STEPS = 400
CHECK_EVERY = 10
PATIENCE = 250  # rows that name nobody are learnt late
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
COMPARED_TOKENS = 20_000  # retain tokens at most that prototypes are compared with
SAME_STATE = 1e-3  # squared distance, relative to the squared norm, below which two states are the same token
POSITION = 2 / 3  # of a threshold in a gap: forget prompts are known, normal ones may be anything
LOW_QUANTILE = 0.05  # of the forget logits, the far side of the gap that a threshold is put into


@dataclass(frozen=True)
class GateFeatures:
    """States that one gate reads: (N rows, P prompt tokens, D) in the model's dtype, and a bool mask (N, P) of real ones."""

    h_NPD: Tensor
    mask_NP: Tensor

    def logits(self, gate: Gate) -> Tensor:
        """Gate logits (N,) of the prompts."""
        logits_N: Tensor = gate(self.h_NPD, self.mask_NP)[:, 0]
        return logits_N


@dataclass(frozen=True)
class GateFit:
    """How the fit of one gate went: steps taken and the balanced cross-entropy on validation rows (nats)."""

    layer: int
    steps: int
    validation_loss: float


class _Enough(Exception):
    """Raised inside a forward pass once every gate has what it reads."""


def gated_layers(model: Any, adapter: str) -> list[GrunLayer]:
    """The wrapped layers of a PEFT model that hold a gate of `adapter`, in order."""
    return [layer for layer in model.base_model.runtime.layers if adapter in layer.grun_gate]


def gates_of(model: Any, adapter: str) -> list[tuple[int, Gate]]:
    """The gates of `adapter`, each with the index of its layer, in order."""
    found = [(layer.index, layer.grun_gate[adapter]) for layer in gated_layers(model, adapter)]
    return [(index, gate) for index, gate in found if isinstance(gate, Gate)]


@torch.no_grad()
def gate_features(model: Any, batches: Iterable[Batch], *, adapter: str = "default") -> list[GateFeatures]:
    """What each gate of `adapter` reads on the given prompts in the base model; one entry per gate, in layer order.

    The forward pass stops at the highest layer that a gate reads.
    """
    layers = gated_layers(model, adapter)
    rows: list[list[Tensor]] = [[] for _ in layers]
    for batch in batches:
        with model.disable_adapter(), _recording(layers, adapter) as states, suppress(_Enough):
            model(**batch.model_inputs())
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
    *,
    seed: int = 0,
    adapter: str = "default",
) -> list[GateFit]:
    """Fit every gate of `adapter`: forget prompts open it, retain prompts close it, both classes weigh the same.

    A gate that pools over several tokens is also shown retain prompts in which one token was replaced by one of a forget
    prompt, and has to stay closed: names share pieces with other names, so no single piece may open it. Half of its
    detectors start as prototypes of tokens that only forget prompts have: from random ones alone the largest token of most
    prompts is one that all prompts share, and where only a few words differ the fit may never find them.

    Args:
        model: PEFT model with a GRUN adapter.
        forget, retain: features of the prompts to learn from, one entry per gate.
        validation: features of normal prompts that the fit never learns from; the best state on them is kept.
        seed: of the borrowed tokens.
    """
    parts = zip(gates_of(model, adapter), forget, retain, validation, strict=True)
    return [_fit(gate, index, f, r, v, seed) for (index, gate), f, r, v in parts]


@torch.no_grad()
def calibrate(
    model: nn.Module,
    forget: Sequence[GateFeatures],
    normal: Sequence[GateFeatures],
    false_positive_rate: float,
    *,
    adapter: str = "default",
) -> float:
    """Set thresholds so that at most the given share of withheld normal prompts opens any gate; returns the share that does.

    A threshold just above the withheld prompts would suit these alone. Where forget prompts lie clear of them, it is put
    into the gap, nearer to the forget prompts, which only lowers the share. With several gates the same number of prompts
    may exceed each, the largest number for which their union keeps the bound.

    Args:
        model: PEFT model with a GRUN adapter whose gates are fitted.
        forget: features of the forget prompts, one entry per gate.
        normal: features of normal prompts that no gate was fitted on.
        false_positive_rate: largest share of `normal` that may open a gate, in [0, 1].
    """
    gates = [gate for _, gate in gates_of(model, adapter)]
    normal_NG = torch.stack([f.logits(g) for f, g in zip(normal, gates, strict=True)], dim=1)
    forget_NG = torch.stack([f.logits(g) for f, g in zip(forget, gates, strict=True)], dim=1)
    allowed = int(false_positive_rate * len(normal_NG))
    descending_NG = normal_NG.sort(dim=0, descending=True).values
    for exceeding in range(min(allowed, len(normal_NG) - 1), -1, -1):
        low_G = descending_NG[exceeding]
        if int((normal_NG > low_G).any(1).sum()) <= allowed:
            break
    high_G = forget_NG.quantile(LOW_QUANTILE, dim=0)
    threshold_G = low_G + POSITION * (high_G - low_G).clamp_min(0.0)
    for gate, threshold in zip(gates, threshold_G, strict=True):
        gate.threshold.copy_(threshold)
    return float((normal_NG > threshold_G).any(1).float().mean())


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


def _balanced_loss(gate: Gate, forget: GateFeatures, *normal: GateFeatures) -> Tensor:
    softplus = nn.functional.softplus
    normal_N = torch.cat([part.logits(gate) for part in normal])
    return 0.5 * softplus(-forget.logits(gate)).mean() + 0.5 * softplus(normal_N).mean()


def _with_borrowed_token(normal: GateFeatures, forget: GateFeatures, generator: torch.Generator) -> GateFeatures:
    """Normal prompts with one token of each replaced by one of a forget prompt."""
    h_NPD, device = normal.h_NPD.clone(), normal.h_NPD.device
    rows_N = torch.arange(len(h_NPD), device=device)
    at_N = (torch.rand(len(h_NPD), generator=generator).to(device) * normal.mask_NP.sum(1)).long()
    tokens_MD = forget.h_NPD[forget.mask_NP]
    h_NPD[rows_N, at_N] = tokens_MD[torch.randint(len(tokens_MD), (len(h_NPD),), generator=generator).to(device)]
    return GateFeatures(h_NPD, normal.mask_NP)


def _fit(
    gate: Gate, index: int, forget: GateFeatures, retain: GateFeatures, validation: GateFeatures, seed: int
) -> GateFit:
    """Full-batch AdamW on standardised features until the validation loss stops falling; the best state is kept."""
    read = torch.cat([f.h_NPD[f.mask_NP] for f in (forget, retain)]).float()
    mean_D, std_D = read.mean(0), read.std(0).clamp_min(1e-6)
    forget, retain, validation = (
        GateFeatures((f.h_NPD.float() - mean_D) / std_D, f.mask_NP) for f in (forget, retain, validation)
    )
    generator = torch.Generator().manual_seed(seed)
    if gate.window > 1:
        _start_at_prototypes(gate, forget, retain, generator)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_step, best_state = math.inf, 0, _copied(gate)
    step = 0
    for step in range(1, MAX_STEPS + 1):
        optimizer.zero_grad()
        borrowed = [_with_borrowed_token(retain, forget, generator)] if gate.window > 1 else []
        _balanced_loss(gate, forget, retain, *borrowed).backward()
        optimizer.step()
        if step % CHECK_EVERY:
            continue
        with torch.no_grad():
            loss = float(_balanced_loss(gate, forget, validation))
        if loss < best:
            best, best_step, best_state = loss, step, _copied(gate)
        elif step - best_step >= PATIENCE:
            break
    gate.load_state_dict(best_state)
    _fold_standardisation(gate.layers[0], mean_D, std_D)
    return GateFit(index, step, best)


@torch.no_grad()
def _start_at_prototypes(gate: Gate, forget: GateFeatures, retain: GateFeatures, generator: torch.Generator) -> None:
    """Make half of the detectors fire 1 at a token of a forget prompt, and 0 halfway to a token at a right angle to it."""
    first: Any = gate.layers[0]
    count = first.out_features // 2
    found_KD = _prototypes(forget.h_NPD[forget.mask_NP], retain.h_NPD[retain.mask_NP], count, generator)
    first.weight[: len(found_KD)] = 2 * found_KD / found_KD.square().sum(1, keepdim=True)
    first.bias[: len(found_KD)] = -1.0
    head: Any = gate.layers[1]
    if head.out_features == 1:  # one prototype alone leaves the gate undecided, two open it
        head.weight[:, : len(found_KD)] = 1.0
        head.bias.fill_(-1.0)


def _prototypes(forget_MD: Tensor, retain_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the forget states, by k-means++ seeding for which the retain states are centres already.

    A state is drawn with a probability that grows with its squared distance from all centres (Arthur and Vassilvitskii,
    2007), so tokens that occur in retain prompts are never drawn, and no token is drawn twice.
    """
    device, same_M = forget_MD.device, SAME_STATE * forget_MD.square().sum(1)
    compared = torch.randperm(len(retain_ND), generator=generator)[:COMPARED_TOKENS].to(device)
    centres_ND = retain_ND[compared]
    distance_M = torch.cat([torch.cdist(part, centres_ND).amin(1) for part in forget_MD.split(256)]).square()
    chosen: list[Tensor] = []
    for _ in range(count):
        distance_M = torch.where(distance_M > same_M, distance_M, 0.0)
        if not bool(distance_M.any()):
            break
        at = int(torch.multinomial(distance_M.cpu(), 1, generator=generator))
        chosen.append(forget_MD[at])
        distance_M = torch.minimum(distance_M, (forget_MD - forget_MD[at]).square().sum(1))
    return torch.stack(chosen) if chosen else forget_MD[:0]


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _fold_standardisation(first: nn.Module, mean_D: Tensor, std_D: Tensor) -> None:
    """Make a first layer fitted on standardised features read the raw ones."""
    assert isinstance(first, nn.Linear)
    first.weight.div_(std_D)
    first.bias.sub_(first.weight @ mean_D)
