"""Features of gates: hidden states of prompts in the base model, each distinct one kept once."""

from __future__ import annotations

__all__ = [
    "GateFeatures",
    "concatenated",
    "features_of_rows",
    "gate_features",
    "gate_logits",
    "gates_by_member",
    "gates_of",
    "held_gates",
    "joined",
    "load_features",
    "logit_of_prompt",
    "make_room",
    "readings_of_gates",
    "save_features",
    "thresholds_of",
]

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grun.core.errors import UserError
from grun.core.process.progress import tracked
from grun.core.records import Batch
from grun.core.storage.atomic_files import atomic_file
from grun.models.encoding.encode import Encoded
from grun.models.forward import Enough
from grun.models.gates.distinct_states import DistinctStates, GateFeatures, concatenated, joined
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.call.prompt_position import PromptSpan, from_prompt_lengths
from grun.models.tuner.layer import GrunLayer
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate, embedding

# Layer, whether its output (not its input), last token only, size of a state; of a gate for topics also its head.
Reading = tuple[Any, ...]


def gate_logits(features: Sequence[GateFeatures], gates: Sequence[Any]) -> Tensor:
    """Logits (N, G) of gates for prompts, from the features that each gate reads."""
    return torch.stack([part.logits(gate) for part, gate in zip(features, gates, strict=True)], dim=1)


def save_features(file: Path, features: Sequence[GateFeatures], read: Sequence[Reading]) -> None:
    """Write features of gates, all of it or nothing. Those of a low layer reveal the prompts themselves."""
    tensors = {
        f"{gate}.{field.name}": getattr(part, field.name).cpu().contiguous()
        for gate, part in enumerate(features)
        for field in dataclasses.fields(part)
    }
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata={"read": json.dumps(read)})


def load_features(file: str | Path, read: Sequence[Reading], device: torch.device | str = "cpu") -> list[GateFeatures]:
    """Features from a file of `save_features`, one entry per gate.

    Args:
        file: the file.
        read: readings of this model's gates (`readings_of_gates`); those of the file must be the same.
        device: device of the tensors.

    Raises:
        UserError: if the file holds no features, or features of gates with other readings.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            kept = json.loads((opened.metadata() or {})["read"])
        if [tuple(one) for one in kept] != list(read):
            raise ValueError("its gates read something else: other layers, other tokens or another model")
        tensors = load_file(file, device=str(device))
        gates = range(1 + max(int(name.partition(".")[0]) for name in tensors))
        fields = [field.name for field in dataclasses.fields(GateFeatures)]
        found = [GateFeatures(*(tensors[f"{gate}.{name}"] for name in fields)) for gate in gates]
        if len(found) != len(read):
            raise ValueError(f"it has features for {len(found)} gates, expected {len(read)}")
        for part, reading in zip(found, read, strict=True):
            _check(part, reading[3])
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, SafetensorError) as error:
        raise UserError(f"'{file}' holds no gate features for this run: {' '.join(str(error).split())}") from error


def _check(features: GateFeatures, width: int) -> None:
    """Refuse features of another form than `save_features` writes.

    Raises:
        ValueError: saying what is wrong.
    """
    h_UD, at_NP, mask_NP = features.h_UD, features.at_NP, features.mask_NP
    if h_UD.ndim != 2 or h_UD.shape[1] != width or not h_UD.is_floating_point() or not bool(h_UD.isfinite().all()):
        raise ValueError(f"its states are not finite numbers of width {width}")
    if at_NP.ndim != 2 or at_NP.dtype != torch.long or mask_NP.dtype != torch.bool or at_NP.shape != mask_NP.shape:
        raise ValueError("its prompts are damaged")
    at_M = features.at_M
    if not len(at_NP) or not bool(mask_NP.any(1).all()) or int(at_M.min()) < 0 or int(at_M.max()) >= len(h_UD):
        raise ValueError("its prompts name states that it does not hold")


def held_gates(model: Any, adapter: str = "default") -> list[tuple[GrunLayer, str]]:
    """Layer and part of every gate of an adapter of a PEFT model, in layer order; a stack has one part per member."""
    layers = model.base_model.runtime.layers
    return [(layer, part) for layer in layers for part in layer.gates if part.partition("/")[0] == adapter]


def gates_of(model: Any, adapter: str = "default") -> list[tuple[int, Any]]:
    """The gates of `adapter`, each with the index of its layer, in layer order."""
    return [(layer.index, layer.gates[part]) for layer, part in held_gates(model, adapter)]


def thresholds_of(model: Any, adapter: str = "default") -> Tensor:
    """The thresholds (G,) of the gates of `adapter`, on the CPU."""
    return torch.stack([gate.threshold.cpu() for _, gate in gates_of(model, adapter)])


def gates_by_member(model: Any, adapter: str = "default") -> dict[str, list[int]]:
    """Positions in `gates_of` of the gates of each member of a stack, by the member's name."""
    found: dict[str, list[int]] = {}
    for i, (_, part) in enumerate(held_gates(model, adapter)):
        found.setdefault(part.partition("/")[2], []).append(i)
    return found


def readings_of_gates(model: Any, adapter: str = "default") -> list[Reading]:
    """Reading of each gate of an adapter, in the order of `gates_of`."""
    return [_reading_of(layer, part) for layer, part in held_gates(model, adapter)]


def _reading_of(layer: GrunLayer, part: str) -> Reading:
    config, gate = layer.configs[part], layer.gates[part]
    if isinstance(gate, TopicGate):
        return layer.index, False, False, config.topic_width, gate.head.digest
    if isinstance(gate, LexicalGate):
        return layer.index, False, False, 1
    return layer.index, config.gate_layer is None, config.gate_reads == "last", int(config.hidden_size or 0)


@torch.no_grad()
def gate_features(
    model: Any, batches: Iterable[Batch], *, adapter: str = "default", only: Sequence[int] | None = None
) -> list[GateFeatures]:
    """Features of the given prompts in the base model, one entry per gate of `adapter`, in the order of `gates_of`.

    The forward pass stops at the highest layer that a gate reads. Gates with the same reading share an entry.

    Args:
        model: PEFT model with a gated adapter.
        batches: of the prompts.
        adapter: name of the adapter.
        only: positions of the gates whose features are wanted; None for all.
    """
    keys, held = readings_of_gates(model, adapter), held_gates(model, adapter)
    if only is not None:
        keys, held = [keys[i] for i in only], [held[i] for i in only]
    found = {key: DistinctStates() for key in keys}
    gates = {key: layer.gates[part] for key, (layer, part) in zip(keys, held, strict=True)}
    points = {key[:2]: layer for key, (layer, _) in zip(keys, held, strict=True)}
    for batch in batches:
        with model.disable_adapter(), _recording(points) as states, suppress(Enough):
            model(**batch.model_inputs())
        span = from_prompt_lengths(batch.prompt_lengths_B, batch.attention_mask_BT.bool())
        for key, distinct in found.items():
            ids_BT1 = batch.input_ids_BT[..., None].float()
            read_BTD = ids_BT1 if isinstance(gates[key], LexicalGate) else states[key[0], key[1]]
            for state_PD in _states_read(gates[key], read_BTD, span, only_last=key[2]):
                distinct.add(state_PD)
    features = {key: distinct.features() for key, distinct in found.items()}
    return [features[key] for key in keys]


def _states_read(gate: Any, h_BTD: Tensor, span: PromptSpan, only_last: bool) -> Iterator[Tensor]:
    """The states (P, D) that features keep of each prompt."""
    if isinstance(gate, TopicGate):
        prompt_BT = span.is_prompt(0, h_BTD.shape[1])
        yield from embedding(gate.head.summary(h_BTD, prompt_BT)).split(1)
        return
    for row, h_TD in enumerate(h_BTD):
        end = int(span.end_B[row])
        yield h_TD[end if only_last else int(span.start_B[row]) : end + 1]


def logit_of_prompt(gate: Any, states_PD: Tensor) -> Tensor:
    """Logit, a scalar, of the prompt with these features (P, D), as `GateFeatures.row` gives them."""
    if isinstance(gate, TopicGate):
        return gate.logits(states_PD)[0]
    if isinstance(gate, LexicalGate):
        return gate.logits([states_PD[:, 0].long().tolist()])[0]
    return gate(states_PD[None], torch.ones(1, len(states_PD), dtype=torch.bool, device=states_PD.device))[0, 0]


def features_of_rows(
    model: Any,
    rows: RowEncoder,
    encoded: Sequence[Encoded],
    *,
    alone: bool = False,
    only: Sequence[int] | None = None,
) -> list[GateFeatures]:
    """Features of encoded rows, in their order; with `alone`, every row is read in a batch of its own.

    `only` names positions of gates, see `gate_features`.
    """
    size = 1 if alone else 4 * rows.batch_size
    batches = (rows.batch(encoded[i : i + size]) for i in range(0, len(encoded), size))
    read = tracked(batches, "read prompts", len(encoded), "prompt", lambda batch: len(batch.input_ids_BT))
    return gate_features(model, read, only=only)


@contextmanager
def _recording(points: Mapping[tuple[int, bool], GrunLayer]) -> Iterator[dict[tuple[int, bool], Tensor]]:
    """Record hidden states at the input (False) or output (True) of layers; the forward pass stops after the last of them."""
    states: dict[tuple[int, bool], Tensor] = {}

    def keep(key: tuple[int, bool], state: Tensor) -> None:
        states[key] = state
        if len(states) == len(points):
            raise Enough

    def before(key: tuple[int, bool], layer: GrunLayer) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(key, args[0] if args else kwargs["hidden_states"])

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    def after(key: tuple[int, bool], layer: GrunLayer) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            keep(key, output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(hook)

    handles = [(after if key[1] else before)(key, layer) for key, layer in points.items()]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def make_room(model: Any, kept: Mapping[str, Sequence[int]], lexicon: Mapping[str, Sequence[int]]) -> None:
    """Give gates the sizes that they had when they were fitted, before a checkpoint is loaded into them.

    Args:
        model: PEFT model with a gated adapter.
        kept: numbers of prompts that the gate for topics of each adapter keeps, by the adapter's name.
        lexicon: sizes of the lexical gate of each adapter, likewise.
    """
    for layer, part in held_gates(model):
        gate = layer.gates[part]
        if isinstance(gate, LexicalGate):
            layer.configs[part].lexicon = list(lexicon[part])
            gate.make_room(*lexicon[part])
        if isinstance(gate, TopicGate):
            layer.configs[part].topic_kept = list(kept[part])
            gate.keep(*(gate.offset.new_zeros(size, len(gate.offset)) for size in kept[part]))
