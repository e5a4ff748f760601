"""Batches of rows from a prefix cache, in parts of similar length."""

from __future__ import annotations

__all__ = ["Batcher", "PrefixBatch", "PrefixBatches", "part_overhead", "parts_by_length"]

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from grun.models.encoding.encode import Encoded
from grun.models.tuner.call.context import GateKey
from grun.training.forward_engines.prefix.content import KnownRows
from grun.training.forward_engines.prefix.gate_states import GateStates
from grun.training.forward_engines.prefix.still import StillBatch, StillRows

PART_OVERHEAD = 1e9  # cost of one more part on a CPU, in multiplications and additions


@dataclass(frozen=True)
class PrefixBatch:
    """A batch of rows cut before their last prompt tokens. The C columns hold that token and the answer.

    Attributes:
        ids_BC: int64, padded on the right.
        answer_BA: bool, true in those of the A = C - 1 columns after the first that hold an answer token.
        hidden_BCD: output of the first edited layer in the base model.
        keys_values_LBHPK: keys, then values, of every layer above it, for the P prompt tokens before the cut, padded on the
            left; H heads of K numbers.
        prefix_BP: bool, true on real tokens before the cut.
        gate_states: of gates that are trained or read edited layers: the states (B, S, D) that they read in the base model,
            padded on the left, and a mask (B, S) of the real ones.
        gate_logits: of gates that are frozen and read nothing edited: their logits (B,).
        rows_of: by quantity, a bool mask (B,) of the rows that it is read of; empty if any is read of all rows.
    """

    ids_BC: Tensor
    answer_BA: Tensor
    hidden_BCD: Tensor
    keys_values_LBHPK: Tensor
    prefix_BP: Tensor
    gate_states: Mapping[GateKey, tuple[Tensor, Tensor]]
    gate_logits: Mapping[GateKey, Tensor]
    rows_of: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrefixBatch:
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PrefixBatch:
        """The same batch in memory that an accelerator can read while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PrefixBatch:
        return PrefixBatch(
            change(self.ids_BC),
            change(self.answer_BA),
            change(self.hidden_BCD),
            change(self.keys_values_LBHPK),
            change(self.prefix_BP),
            {key: (change(h), change(mask)) for key, (h, mask) in self.gate_states.items()},
            {key: change(logits) for key, logits in self.gate_logits.items()},
            {name: change(mask_B) for name, mask_B in self.rows_of.items()},
        )


@dataclass(frozen=True)
class PrefixBatches:
    """The rows of a step in parts of similar length, so that little padding is computed.

    Attributes:
        parts: batches.
        places: place in the step of each row, in the order of the parts, then of `still`.
        still: rows that no edit changes; None if there are none.
        columns: number of columns of all parts.
        real_columns: number of those that hold a token.
    """

    parts: tuple[PrefixBatch, ...]
    places: tuple[int, ...]
    still: StillBatch | None = None
    columns: int = 0
    real_columns: int = 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrefixBatches:
        """The same on `device`."""
        still = None if self.still is None else self.still.to(device, non_blocking)
        return replace(self, parts=tuple(part.to(device, non_blocking) for part in self.parts), still=still)

    def pin_memory(self) -> PrefixBatches:
        """The same in memory that an accelerator can read while it computes."""
        still = None if self.still is None else self.still.pin_memory()
        return replace(self, parts=tuple(part.pin_memory() for part in self.parts), still=still)


class Batcher:
    """Makes batches of known rows.

    Args:
        rows: content of the cache.
        still: the same of rows that no edit changes.
        gates: gate states of the prompts of all these rows.
        pad: token that fills rows up.
        overhead: cost of one more part, in columns (see `parts_by_length`).
    """

    def __init__(self, rows: KnownRows, still: StillRows, gates: GateStates, pad: int, overhead: float) -> None:
        self._rows = rows
        self._still = still
        self._gates = gates
        self._pad = pad
        self._overhead = overhead

    def batch(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]] | None = None) -> PrefixBatches:
        """The rows of a step, on the CPU, in as many parts as cost the least.

        Args:
            rows: known rows.
            wanted: by row, the quantities that are read; None for all that are asked for. Rows whose gates are shut for good
                are `still` if these are known of the base model.
        """
        still = [] if wanted is None else self._unchanged(rows, wanted)
        running = [i for i in range(len(rows)) if i not in set(still)]
        lengths = [len(rows[i].input_ids) - rows[i].prompt_length for i in running]
        numbers = [[running[i] for i in part] for part in parts_by_length(lengths, self._overhead)]
        parts = [
            self._part([rows[i] for i in part], None if wanted is None else [wanted[i] for i in part])
            for part in numbers
        ]
        masks = [mask for part in parts for mask in (part.prefix_BP, part.answer_BA)]
        return PrefixBatches(
            tuple(parts),
            (*(i for part in numbers for i in part), *still),
            self._still_batch([rows[i] for i in still], [(wanted or ())[i] for i in still]) if still else None,
            columns=sum(mask.numel() for mask in masks),
            real_columns=sum(int(mask.sum()) for mask in masks),
        )

    def _unchanged(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]]) -> list[int]:
        """Numbers of the rows that no edit changes and of which everything wanted is known."""
        shut = self._gates.shut([row.input_ids[: row.prompt_length] for row in rows])
        return [i for i, row in enumerate(rows) if shut[i] and self._still.knows(row, wanted[i])]

    def _still_batch(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]]) -> StillBatch:
        logits = self._gates.of([row.input_ids[: row.prompt_length] for row in rows])[1]
        return self._still.batch(rows, wanted, logits)

    def _part(self, rows: Sequence[Encoded], wanted: Sequence[Collection[str]] | None) -> PrefixBatch:
        read = sorted({name for own in wanted or () for name in own})
        known = [self._rows[row] for row in rows]
        prompts = [row.prompt_length - 1 for row in rows]
        answers = [len(row.input_ids) - row.prompt_length for row in rows]
        width, columns = max(prompts), max(answers) + 1
        ids_BC = torch.full((len(rows), columns), self._pad)
        hidden_BCD = known[0].hidden_CD.new_zeros(len(rows), columns, known[0].hidden_CD.shape[1])
        layers, heads, _, size = known[0].keys_values_LHPK.shape
        keys_values_LBHPK = known[0].keys_values_LHPK.new_zeros(layers, len(rows), heads, width, size)
        for i, (row, one, prompt, answer) in enumerate(zip(rows, known, prompts, answers, strict=True)):
            ids_BC[i, : answer + 1] = torch.tensor(row.input_ids[row.prompt_length - 1 :])
            hidden_BCD[i, : answer + 1] = one.hidden_CD
            keys_values_LBHPK[:, i, :, width - prompt :] = one.keys_values_LHPK
        return PrefixBatch(
            ids_BC,
            torch.arange(columns - 1) < torch.tensor(answers)[:, None],
            hidden_BCD,
            keys_values_LBHPK,
            torch.arange(width) >= width - torch.tensor(prompts)[:, None],
            *self._gates.of([row.input_ids[: row.prompt_length] for row in rows]),
            {name: torch.tensor([name in own for own in wanted or ()]) for name in read},
        )


def part_overhead(device: torch.device, trained_parameters: int) -> float:
    """Cost of one more part in columns; infinite on accelerators, which run one large part faster than several small ones.

    Args:
        device: device of the model.
        trained_parameters: number of weights that every column passes in a step.
    """
    return PART_OVERHEAD / (4 * trained_parameters) if device.type == "cpu" else math.inf


def parts_by_length(lengths: Sequence[int], overhead: float) -> list[list[int]]:
    """Rows in parts of similar length, split at the least cost; a part costs its columns, padding included, and `overhead`.

    Args:
        lengths: columns of each row.
        overhead: cost of a part besides its columns, in columns.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the first rows, start of their last part
    for end in range(1, len(order) + 1):
        best.append(min((best[a][0] + lengths[order[a]] * (end - a) + overhead, a) for a in range(end)))
    parts: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        parts.insert(0, order[start:end])
        end = start
    return parts
