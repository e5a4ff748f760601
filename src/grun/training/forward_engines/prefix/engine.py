"""`PrefixEngine`: training from a cache of the states that are the same in every step."""

from __future__ import annotations

__all__ = ["PrefixEngine"]

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.answer_head import applies_nothing_after_head
from grun.models.encoding.encode import Encoded
from grun.models.forward import adapters_off, evaluating, reference_signals
from grun.models.row_encoder import RowEncoder
from grun.models.tuner.base_model import decoder_layers
from grun.training.forward_engines.prefix.batching import Batcher, PrefixBatches, part_overhead
from grun.training.forward_engines.prefix.building import base_model_parts
from grun.training.forward_engines.prefix.content import KnownRows
from grun.training.forward_engines.prefix.gate_states import GateStates
from grun.training.forward_engines.prefix.memory_estimate import expected_bytes
from grun.training.forward_engines.prefix.requirements import first_edited
from grun.training.forward_engines.prefix.signals import joined, joined_gates, prefix_signals
from grun.training.forward_engines.prefix.still import StillRows
from grun.training.forward_engines.prefix.store import PartStore

logger = logging.getLogger("grun")
WORTH_SAYING = 2**27  # bytes
CHUNK = 4  # training batches of a pass without gradients


def _prompt(row: Encoded) -> tuple[int, ...]:
    return row.input_ids[: row.prompt_length]


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
        with adapters_off(model), evaluating(model):
            self._fused = applies_nothing_after_head(base)
        compute = partial(
            base_model_parts,
            model,
            first=self.first,
            observed=observed,
            pad=encoder.pad,
            overhead=overhead,
            fused=self._fused,
        )
        self._rows = KnownRows(compute, self.store, CHUNK * encoder.batch_size)
        self._still = StillRows(self._quantities, self.store)
        self._gates = GateStates(model, model.base_model.active_adapters[0], encoder)
        self._batcher = Batcher(self._rows, self._still, self._gates, encoder.pad, overhead)
        self._seconds = 0.0
        self.counted = {"columns": 0, "real_columns": 0}  # of all batches that were trained on

    @property
    def facts(self) -> dict[str, dict[str, float]]:
        """Under `prefix_cache`: number of rows, their bytes, seconds of building, share of padding in training.

        `still` is the number of rows that no edit changes.
        """
        columns, real = self.counted["columns"], self.counted["real_columns"]
        return {
            "prefix_cache": {
                "rows": len(self._rows) + len(self._still),
                "still": len(self._still),
                "bytes": self._rows.bytes + self._still.bytes,
                "seconds": self._seconds,
                "padding_share": 1.0 - real / columns if columns else 0.0,
            }
        }

    def add(
        self, rows: Iterable[Encoded], references: Collection[str] = (), own: Collection[str] | None = None
    ) -> None:
        """Make rows known, together with the named quantities of the base model.

        Args:
            rows: encoded rows.
            references: quantities of the base model.
            own: quantities of the adapted model that will be read; rows whose gates are shut for good are then kept as these
                alone. None to keep every row as one that runs through the model.

        Raises:
            CannotContinue: if the model's cache does not hold the keys and values of every token.
        """
        started = time.monotonic()
        rows = list(dict.fromkeys(rows))
        self._gates.read({row.input_ids[: row.prompt_length] for row in rows})
        shut = [False] * len(rows) if own is None or not rows else self._gates.shut([_prompt(row) for row in rows])
        still = [row for row, is_shut in zip(rows, shut, strict=True) if is_shut]
        names = {*references, *(own or ())}
        self._still.add(self._still.missing(still, names), sorted(names))
        missing = self._rows.missing((row for row, is_shut in zip(rows, shut, strict=True) if not is_shut), references)
        self._announce(missing, set(references))
        self._rows.add(missing, set(references))
        self._seconds += time.monotonic() - started

    def batch(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]] | None = None) -> dict[str, Any]:
        """Known rows under `batch`, and under `input_ids` the tokens that run through the trained part."""
        batch = self._batcher.batch(rows, wanted)
        ids = [part.ids_BC.flatten() for part in batch.parts]
        return {"input_ids": torch.cat([*ids, torch.empty(0, dtype=torch.long)]), "batch": batch}

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """One forward call for each part of the batch, in the engine's own model, which `model` may wrap."""
        batch: PrefixBatches = inputs["batch"]
        if with_grad:
            self.counted["columns"] += batch.columns
            self.counted["real_columns"] += batch.real_columns
        runtime = self.model.base_model.runtime
        sides, logits = [], []
        for part in batch.parts:
            sides.append(
                prefix_signals(
                    self.model,
                    part,
                    first=self.first,
                    as_tuple=self._rows.as_tuple,
                    wanted=[name for name in wanted if not part.rows_of or name in part.rows_of],
                    layer=self.observed,
                    with_grad=with_grad,
                    fused=self._fused,
                )
            )
            logits.append(runtime.last_logits)
        rows_of = [part.rows_of for part in batch.parts]
        if batch.still is not None:
            sides += batch.still.sides(wanted)
            rows_of += [{}] * len(batch.still.quantities)
            logits.append(batch.still.gate_logits)
        runtime.last_logits = joined_gates(logits, batch.places)  # as after one call on the whole batch
        found = joined(sides, batch.places, rows_of)
        return found if batch.parts or not with_grad else self._without_slope(found)

    def references(
        self,
        rows: Sequence[Encoded],
        drawn: Collection[int],
        wanted: Collection[str],
        own: Collection[str] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Kept quantities; rows that are drawn are made known."""
        self.add((rows[i] for i in sorted(drawn)), wanted, own)
        empty = torch.empty(0)
        return {
            name: [self._reference(row, name) if i in drawn else empty for i, row in enumerate(rows)] for name in wanted
        }

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over kept log-probabilities; the rows are made known."""
        self.add(rows, {"logps"}, own={"logps"})
        return float(torch.stack([self._reference(row, "logps").mean().exp() for row in rows]).mean())

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Passes on known rows in the engine's own model, which `model` may wrap."""
        found = []
        for index in self.encoder.groups(rows):
            batch = self._batcher.batch([rows[i] for i in index], [("logps",)] * len(index)).to(self.encoder.device)
            side = self.signals(model, {"batch": batch}, {"logps"}, with_grad=False)
            found.append((-side.nll_B / side.lengths_B).exp())
        return float(torch.cat(found).mean())

    def _reference(self, row: Encoded, name: str) -> Tensor:
        """A quantity of the base model on a known row."""
        return self._still[row][name] if self._still.knows(row, {name}) else self._rows[row].references[name]

    def _quantities(self, rows: Sequence[Encoded], names: Collection[str]) -> dict[str, list[Tensor]]:
        """Quantities of the base model, from passes over whole rows of which nothing else is kept."""
        found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(rows) for name in names}
        for index, batch in self.encoder.batches(rows):
            side = reference_signals(self.model, batch, wanted=names, layer=self.observed, fused=self._fused)
            for name in names:
                dtype = torch.float32 if name == "logps" else next(self.model.parameters()).dtype
                values = side.quantities[name].to("cpu", dtype).split(side.lengths_B.tolist())
                for i, value in zip(index, values, strict=True):
                    found[name][i] = value.clone()  # not a view of all rows of the pass
        return found

    def _without_slope(self, side: SideSignals) -> SideSignals:
        """Signals of a batch in which nothing is edited: the trained parameters have a gradient of zero."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        nothing = torch.stack([parameter.flatten()[0] * 0.0 for parameter in trained]).sum()
        found = {name: value if name == "targets" else value + nothing for name, value in side.quantities.items()}
        return replace(side, quantities=found)

    def _announce(self, rows: Sequence[Encoded], names: Collection[str]) -> None:
        """Log the size of additions that will be large."""
        config = self.model.get_base_model().config.get_text_config()
        size = expected_bytes(config, self._layers_above, next(self.model.parameters()).element_size(), rows, names)
        if size > WORTH_SAYING:
            gib, where = size / 2**30, self.store.where
            logger.info("Caching the state of %d rows at layer %d: %.1f GiB %s.", len(rows), self.first, gib, where)
