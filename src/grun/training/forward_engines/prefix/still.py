"""Rows that no edit changes, because their gates are shut for good: the base model's quantities stand for the model's own.

With a frozen gate that is exactly 0 the output of the adapted model is that of the base model, bit for bit, in every step.
Such rows have a constant loss and no gradient, so they never run through the model again.
"""

from __future__ import annotations

__all__ = ["StillBatch", "StillRows"]

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grun.core.records import SideSignals
from grun.models.encoding.encode import Encoded
from grun.models.tuner.call.context import GateKey
from grun.training.forward_engines.prefix.store import Parts, PartStore


@dataclass(frozen=True)
class StillBatch:
    """Rows of one batch that no edit changes.

    Attributes:
        ids_BA: int64, answer tokens, padded on the right.
        answer_BA: bool, true on real ones.
        quantities: by row, quantities (answer tokens, ...) of the base model by name.
        gate_logits: logits (B,) of all gates.
    """

    ids_BA: Tensor
    answer_BA: Tensor
    quantities: tuple[Mapping[str, Tensor], ...]
    gate_logits: Mapping[GateKey, Tensor]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> StillBatch:
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> StillBatch:
        """The same batch in memory that an accelerator can read while it computes."""
        return self._each(Tensor.pin_memory)

    def sides(self, wanted: Collection[str]) -> list[SideSignals]:
        """The signals of each row, without gradients."""
        found = []
        for ids_A, answer_A, own in zip(self.ids_BA, self.answer_BA, self.quantities, strict=True):
            values = {name: value.float() for name, value in own.items() if name in wanted}
            found.append(SideSignals(answer_A[None], {"targets": ids_A[answer_A], **values}))
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> StillBatch:
        return StillBatch(
            change(self.ids_BA),
            change(self.answer_BA),
            tuple({name: change(value) for name, value in own.items()} for own in self.quantities),
            {key: change(logits) for key, logits in self.gate_logits.items()},
        )


class StillRows:
    """Quantities of the base model on rows that no edit changes.

    Args:
        compute: passes of the base model over rows that return the named quantities, one tensor per row.
        store: storage of the tensors.

    Attributes:
        bytes: size of all tensors.
    """

    def __init__(
        self, compute: Callable[[Sequence[Encoded], Collection[str]], Mapping[str, Sequence[Tensor]]], store: PartStore
    ) -> None:
        self._compute = compute
        self._store = store
        self._rows: dict[Encoded, dict[str, Tensor]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Encoded) -> Mapping[str, Tensor]:
        return self._rows[row]

    def knows(self, row: Encoded, names: Collection[str]) -> bool:
        """True if these quantities of a row are known; of no row before it was added."""
        return row in self._rows and self._rows[row].keys() >= set(names)

    def missing(self, rows: Iterable[Encoded], names: Collection[str]) -> list[Encoded]:
        """Rows, each once, of which a quantity is not known yet."""
        return [row for row in dict.fromkeys(rows) if not self.knows(row, names)]

    def add(self, rows: Sequence[Encoded], names: Collection[str]) -> None:
        """Read the quantities of rows from the store, or compute and store them."""
        if not rows:
            return
        kind = [*names, "alone"]
        with self._store.building():
            parts = self._store.read(rows, kind)
            if parts is None:
                found = self._compute(rows, names)
                parts = {f"{i}.{name}": found[name][i] for name in names for i in range(len(rows))}
                self._store.write(rows, kind, _contiguous(parts))
        for i, row in enumerate(rows):
            self._rows.setdefault(row, {}).update({name: parts[f"{i}.{name}"] for name in names})
        self.bytes += sum(value.numel() * value.element_size() for value in parts.values())

    def batch(
        self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]], gate_logits: Mapping[GateKey, Tensor]
    ) -> StillBatch:
        """Known rows as a batch, on the CPU.

        Args:
            rows: known rows.
            wanted: quantities that are read of each.
            gate_logits: see `StillBatch`.
        """
        answers = [row.input_ids[row.prompt_length :] for row in rows]
        longest = max(map(len, answers))
        return StillBatch(
            torch.tensor([[*answer, *[0] * (longest - len(answer))] for answer in answers]),
            torch.arange(longest) < torch.tensor([len(answer) for answer in answers])[:, None],
            tuple({name: self._rows[row][name] for name in own} for row, own in zip(rows, wanted, strict=True)),
            gate_logits,
        )


def _contiguous(parts: Parts) -> Parts:
    """Parts with storage of their own, as files need it."""
    return {name: value.clone() for name, value in parts.items()}
