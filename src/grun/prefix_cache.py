"""What is the same in every training step, computed once: states at the first edited layer, keys and values, references."""

from __future__ import annotations

__all__ = ["CachedRow", "PrefixCache"]

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from grun.adapters.context import GateKey
from grun.adapters.model import decoder_layers
from grun.batches import Encoded
from grun.gate_fitting import gate_features, gated_layers, gates_of
from grun.prefix_signals import PrefixBatch, prefix_signals
from grun.prefix_store import Parts, PartStore
from grun.records import SideSignals
from grun.rows import RowEncoder
from grun.signals import reference_signals

logger = logging.getLogger("grun")
WORTH_SAYING = 2**27  # bytes
AS_TUPLE = "as_tuple"  # whether decoder layers of the model return tuples
PREFIX = ("entering", "keys_values")


@dataclass(frozen=True)
class CachedRow:
    """What is known of one row: tensors by name, as `Parts` keeps them."""

    hidden_CD: Tensor
    keys_values_LHPK: Tensor
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
    _logits: dict[tuple[int, ...], dict[GateKey, Tensor]] = field(default_factory=dict)
    _states: dict[tuple[int, ...], dict[GateKey, Tensor]] = field(default_factory=dict)
    _as_tuple: bool = False

    def __post_init__(self) -> None:
        tuner = self.model.base_model
        self.adapter = tuner.active_adapters[0]
        self.layers = decoder_layers(self.model.get_base_model())[1]
        self.first = min(x.index for x in tuner.runtime.layers if self.adapter in x.grun_edit)
        self.pad = self.encoder.pad

    def add(self, rows: Iterable[Encoded], references: Collection[str] = ()) -> None:
        """Compute what is not known yet of some rows; `references` are quantities of the base model to keep beside it."""
        names = {"logps", *references}
        missing = [row for row in dict.fromkeys(rows) if not self._knows(row, names)]
        started = time.monotonic()
        size = self._expected_bytes(missing, names)
        if size > WORTH_SAYING:
            logger.info("Caching the state of %d rows at layer %d: %.1f GiB %s.", *self._announced(missing, size))
        with self.store.building():
            for index, batch in self.encoder.batches(missing):
                part = [missing[i] for i in index]
                parts = self.store.read(part, names)
                if parts is None:
                    parts = self._computed(part, batch, names)
                    self.store.write(part, names, parts)
                self._keep(part, parts)
        self._read_gates({row.input_ids[: row.prompt_length] for row in missing})
        self.facts["rows"] = len(self._rows)
        self.facts["seconds"] += time.monotonic() - started

    def references(self, row: Encoded, wanted: Collection[str]) -> dict[str, Tensor]:
        """Quantities of the base model on the answer tokens of a row that was added with them."""
        return {name: self._rows[row].references[name] for name in wanted}

    def batch(self, rows: Sequence[Encoded]) -> PrefixBatch:
        """Rows as one batch, on the CPU."""
        found = [self._rows[row] for row in rows]
        prompts = [row.prompt_length - 1 for row in rows]
        answers = [len(row.input_ids) - row.prompt_length for row in rows]
        width, columns = max(prompts), max(answers) + 1
        ids_BC = torch.full((len(rows), columns), self.pad)
        hidden_BCD = found[0].hidden_CD.new_zeros(len(rows), columns, found[0].hidden_CD.shape[1])
        layers, heads, _, size = found[0].keys_values_LHPK.shape
        keys_values = found[0].keys_values_LHPK.new_zeros(layers, len(rows), heads, width, size)
        for i, (row, one, prompt, answer) in enumerate(zip(rows, found, prompts, answers, strict=True)):
            ids_BC[i, : answer + 1] = torch.tensor(row.input_ids[row.prompt_length - 1 :])
            hidden_BCD[i, : answer + 1] = one.hidden_CD
            keys_values[:, i, :, width - prompt :] = one.keys_values_LHPK
        lengths = [row.input_ids[: row.prompt_length] for row in rows]
        return PrefixBatch(
            ids_BC,
            torch.arange(columns - 1) < torch.tensor(answers)[:, None],
            hidden_BCD,
            keys_values,
            torch.arange(width) >= width - torch.tensor(prompts)[:, None],
            {key: _padded([self._states[p][key] for p in lengths]) for key in self._states.get(lengths[0], {})},
            {key: torch.stack([self._logits[p][key] for p in lengths]) for key in self._logits.get(lengths[0], {})},
        )

    def signals(self, batch: PrefixBatch, wanted: Collection[str], with_grad: bool = True) -> SideSignals:
        """What the adapted model says about a batch that is on its device."""
        return prefix_signals(
            self.model,
            batch,
            first=self.first,
            as_tuple=self._as_tuple,
            wanted=wanted,
            layer=self.observed,
            with_grad=with_grad,
        )

    def probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability under the adapted model."""
        found = []
        for index in self.encoder.groups(rows):
            batch = self.batch([rows[i] for i in index])
            side = self.signals(_moved(batch, self.encoder.device), {"logps"}, with_grad=False)
            found.append((-side.nll_B / side.lengths_B).exp())
        return float(torch.cat(found).mean())

    def _knows(self, row: Encoded, names: Collection[str]) -> bool:
        return row in self._rows and self._rows[row].references.keys() >= set(names)

    def _computed(self, rows: Sequence[Encoded], batch: Any, names: Collection[str]) -> Parts:
        """One pass of the base model over some rows."""
        cache = DynamicCache()
        with _output_of(self.layers[self.first]) as kept:
            side = reference_signals(self.model, batch, wanted=names, layer=self.observed, cache=cache)
        as_tuple, hidden_BTD = kept
        lengths = side.lengths_B.tolist()
        above: list[Any] = cache.layers[self.first + 1 :]
        stacked = [layer.keys for layer in above] + [layer.values for layer in above]
        keys_values = torch.stack(stacked) if stacked else hidden_BTD.new_zeros(0, len(rows), 1, hidden_BTD.shape[1], 1)
        quantities = {name: side.quantities[name].to(self._dtype(name, hidden_BTD)).split(lengths) for name in names}
        found: Parts = {AS_TUPLE: torch.tensor(as_tuple)}
        for i, row in enumerate(rows):
            start, end = row.prompt_length - 1, len(row.input_ids)
            own = {"entering": hidden_BTD[i, start:end], "keys_values": keys_values[:, i, :, :start]}
            own |= {name: quantities[name][i] for name in names}
            found |= {f"{i}.{name}": value.detach().cpu().contiguous() for name, value in own.items()}
        return found

    def _keep(self, rows: Sequence[Encoded], parts: Parts) -> None:
        self._as_tuple = bool(parts[AS_TUPLE])
        for i, row in enumerate(rows):
            own = {name.partition(".")[2]: value for name, value in parts.items() if name.partition(".")[0] == str(i)}
            hidden, keys_values = (own.pop(name) for name in PREFIX)
            before = self._rows[row].references if row in self._rows else {}
            self._rows[row] = CachedRow(hidden, keys_values, {**before, **own})
        self.facts["bytes"] += sum(value.numel() * value.element_size() for value in parts.values())

    @staticmethod
    def _dtype(name: str, like: Tensor) -> torch.dtype:
        """Logits and hidden states lose nothing in the model's own dtype."""
        return torch.float32 if name == "logps" else like.dtype

    def _read_gates(self, prompts: Collection[tuple[int, ...]]) -> None:
        """Keep what gates read of each prompt; of a frozen gate that looks below the edits, only what it says."""
        configs = {layer.index: layer.configs[self.adapter] for layer in gated_layers(self.model, self.adapter)}
        if not configs:
            return
        if all(c.gate_layer is None and c.gate_reads == "last" for c in configs.values()):
            return  # they read the first token of the call itself
        gates = dict(gates_of(self.model, self.adapter))
        todo = [Encoded(prompt, len(prompt), 0) for prompt in sorted(prompts) if prompt not in self._states]
        for chunk, batch in self.encoder.batches(todo):
            features = gate_features(self.model, [batch], adapter=self.adapter)
            for (index, config), found in zip(configs.items(), features, strict=True):
                key, gate = (self.adapter, index), gates[index]
                lengths = found.mask_NP.sum(1).tolist()
                frozen = config.gate_layer is not None and not any(p.requires_grad for p in gate.parameters())
                with torch.no_grad():
                    logits = found.logits(gate).cpu() if frozen else None
                for b, i in enumerate(chunk):
                    prompt = todo[i].input_ids
                    self._states.setdefault(prompt, {})
                    if logits is not None:
                        self._logits.setdefault(prompt, {})[key] = logits[b]
                    elif config.gate_layer is not None:
                        self._states[prompt][key] = found.h_NPD[b, : lengths[b]].cpu().clone()
                    else:  # the last token is edited by the layers below before it is read
                        self._states[prompt][key] = found.h_NPD[b, : lengths[b] - 1].cpu().clone()

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


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Any]]:
    """Inside, a list that will hold whether the layer returns a tuple, and its hidden states."""
    kept: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.extend((isinstance(output, tuple), output[0] if isinstance(output, tuple) else output))

    handle = layer.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States (B, P, D) padded on the left, and a mask of the real ones."""
    width = max(len(one) for one in states)
    h_BPD = states[0].new_zeros(len(states), width, states[0].shape[1])
    for i, one in enumerate(states):
        h_BPD[i, width - len(one) :] = one
    return h_BPD, torch.arange(width) >= width - torch.tensor([len(one) for one in states])[:, None]


def _moved(batch: PrefixBatch, device: torch.device) -> PrefixBatch:
    return PrefixBatch(
        batch.ids_BC.to(device),
        batch.answer_BA.to(device),
        batch.hidden_BCD.to(device),
        batch.keys_values_LBHPK.to(device),
        batch.prefix_BP.to(device),
        {key: (h.to(device), mask.to(device)) for key, (h, mask) in batch.gate_states.items()},
        {key: logits.to(device) for key, logits in batch.gate_logits.items()},
    )
