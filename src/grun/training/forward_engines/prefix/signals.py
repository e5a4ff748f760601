"""Signals of a training step from a cached prefix: only the trained part of the model runs, on answer tokens only."""

from __future__ import annotations

__all__ = ["continued_signals", "joined", "joined_gates", "prefix_signals"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from grun.core.records import SideSignals
from grun.models.forward import accepts_prompt_lengths, forward_parameters, quantities_at
from grun.models.tuner.base_model import decoder_layers
from grun.models.tuner.call.context import GateKey
from grun.models.tuner.continuation import Continuation, continuing
from grun.training.forward_engines.prefix.batching import PrefixBatch


def joined(
    sides: Sequence[SideSignals], places: Sequence[int], rows_of: Sequence[Mapping[str, Tensor]] | None = None
) -> SideSignals:
    """The signals of all parts as those of one batch, row by row in the order of the step.

    Args:
        sides: signals of each part.
        places: place in the step of each row, in the order of the parts.
        rows_of: by part, see `PrefixBatch`; None if every part has its quantities of all rows.
    """
    masks = rows_of or [{}] * len(sides)
    lengths = [int(n) for side in sides for n in side.lengths_B.tolist()]
    order = _in_step_order(places)
    found = {}
    for name in dict.fromkeys(name for side in sides for name in side.quantities):
        rows = [row for side, own in zip(sides, masks, strict=True) for row in _by_row(side, name, own)]
        found[name] = torch.cat([row for i in order if (row := rows[i]) is not None])
    lengths_B = torch.tensor([lengths[i] for i in order], device=sides[0].mask_BT.device)
    return SideSignals(torch.arange(int(lengths_B.max()), device=lengths_B.device) < lengths_B[:, None], found)


def _by_row(side: SideSignals, name: str, rows_of: Mapping[str, Tensor]) -> Sequence[Tensor | None]:
    """A quantity of every row of a part; None where it is not read."""
    lengths = side.lengths_B.tolist()
    if name not in side.quantities:
        return [None] * len(lengths)
    read = rows_of[name].tolist() if name in rows_of else [True] * len(lengths)
    rows = iter(side.quantities[name].split([n for n, kept in zip(lengths, read, strict=True) if kept]))
    return [next(rows) if kept else None for kept in read]


def joined_gates(parts: Sequence[Mapping[GateKey, Tensor]], places: Sequence[int]) -> dict[GateKey, Tensor]:
    """Gate logits (B,) of all parts as those of one batch, in the order of the step (see `joined`)."""
    order = torch.tensor(_in_step_order(places))
    return {key: torch.cat([part[key] for part in parts])[order.to(one.device)] for key, one in parts[0].items()}


def prefix_signals(
    model: Any,
    batch: PrefixBatch,
    *,
    first: int,
    as_tuple: bool,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
    with_grad: bool = True,
    fused: bool = False,
) -> SideSignals:
    """Signals of a model with GRUN or ReFT adapters on answer tokens, equal to those of `side_signals` on whole rows.

    Args:
        model: PEFT model.
        batch: on the model's device.
        first: index of the first edited layer.
        as_tuple: True if decoder layers return tuples.
        wanted, layer, fused: as of `side_signals`.
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
            return continued_signals(
                model,
                batch.ids_BC,
                batch.answer_BA,
                batch.prefix_BP,
                cache,
                wanted,
                layer,
                rows_of=batch.rows_of or None,
                fused=fused,
            )


def continued_signals(
    model: Any,
    ids_BC: Tensor,
    answer_BA: Tensor,
    prefix_BP: Tensor,
    cache: DynamicCache,
    wanted: Collection[str],
    layer: nn.Module | None,
    *,
    rows_of: Mapping[str, Tensor] | None = None,
    fused: bool = False,
) -> SideSignals:
    """Signals of a model on answer tokens after prefixes that are in a cache.

    Args:
        model: with or without adapters.
        ids_BC, answer_BA, prefix_BP: as of `PrefixBatch`.
        cache: keys and values of the prefix in P columns; the call appends to it.
        wanted, layer, rows_of, fused: as of `side_signals`.
    """
    inputs = _inputs(model, ids_BC[:, : _columns(ids_BC, wanted)], answer_BA, prefix_BP)
    inputs |= {"past_key_values": cache, "use_cache": True}
    answer_BC = nn.functional.pad(answer_BA, (1, 0))
    found = quantities_at(model, inputs, answer_BC, ids_BC, wanted, layer, rows_of=rows_of, fused=fused)
    return SideSignals(answer_BA, found)


def _in_step_order(places: Sequence[int]) -> list[int]:
    """Numbers of the rows of all parts in the order of the step."""
    return sorted(range(len(places)), key=places.__getitem__)


def _columns(ids_BC: Tensor, wanted: Collection[str]) -> int:
    """Number of columns to run: the last token of an answer predicts nothing and only runs for its hidden state."""
    return ids_BC.shape[1] - ("hidden" not in wanted)


def _readings(layers: nn.ModuleList, batch: PrefixBatch) -> tuple[dict[GateKey, Tensor], frozenset[GateKey]]:
    """Readings of gates on the prefix, and the gates that need to read nothing more in the call."""
    readings = {key: logits_B[:, None] for key, logits_B in batch.gate_logits.items()}
    complete = set(readings)
    for (name, index), (h_BPD, mask_BP) in batch.gate_states.items():
        wrapped: Any = layers[index]
        readings[name, index] = wrapped.gates[name](h_BPD, mask_BP)
        if wrapped.configs[name].gate_layer is not None:
            complete.add((name, index))
    return readings, frozenset(complete)


def _inputs(model: Any, ids_BC: Tensor, answer_BA: Tensor, prefix_BP: Tensor) -> dict[str, Any]:
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
    if "position_ids" in forward_parameters(model):
        inputs["position_ids"] = prompt_lengths_B[:, None] - 1 + torch.arange(columns, device=ids_BC.device)
    return inputs


def _cache(batch: PrefixBatch, layers: int, first: int) -> DynamicCache:
    """A cache with the prefix for the layers that run; for all others it has the right length and no content."""
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
