"""What is the same in every training step, computed once: states at the first edited layer, keys and values, references."""

from __future__ import annotations

__all__ = ["CachedRow", "PrefixCache", "first_edited"]

import logging
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.encoding.encode import Encoded
from grun.models.gates.features import gate_features, gates_of, held_gates
from grun.models.tuner.context import GateKey
from grun.models.tuner.edit import Gate
from grun.models.tuner.model import decoder_layers
from grun.training.forward_engines.prefix.building import AS_TUPLE, ENTERING, KEYS_VALUES, base_model_parts, in_chunks
from grun.training.forward_engines.prefix.signals import (
    PrefixBatch,
    PrefixBatches,
    joined,
    parts_by_length,
    prefix_signals,
)
from grun.training.forward_engines.prefix.store import Parts, PartStore

if TYPE_CHECKING:
    from grun.models.row_encoder import RowEncoder

logger = logging.getLogger("grun")
WORTH_SAYING = 2**27  # bytes
PART_OVERHEAD = 1e9  # what a part more costs on a CPU, in multiplications and additions
CHUNK = 4  # training batches of a pass without gradients


@dataclass(frozen=True)
class CachedRow:
    """What is known of one row: what enters the trained part, and quantities of the base model by name."""

    hidden_CD: Tensor
    references: Mapping[str, Tensor]


@dataclass
class PrefixCache:
    """Rows of an unlearning run, cut where the trained part of the model begins.

    Attributes:
        model: PEFT model with GRUN or ReFT adapters, in one process, its base model frozen.
        encoder: makes batches.
        observed: decoder layer whose output the quantity `hidden` is; None if nobody looks at it.
        store: where tensors are kept.
        facts: how much was computed and how long it took.
    """

    model: Any
    encoder: RowEncoder
    observed: nn.Module | None = None
    store: PartStore = field(default_factory=PartStore)
    facts: dict[str, float] = field(default_factory=lambda: {"rows": 0, "bytes": 0, "seconds": 0.0})
    _rows: dict[Encoded, CachedRow] = field(default_factory=dict)
    _prefixes: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    _logits: dict[tuple[int, ...], dict[GateKey, Tensor]] = field(default_factory=dict)
    _states: dict[tuple[int, ...], dict[GateKey, Tensor]] = field(default_factory=dict)
    _versions: dict[GateKey, int] = field(default_factory=dict)
    _as_tuple: bool = False
    _used: list[int] = field(default_factory=lambda: [0, 0])

    def __post_init__(self) -> None:
        self.adapter = self.model.base_model.active_adapters[0]
        self.layers = decoder_layers(self.model.get_base_model())[1]
        self.first = first_edited(self.model)
        self.runtime = self.model.base_model.runtime
        head = self.model.get_base_model().get_output_embeddings()
        trained = sum(p.numel() for part in (*self.layers[self.first + 1 :], head) if part for p in part.parameters())
        on_cpu = self.encoder.device.type == "cpu"  # an accelerator is better off with one large part
        self._overhead = PART_OVERHEAD / (4 * trained) if on_cpu else math.inf
        self.pad = self.encoder.pad

    def add(self, rows: Iterable[Encoded], references: Collection[str] = ()) -> None:
        """Compute what is not known yet of some rows; `references` are quantities of the base model to keep beside it."""
        names = set(references)
        missing = [row for row in dict.fromkeys(rows) if not self._knows(row, names)]
        started = time.monotonic()
        size = self._expected_bytes(missing, names)
        if size > WORTH_SAYING:
            logger.info("Caching the state of %d rows at layer %d: %.1f GiB %s.", *self._announced(missing, size))
        with self.store.building():
            for chunk in in_chunks(missing, CHUNK * self.encoder.batch_size):
                parts = self.store.read(chunk, names)
                if parts is None:
                    parts = self._computed(chunk, names)
                    self.store.write(chunk, names, parts)
                self._keep(chunk, names, parts)
        self._read_gates({row.input_ids[: row.prompt_length] for row in missing})
        self.facts["rows"] = len(self._rows)
        self.facts["seconds"] += time.monotonic() - started

    def references(
        self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]
    ) -> dict[str, list[Tensor]]:
        """Quantities of the base model by name, one tensor (answer tokens, ...) per row; empty for rows that are not drawn.

        The rows that are drawn are added.
        """
        self.add((rows[i] for i in sorted(drawn)), wanted)
        empty = torch.empty(0)
        return {
            name: [self._rows[row].references[name] if i in drawn else empty for i, row in enumerate(rows)]
            for name in wanted
        }

    def batch(self, rows: Sequence[Encoded]) -> PrefixBatches:
        """The rows of a step, on the CPU, in parts of similar length where the device gains by that."""
        parts = parts_by_length([len(row.input_ids) - row.prompt_length for row in rows], self._overhead)
        return PrefixBatches(
            tuple(self._part([rows[i] for i in part]) for part in parts), tuple(i for part in parts for i in part)
        )

    def _part(self, rows: Sequence[Encoded]) -> PrefixBatch:
        found = [self._rows[row] for row in rows]
        prompts = [row.prompt_length - 1 for row in rows]
        answers = [len(row.input_ids) - row.prompt_length for row in rows]
        width, columns = max(prompts), max(answers) + 1
        ids_BC = torch.full((len(rows), columns), self.pad)
        hidden_BCD = found[0].hidden_CD.new_zeros(len(rows), columns, found[0].hidden_CD.shape[1])
        known = [self._prefixes[row.input_ids[: row.prompt_length - 1]] for row in rows]
        layers, heads, _, size = known[0].shape
        keys_values = known[0].new_zeros(layers, len(rows), heads, width, size)
        for i, (row, one, prompt, answer) in enumerate(zip(rows, found, prompts, answers, strict=True)):
            ids_BC[i, : answer + 1] = torch.tensor(row.input_ids[row.prompt_length - 1 :])
            hidden_BCD[i, : answer + 1] = one.hidden_CD
            keys_values[:, i, :, width - prompt :] = known[i]
        self._used[0] += sum(prompts) + sum(answers)
        self._used[1] += len(rows) * (width + columns - 1)
        return PrefixBatch(
            ids_BC,
            torch.arange(columns - 1) < torch.tensor(answers)[:, None],
            hidden_BCD,
            keys_values,
            torch.arange(width) >= width - torch.tensor(prompts)[:, None],
            *self._gates([row.input_ids[: row.prompt_length] for row in rows]),
        )

    @property
    def padding_share(self) -> float:
        """Share of the columns of all batches so far that hold no token."""
        real, total = self._used
        return 1.0 - real / total if total else 0.0

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability under the base model; rows that are not known yet are added."""
        self.add(rows, {"logps"})
        return float(torch.stack([self._rows[row].references["logps"].mean().exp() for row in rows]).mean())

    def signals(self, batch: PrefixBatches, wanted: Collection[str], with_grad: bool = True) -> SideSignals:
        """What the adapted model says about a batch that is on its device; what gates said is that of the whole batch."""
        sides, gates = [], []
        for part in batch.parts:
            sides.append(
                prefix_signals(
                    self.model,
                    part,
                    first=self.first,
                    as_tuple=self._as_tuple,
                    wanted=wanted,
                    layer=self.observed,
                    with_grad=with_grad,
                )
            )
            gates.append(self.runtime.last_logits)
        order = torch.tensor(sorted(range(len(batch.places)), key=batch.places.__getitem__))
        self.runtime.last_logits = {
            key: torch.cat([part[key] for part in gates])[order.to(gates[0][key].device)] for key in gates[0]
        }
        return joined(sides, batch.places)

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability under the adapted model (this one, whatever it is wrapped in)."""
        found = []
        for index in self.encoder.groups(rows):
            batch = self.batch([rows[i] for i in index])
            side = self.signals(batch.to(self.encoder.device), {"logps"}, with_grad=False)
            found.append((-side.nll_B / side.lengths_B).exp())
        return float(torch.cat(found).mean())

    def _knows(self, row: Encoded, names: Collection[str]) -> bool:
        return row in self._rows and self._rows[row].references.keys() >= set(names)

    def _computed(self, rows: Sequence[Encoded], names: Collection[str]) -> Parts:
        """One pass of the base model over some rows."""
        return base_model_parts(
            self.model, rows, names, first=self.first, observed=self.observed, pad=self.pad, overhead=self._overhead
        )

    def _keep(self, rows: Sequence[Encoded], names: Collection[str], parts: Parts) -> None:
        self._as_tuple = bool(parts[AS_TUPLE])
        for i, row in enumerate(rows):
            before = self._rows[row].references if row in self._rows else {}
            self._rows[row] = CachedRow(parts[f"{i}.{ENTERING}"], {**before, **{n: parts[f"{i}.{n}"] for n in names}})
            if (keys_values := parts.get(f"prompt {i}.{KEYS_VALUES}")) is not None:
                self._prefixes.setdefault(row.input_ids[: row.prompt_length - 1], keys_values)
        self.facts["bytes"] += sum(value.numel() * value.element_size() for value in parts.values())

    def _read_gates(self, prompts: Collection[tuple[int, ...]]) -> None:
        """Keep the states of each prompt that gates read, except those that only the call itself has."""
        configs = {layer.index: layer.configs[self.adapter] for layer, _ in held_gates(self.model, self.adapter)}
        if all(c.gate_layer is None and c.gate_reads == "last" for c in configs.values()):
            return  # they read the first token of the call
        todo = [Encoded(prompt, len(prompt), 0) for prompt in sorted(prompts) if prompt not in self._states]
        for chunk, batch in self.encoder.batches(todo):
            features = gate_features(self.model, [batch], adapter=self.adapter)
            for (index, config), found in zip(configs.items(), features, strict=True):
                # at an edited layer the last token is edited by the layers below before it is read
                left = 1 if config.gate_layer is None else 0
                for row, i in enumerate(chunk):
                    h_PD = found.row(row).cpu()
                    self._states.setdefault(todo[i].input_ids, {})[self.adapter, index] = h_PD[: len(h_PD) - left]

    def _gates(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[dict[GateKey, tuple[Tensor, Tensor]], dict[GateKey, Tensor]]:
        """What a batch needs to know of gates: states to read, or what is said by one that is frozen and reads no edit."""
        states: dict[GateKey, tuple[Tensor, Tensor]] = {}
        logits: dict[GateKey, Tensor] = {}
        for index, gate in gates_of(self.model, self.adapter):
            key = (self.adapter, index)
            if key not in self._states.get(prompts[0], {}):
                continue
            trained = any(parameter.requires_grad for parameter in gate.parameters())
            layer: Any = self.layers[index]
            if trained or layer.configs[self.adapter].gate_layer is None:
                states[key] = _padded([self._states[prompt][key] for prompt in prompts])
            else:
                logits[key] = torch.stack([self._said(gate, key, prompt) for prompt in prompts])
        return states, logits

    @torch.no_grad()
    def _said(self, gate: Gate, key: GateKey, prompt: tuple[int, ...]) -> Tensor:
        """The logit of a frozen gate, computed again once its weights were changed (read from a checkpoint, say)."""
        version = sum(parameter._version for parameter in gate.parameters())
        if self._versions.get(key) != version:
            self._versions[key] = version
            self._logits.clear()
        known = self._logits.setdefault(prompt, {})
        if key not in known:
            h_1PD = self._states[prompt][key][None].to(gate.threshold.device)
            known[key] = gate(h_1PD, torch.ones(h_1PD.shape[:2], dtype=torch.bool, device=h_1PD.device))[0, 0].cpu()
        return known[key]

    def _expected_bytes(self, rows: Sequence[Encoded], names: Collection[str]) -> int:
        config = self.model.get_base_model().config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_prefix = 2 * (len(self.layers) - self.first - 1) * heads * head_size
        per_answer = config.hidden_size * (1 + ("hidden" in names)) + config.vocab_size * ("logits" in names)
        answers = sum(len(row.input_ids) - row.prompt_length + 1 for row in rows)
        prefixes = sum(row.prompt_length - 1 for row in rows)
        return (prefixes * per_prefix + answers * per_answer) * next(self.model.parameters()).element_size()

    def _announced(self, rows: Sequence[Encoded], size: int) -> tuple[int, int, float, str]:
        return len(rows), self.first, size / 2**30, self.store.where


def first_edited(model: Any) -> int:
    """Index of the first layer that the active adapter of a PEFT model edits."""
    tuner = model.base_model
    return min(layer.index for layer in tuner.runtime.layers if tuner.active_adapters[0] in layer.edits)


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States (B, P, D) padded on the left, and a mask of the real ones."""
    width = max(len(one) for one in states)
    h_BPD = states[0].new_zeros(len(states), width, states[0].shape[1])
    for i, one in enumerate(states):
        h_BPD[i, width - len(one) :] = one
    return h_BPD, torch.arange(width) >= width - torch.tensor([len(one) for one in states])[:, None]
