"""`PlainEngine`: whole rows through the whole model."""

from __future__ import annotations

__all__ = ["PlainEngine"]

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from grun.core.records import Batch, SideSignals
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import adapters_off, evaluating, side_signals
from grun.models.row_encoder import RowEncoder
from grun.training.forward_engines.base_references import base_model_references


@dataclass(frozen=True)
class PlainEngine:
    """The `ForwardEngine` that works for every model, adapter and number of processes.

    Attributes:
        model: the adapted model.
        encoder: makes batches.
        observed: decoder layer whose output the quantity `hidden` is; None if the loss reads none.
    """

    model: nn.Module
    encoder: RowEncoder
    observed: nn.Module | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """No entries."""
        return {}

    def batch(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """The rows padded to one width."""
        batch = collate(rows, self.encoder.pad)
        return {
            "input_ids": batch.input_ids_BT,
            "attention_mask": batch.attention_mask_BT,
            "labels": batch.labels_BT,
            "prompt_lengths": batch.prompt_lengths_B,
        }

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """One forward call on all rows."""
        batch = Batch(*(inputs[name] for name in ("input_ids", "attention_mask", "labels", "prompt_lengths")))
        return side_signals(model, batch, wanted=wanted, layer=self.observed, with_grad=with_grad)

    def references(
        self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]
    ) -> dict[str, list[Tensor]]:
        """Passes over the drawn rows, shared by all processes."""
        return base_model_references(self.encoder, self.model, rows, drawn, wanted, self.observed)

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Passes with the adapters off."""
        with adapters_off(self.model), evaluating(self.model):
            return self.encoder.probability(self.model, rows)

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Passes with the adapters on."""
        return self.encoder.probability(model, rows)
