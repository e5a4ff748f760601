"""`PlainEngine`: whole rows through the whole model."""

from __future__ import annotations

__all__ = ["PlainEngine"]

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.distributed import world
from grun.core.records import Batch, SideSignals
from grun.models.answer_head import applies_nothing_after_head
from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import adapters_off, evaluating, language_model, side_signals
from grun.models.row_encoder import RowEncoder
from grun.training.forward_engines.base_references import base_model_references

ROWS_OF = "rows_of_"  # prefix of the masks by quantity among the inputs


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

    @cached_property
    def fused(self) -> bool:
        """True if log-probabilities need no logits; several processes may hold a part of the head each."""
        with adapters_off(self.model), evaluating(self.model):
            return world() == 1 and applies_nothing_after_head(language_model(self.model))

    def batch(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]] | None = None) -> dict[str, Any]:
        """The rows padded to one width, and by quantity the rows of which it is read."""
        batch = collate(rows, self.encoder.pad)
        names = sorted({name for own in wanted or () for name in own})
        return {
            "input_ids": batch.input_ids_BT,
            "attention_mask": batch.attention_mask_BT,
            "labels": batch.labels_BT,
            "prompt_lengths": batch.prompt_lengths_B,
            **{f"{ROWS_OF}{name}": torch.tensor([name in own for own in wanted or ()]) for name in names},
        }

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """One forward call on all rows."""
        batch = Batch(*(inputs[name] for name in ("input_ids", "attention_mask", "labels", "prompt_lengths")))
        rows_of = {name: inputs[ROWS_OF + name] for name in wanted if ROWS_OF + name in inputs}
        return side_signals(
            model,
            batch,
            wanted=wanted,
            layer=self.observed,
            with_grad=with_grad,
            rows_of=rows_of or None,
            fused=self.fused,
        )

    def references(
        self,
        rows: Sequence[Encoded],
        drawn: Collection[int],
        wanted: Collection[str],
        own: Collection[str] | None = None,
    ) -> dict[str, list[Tensor]]:
        """Passes over the drawn rows, shared by all processes."""
        return base_model_references(self.encoder, self.model, rows, drawn, wanted, self.observed, fused=self.fused)

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Passes with the adapters off."""
        with adapters_off(self.model), evaluating(self.model):
            return self.encoder.probability(self.model, rows)

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Passes with the adapters on."""
        return self.encoder.probability(model, rows)
