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
    "readings_of_gates",
    "save_features",
    "thresholds_of",
]

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grun.core.errors import UserError
from grun.core.records import Batch
from grun.core.storage.atomic_files import atomic_file
from grun.models.encoding.encode import Encoded
from grun.models.forward import Enough
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.edit import Gate
from grun.models.tuner.layer import GrunLayer
from grun.models.tuner.prompt_position import from_prompt_lengths

Reading = tuple[int, bool, bool, int]  # layer, output (not input) of it, last token only, hidden size


@dataclass(frozen=True)
class GateFeatures:
    """Hidden states that one gate reads on N prompts of at most P tokens.

    At a low layer few states are distinct: in many models the input of the first layer is the embedding of the token alone. A
    detector reads one state, so each distinct state is kept, and read, once.

    Attributes:
        h_UD: the U distinct states (U, D), in the model's dtype.
        at_NP: int64, index into `h_UD` of every token.
        mask_NP: bool, true on real tokens.
    """

    h_UD: Tensor
    at_NP: Tensor
    mask_NP: Tensor

    @property
    def at_M(self) -> Tensor:
        """Indices of the states of all real tokens, row after row."""
        return self.at_NP[self.mask_NP]

    def row(self, i: int) -> Tensor:
        """The states (P, D) of the real tokens of one prompt."""
        return self.h_UD[self.at_NP[i][self.mask_NP[i]]]

    def logits(self, gate: Gate, x_UK: Tensor | None = None) -> Tensor:
        """Gate logits (N,) of the prompts, differentiable through the window of each that has the largest.

        `x_UK` is the output of `gate.detect` for the distinct states, if the caller has it already.
        """
        x_UK = gate.detect(self.h_UD) if x_UK is None else x_UK
        nothing, before = len(x_UK), gate.window - 1
        x_UK = torch.cat([x_UK, x_UK.new_zeros(1, x_UK.shape[1])])
        at_NT = nn.functional.pad(self.at_NP.masked_fill(~self.mask_NP, nothing), (before, 0), value=nothing)
        with torch.no_grad():
            logits_NP = gate.windows(nn.functional.embedding(at_NT, x_UK)).masked_fill(~self.mask_NP, -math.inf)
            first_N1 = logits_NP.argmax(1, keepdim=True)
        window_NW = at_NT.gather(1, first_N1 + torch.arange(gate.window, device=at_NT.device))
        return gate.windows(nn.functional.embedding(window_NW, x_UK))[:, 0]


def joined(parts: Sequence[GateFeatures]) -> list[GateFeatures]:
    """The parts with all states in one `h_UD`, shared by all of them."""
    h_UD = torch.cat([part.h_UD for part in parts])
    starts = itertools.accumulate((len(part.h_UD) for part in parts), initial=0)
    return [GateFeatures(h_UD, part.at_NP + start, part.mask_NP) for part, start in zip(parts, starts, strict=False)]


def concatenated(parts: Sequence[GateFeatures]) -> GateFeatures:
    """The prompts of all parts, one after the other."""
    width, parts = max(part.at_NP.shape[1] for part in parts), joined(parts)

    def rows(name: str) -> Tensor:
        values = [getattr(part, name) for part in parts]
        return torch.cat([nn.functional.pad(value, (0, width - value.shape[1])) for value in values])

    return GateFeatures(parts[0].h_UD, rows("at_NP"), rows("mask_NP"))


def gate_logits(features: Sequence[GateFeatures], gates: Sequence[Gate]) -> Tensor:
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
        return [GateFeatures(*(tensors[f"{gate}.{name}"] for name in fields)) for gate in gates]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"'{file}' holds no gate features for this run: {' '.join(str(error).split())}") from error


class _DistinctStates:
    """Distinct states in the order in which they were first seen, and the index of every token's state."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._new: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, h_PD: Tensor) -> None:
        """Add the states of a prompt's tokens."""
        numbers, new = [], []
        for i, state in enumerate(h_PD.contiguous().view(torch.uint8).cpu().numpy()):
            key = hashlib.blake2b(state, digest_size=16).digest()
            if key not in self._known:
                self._known[key] = len(self._known)
                new.append(i)
            numbers.append(self._known[key])
        self._new.append(h_PD[new])
        self._rows.append(torch.tensor(numbers))

    def features(self) -> GateFeatures:
        h_UD = torch.cat(self._new)
        at_NP = nn.utils.rnn.pad_sequence(self._rows, batch_first=True)
        lengths_N = torch.tensor([len(row) for row in self._rows])
        mask_NP = torch.arange(at_NP.shape[1]) < lengths_N[:, None]
        return GateFeatures(h_UD, at_NP.to(h_UD.device), mask_NP.to(h_UD.device))


def held_gates(model: Any, adapter: str = "default") -> list[tuple[GrunLayer, str]]:
    """Layer and part of every gate of an adapter of a PEFT model, in layer order; a stack has one part per member."""
    layers = model.base_model.runtime.layers
    return [(layer, part) for layer in layers for part in layer.gates if part.partition("/")[0] == adapter]


def gates_of(model: Any, adapter: str = "default") -> list[tuple[int, Gate]]:
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
    held = [(layer, layer.configs[part]) for layer, part in held_gates(model, adapter)]
    return [
        (layer.index, config.gate_layer is None, config.gate_reads == "last", int(config.hidden_size or 0))
        for layer, config in held
    ]


@torch.no_grad()
def gate_features(model: Any, batches: Iterable[Batch], *, adapter: str = "default") -> list[GateFeatures]:
    """Features of the given prompts in the base model, one entry per gate of `adapter`, in the order of `gates_of`.

    The forward pass stops at the highest layer that a gate reads. Gates with the same reading share an entry.
    """
    keys = readings_of_gates(model, adapter)
    found = {key: _DistinctStates() for key in keys}
    points = {key[:2]: layer for key, (layer, _) in zip(keys, held_gates(model, adapter), strict=True)}
    for batch in batches:
        with model.disable_adapter(), _recording(points) as states, suppress(Enough):
            model(**batch.model_inputs())
        span = from_prompt_lengths(batch.prompt_lengths_B, batch.attention_mask_BT.bool())
        for (index, at_output, only_last, _), distinct in found.items():
            for row, state_TD in enumerate(states[index, at_output]):
                end = int(span.end_B[row])
                start = end if only_last else int(span.start_B[row])
                distinct.add(state_TD[start : end + 1])
    features = {key: distinct.features() for key, distinct in found.items()}
    return [features[key] for key in keys]


def features_of_rows(
    model: Any, rows: RowEncoder, encoded: Sequence[Encoded], *, alone: bool = False
) -> list[GateFeatures]:
    """Features of encoded rows, in their order; with `alone`, every row is read in a batch of its own."""
    size = 1 if alone else 4 * rows.batch_size
    return gate_features(model, (rows.batch(encoded[i : i + size]) for i in range(0, len(encoded), size)))


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
