"""`PrefixEngine`: training from a cache of the states that are the same in every step."""

from __future__ import annotations

__all__ = ["PrefixEngine"]

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.encoding.encode import Encoded
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.model import decoder_layers
from grun.training.forward_engines.prefix.batching import Batcher, PrefixBatches, part_overhead
from grun.training.forward_engines.prefix.building import base_model_parts
from grun.training.forward_engines.prefix.content import KnownRows
from grun.training.forward_engines.prefix.gate_states import GateStates
from grun.training.forward_engines.prefix.memory_estimate import expected_bytes
from grun.training.forward_engines.prefix.requirements import first_edited
from grun.training.forward_engines.prefix.signals import joined, joined_gates, prefix_signals
from grun.training.forward_engines.prefix.store import PartStore

logger = logging.getLogger("grun")
WORTH_SAYING = 2**27  # bytes
CHUNK = 4  # training batches of a pass without gradients


class PrefixEngine:
    """The `ForwardEngine` for adapters that edit hidden states: every pass begins at the first edited layer.

    Args:
        model: PEFT model with GRUN or ReFT adapters, in one process, its base model frozen.
        encoder: makes batches.
        observed: decoder layer whose output the quantity `hidden` is; None if the loss reads none.
        store: storage of the cache; memory by default.
    """

    def __init__(
        self, model: Any, encoder: RowEncoder, observed: nn.Module | None = None, store: PartStore | None = None
    ) -> None:
        self.model = model
        self.encoder = encoder
        self.observed = observed
        self.store = PartStore() if store is None else store
        self.first = first_edited(model)
        base = model.get_base_model()
        above = decoder_layers(base)[1][self.first + 1 :]
        self._layers_above = len(above)
        head = base.get_output_embeddings()
        trained = sum(p.numel() for part in (*above, head) if part for p in part.parameters())
        overhead = part_overhead(encoder.device, trained)
        compute = partial(
            base_model_parts, model, first=self.first, observed=observed, pad=encoder.pad, overhead=overhead
        )
        self._rows = KnownRows(compute, self.store, CHUNK * encoder.batch_size)
        self._gates = GateStates(model, model.base_model.active_adapters[0], encoder)
        self._batcher = Batcher(self._rows, self._gates, encoder.pad, overhead)
        self._seconds = 0.0

    @property
    def facts(self) -> dict[str, dict[str, float]]:
        """Under `prefix_cache`: number of rows, their bytes, seconds of building, share of padding in all batches so far."""
        return {
            "prefix_cache": {
                "rows": len(self._rows),
                "bytes": self._rows.bytes,
                "seconds": self._seconds,
                "padding_share": self._batcher.padding_share,
            }
        }

    def add(self, rows: Iterable[Encoded], references: Collection[str] = ()) -> None:
        """Make rows known, together with the named quantities of the base model.

        Raises:
            CannotContinue: if the model's cache does not hold the keys and values of every token.
        """
        names = set(references)
        missing = self._rows.missing(rows, names)
        started = time.monotonic()
        self._announce(missing, names)
        self._rows.add(missing, names)
        self._gates.read({row.input_ids[: row.prompt_length] for row in missing})
        self._seconds += time.monotonic() - started

    def batch(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """Known rows under `batch`, and under `input_ids` the tokens that run through the trained part."""
        batch = self._batcher.batch(rows)
        return {"input_ids": torch.cat([part.ids_BC.flatten() for part in batch.parts]), "batch": batch}

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """One forward call for each part of the batch, in the engine's own model, which `model` may wrap."""
        batch: PrefixBatches = inputs["batch"]
        runtime = self.model.base_model.runtime
        sides, logits = [], []
        for part in batch.parts:
            sides.append(
                prefix_signals(
                    self.model,
                    part,
                    first=self.first,
                    as_tuple=self._rows.as_tuple,
                    wanted=wanted,
                    layer=self.observed,
                    with_grad=with_grad,
                )
            )
            logits.append(runtime.last_logits)
        runtime.last_logits = joined_gates(logits, batch.places)  # as after one call on the whole batch
        return joined(sides, batch.places)

    def references(
        self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]
    ) -> dict[str, list[Tensor]]:
        """Kept quantities; rows that are drawn are made known."""
        self.add((rows[i] for i in sorted(drawn)), wanted)
        empty = torch.empty(0)
        return {
            name: [self._rows[row].references[name] if i in drawn else empty for i, row in enumerate(rows)]
            for name in wanted
        }

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over kept log-probabilities; the rows are made known."""
        self.add(rows, {"logps"})
        return float(torch.stack([self._rows[row].references["logps"].mean().exp() for row in rows]).mean())

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Passes on known rows in the engine's own model, which `model` may wrap."""
        found = []
        for index in self.encoder.groups(rows):
            batch = self._batcher.batch([rows[i] for i in index]).to(self.encoder.device)
            side = self.signals(model, {"batch": batch}, {"logps"}, with_grad=False)
            found.append((-side.nll_B / side.lengths_B).exp())
        return float(torch.cat(found).mean())

    def _announce(self, rows: Sequence[Encoded], names: Collection[str]) -> None:
        """Log the size of additions that will be large."""
        config = self.model.get_base_model().config.get_text_config()
        size = expected_bytes(config, self._layers_above, next(self.model.parameters()).element_size(), rows, names)
        if size > WORTH_SAYING:
            gib, where = size / 2**30, self.store.where
            logger.info("Caching the state of %d rows at layer %d: %.1f GiB %s.", len(rows), self.first, gib, where)
