"""`ForwardEngine`: the interface between a job with its trainer and the forward passes on its rows."""

from __future__ import annotations

__all__ = ["ForwardEngine"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from grun.core.records import SideSignals
from grun.models.encoding.encode import Encoded


class ForwardEngine(Protocol):
    """Forward passes of an unlearning run on encoded rows, in the adapted model and in the base model.

    A job passes all rows that training draws to `references`, and those it validates on to `base_probability`, before the
    first `batch` or `probability` with them: an engine may need to prepare rows.

    An engine may have a dictionary `counted` of numbers that it has counted in training. Checkpoints hold it.
    """

    @property
    def facts(self) -> Mapping[str, Any]:
        """Entries for the run's `metrics.json`, by key; may be empty."""

    def batch(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]] | None = None) -> dict[str, Any]:
        """Inputs of one forward pass, on the CPU.

        The values are tensors, or have `to` and `pin_memory` as tensors do. `input_ids` is among them: transformers' trainer
        counts its elements as the tokens of a step.

        Args:
            rows: encoded rows.
            wanted: by row, the quantities that are read; None for all that `signals` is asked for.
        """

    def signals(
        self, model: nn.Module, inputs: Mapping[str, Any], wanted: Collection[str], with_grad: bool = True
    ) -> SideSignals:
        """Quantities of the adapted model on the answer tokens of a batch, row by row in the order of the batch.

        Rows of which a quantity is not read are left out of it.

        Afterwards `gates_of_last_call` returns the gates of the whole batch.

        Args:
            model: the adapted model as the trainer wraps it.
            inputs: the result of `batch`, on the model's device; further entries are ignored.
            wanted: `logps`, `logits`, `hidden`; `targets` are always there.
            with_grad: keep the graph.
        """

    def references(
        self,
        rows: Sequence[Encoded],
        drawn: Collection[int],
        wanted: Collection[str],
        own: Collection[str] | None = None,
    ) -> Mapping[str, Sequence[Tensor]]:
        """Quantities of the base model by name, one tensor (answer tokens, ...) per row on the CPU.

        Args:
            rows: of one side.
            drawn: numbers of the rows that training sees; the tensors of all others are empty.
            wanted: `logps`, `logits`, `hidden`; may be empty.
            own: the quantities of the adapted model that training reads of these rows.
        """

    def base_probability(self, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability `exp(mean log-probability)` under the base model."""

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """The same under the adapted model, as the trainer wraps it."""
