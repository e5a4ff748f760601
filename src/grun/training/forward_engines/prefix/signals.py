"""The signals of a training step from a cached prefix: only the trained part of the model runs, on answer tokens only."""

from __future__ import annotations

__all__ = ["PrefixBatch", "PrefixBatches", "continued_signals", "joined", "parts_by_length", "prefix_signals"]

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from grun.core.records import SideSignals
from grun.models.forward import accepts_prompt_lengths, forward_parameters, observed_outputs
from grun.models.tuner.context import GateKey
from grun.models.tuner.continuation import Continuation, continuing
from grun.models.tuner.model import decoder_layers


@dataclass(frozen=True)
class PrefixBatch:
    """A batch in which each row is cut after its last prompt token but one. C columns: that token, then the answer.

    Attributes:
        ids_BC: int64, the last prompt token and the answer, padded on the right.
        answer_BA: bool, which of the A = C - 1 columns after the first hold an answer token.
        hidden_BCD: output of the first edited layer in the base model.
        keys_values_LBHPK: keys, then values, of every layer above it, for the P prefix tokens, padded on the left.
        prefix_BP: bool, real prefix tokens.
        gate_states: states that gates read which are trained or read at edited layers, with masks, padded on the left.
        gate_logits: of gates that are frozen and read nothing that is edited.
    """

    ids_BC: Tensor
    answer_BA: Tensor
    hidden_BCD: Tensor
    keys_values_LBHPK: Tensor
    prefix_BP: Tensor
    gate_states: Mapping[GateKey, tuple[Tensor, Tensor]]
    gate_logits: Mapping[GateKey, Tensor]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrefixBatch:
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PrefixBatch:
        """The same batch in memory that an accelerator can read while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PrefixBatch:
        return PrefixBatch(
            change(self.ids_BC),
            change(self.answer_BA),
            change(self.hidden_BCD),
            change(self.keys_values_LBHPK),
            change(self.prefix_BP),
            {key: (change(h), change(mask)) for key, (h, mask) in self.gate_states.items()},
            {key: change(logits) for key, logits in self.gate_logits.items()},
        )


@dataclass(frozen=True)
class PrefixBatches:
    """The rows of a step in parts of similar length, so that little of what is computed is padding.

    Attributes:
        parts: batches.
        places: for each row of all parts, one after the other, its place in the step.
    """

    parts: tuple[PrefixBatch, ...]
    places: tuple[int, ...]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrefixBatches:
        """The same on `device`."""
        return PrefixBatches(tuple(part.to(device, non_blocking) for part in self.parts), self.places)

    def pin_memory(self) -> PrefixBatches:
        """The same in memory that an accelerator can read while it computes."""
        return PrefixBatches(tuple(part.pin_memory() for part in self.parts), self.places)


def parts_by_length(lengths: Sequence[int], overhead: float) -> list[list[int]]:
    """Rows in parts of similar length: the cheapest, where a part costs its padded columns and `overhead` more.

    Args:
        lengths: columns of each row.
        overhead: what a part costs besides, in columns.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first rows, and where their last part begins
    for end in range(1, len(order) + 1):
        best.append(min((best[a][0] + lengths[order[a]] * (end - a) + overhead, a) for a in range(end)))
    parts: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        parts.insert(0, order[start:end])
        end = start
    return parts


def joined(sides: Sequence[SideSignals], places: Sequence[int]) -> SideSignals:
    """The signals of all parts as those of one batch, row by row in the order of the step."""
    lengths = [int(n) for side in sides for n in side.lengths_B.tolist()]
    order = sorted(range(len(places)), key=places.__getitem__)
    found = {}
    for name in sides[0].quantities:
        rows = [row for side in sides for row in side.quantities[name].split(side.lengths_B.tolist())]
        found[name] = torch.cat([rows[i] for i in order])
    lengths_B = torch.tensor([lengths[i] for i in order], device=sides[0].mask_BT.device)
    return SideSignals(torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None], found)


def prefix_signals(
    model: Any,
    batch: PrefixBatch,
    *,
    first: int,
    as_tuple: bool,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
    with_grad: bool = True,
) -> SideSignals:
    """What a model with GRUN or ReFT adapters says about the answer tokens: the same as `side_signals` of the whole rows.

    Args:
        model: PEFT model.
        batch: on the model's device.
        first: index of the first edited layer.
        as_tuple: whether decoder layers return tuples.
        wanted: as of `side_signals`.
        layer: likewise.
        with_grad: keep the graph.
    """
    base = model.get_base_model()
    _, layers = decoder_layers(base)
    columns = _columns(batch.ids_BC, wanted)
    with torch.set_grad_enabled(with_grad):
        readings, complete = _readings(layers, batch)
        known = Continuation(first, batch.hidden_BCD[:, :columns], as_tuple, readings, complete)
        cache = _cache(batch, len(layers), first)
        with continuing(layers, known):
            return continued_signals(model, batch.ids_BC, batch.answer_BA, batch.prefix_BP, cache, wanted, layer)


def continued_signals(
    model: Any,
    ids_BC: Tensor,
    answer_BA: Tensor,
    prefix_BP: Tensor,
    cache: DynamicCache,
    wanted: Collection[str],
    layer: nn.Module | None,
) -> SideSignals:
    """What a model says about answer tokens after prefixes that are in a cache.

    Args:
        model: with or without adapters.
        ids_BC, answer_BA, prefix_BP: as of `PrefixBatch`.
        cache: holds P columns; it is used up.
        wanted: as of `side_signals`.
        layer: likewise.
    """
    states: list[Tensor] = []
    reads_tokens = "logps" in wanted or "logits" in wanted
    inputs = _inputs(model, ids_BC[:, : _columns(ids_BC, wanted)], answer_BA, prefix_BP, reads_tokens)
    with observed_outputs(layer if "hidden" in wanted else None, states):
        logits_BCV = model(**inputs, past_key_values=cache, use_cache=True).logits
    found: dict[str, Tensor] = {"targets": ids_BC[:, 1:][answer_BA]}
    if "hidden" in wanted:
        found["hidden"] = states[0][:, 1:][answer_BA].float()
    if reads_tokens:
        logits_NV = logits_BCV[:, : answer_BA.shape[1]][answer_BA].float()
        if "logps" in wanted:
            chosen_N = logits_NV.gather(1, found["targets"][:, None]).squeeze(1)
            found["logps"] = chosen_N - logits_NV.logsumexp(1)
        if "logits" in wanted:
            found["logits"] = logits_NV
    return SideSignals(answer_BA, found)


def _columns(ids_BC: Tensor, wanted: Collection[str]) -> int:
    """How many columns to run: nothing follows the last token of an answer, but its own hidden state may be wanted."""
    return ids_BC.shape[1] - ("hidden" not in wanted)


def _readings(layers: nn.ModuleList, batch: PrefixBatch) -> tuple[dict[GateKey, Tensor], frozenset[GateKey]]:
    """What gates have read before the call, and which of them need not read more."""
    readings = {key: logits_B[:, None] for key, logits_B in batch.gate_logits.items()}
    complete = set(readings)
    for (name, index), (h_BPD, mask_BP) in batch.gate_states.items():
        wrapped: Any = layers[index]
        readings[name, index] = wrapped.gates[name](h_BPD, mask_BP)
        if wrapped.configs[name].gate_layer is not None:
            complete.add((name, index))
    return readings, frozenset(complete)


def _inputs(model: Any, ids_BC: Tensor, answer_BA: Tensor, prefix_BP: Tensor, reads_tokens: bool) -> dict[str, Any]:
    """Arguments of the forward call."""
    columns = ids_BC.shape[1]
    real_BC = nn.functional.pad(answer_BA, (1, 0), value=True)[:, :columns]
    prompt_lengths_B = prefix_BP.sum(1) + 1
    inputs: dict[str, Any] = {
        "input_ids": ids_BC,
        "attention_mask": torch.cat([prefix_BP, real_BC], dim=1).long(),
    }
    if accepts_prompt_lengths(model):
        inputs["prompt_lengths"] = prompt_lengths_B
    known = forward_parameters(model)
    if "position_ids" in known:
        inputs["position_ids"] = prompt_lengths_B[:, None] - 1 + torch.arange(columns, device=ids_BC.device)
    if "logits_to_keep" in known and not reads_tokens:
        inputs["logits_to_keep"] = 1
    return inputs


def _cache(batch: PrefixBatch, layers: int, first: int) -> DynamicCache:
    """A cache that holds the prefix for the layers that run; the others only say how long it is."""
    rows, width = batch.prefix_BP.shape
    length_only = batch.hidden_BCD.new_zeros(()).expand(rows, 1, width, 1)
    above = layers - first - 1
    cache = DynamicCache()
    cache.layers = []
    for i in range(layers):
        part = DynamicLayer()
        at = i - first - 1
        part.keys = batch.keys_values_LBHPK[at] if at >= 0 else length_only
        part.values = batch.keys_values_LBHPK[above + at] if at >= 0 else length_only
        part.dtype, part.device, part.is_initialized = part.keys.dtype, part.keys.device, True
        cache.layers.append(part)
    return cache
