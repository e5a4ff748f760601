"""`ForwardEngine`: everything that a job and its trainer ask of the way that rows take through the model."""

from __future__ import annotations

__all__ = ["ForwardEngine"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.encoding.encode import Encoded


class ForwardEngine(Protocol):
    """Forward passes of an unlearning run on encoded rows, with the model as it is trained and as it was before.

    Rows that a run draws are named to `references` before the first `batch` with them.
    """

    @property
    def facts(self) -> Mapping[str, Any]:
        """Entries of the run's `metrics.json`; none for an engine that has nothing to tell."""

    def batch(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """Inputs of one forward pass, on the CPU.

        The values are tensors, or have `to` and `pin_memory` as tensors do. `input_ids` is among them: transformers' trainer
        counts its elements as the tokens of a step.
        """

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """Quantities of the adapted model on the answer tokens of a batch, row by row in the order of the batch.

        The gates that `gates_of_last_call` reads afterwards are those of the whole batch.

        Args:
            model: the adapted model as the trainer wraps it.
            inputs: of `batch`, on the model's device; other entries are ignored.
            wanted: `logps`, `logits`, `hidden`; `targets` are always there.
            with_grad: keep the graph.
        """

    def references(
        self, rows: Sequence[Encoded], drawn: Collection[int], wanted: Collection[str]
    ) -> Mapping[str, Sequence[Tensor]]:
        """Quantities of the base model by name, one tensor (answer tokens, ...) per row on the CPU.

        Args:
            rows: of one side.
            drawn: numbers of the rows that training sees; the tensors of all others are empty.
            wanted: `logps`, `logits`, `hidden`; may be empty.
        """

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability `exp(mean log-probability)` under the base model."""

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """The same under the adapted model, as the trainer wraps it; `base_probability` was asked for the rows before."""
