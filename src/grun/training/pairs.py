"""Training items in order: every forget row once per pass, each with a retain row."""

from __future__ import annotations

__all__ = ["PairedRows", "References", "paired_order", "paired_rows"]

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.data import Dataset

from grun.core.records import Example
from grun.models.encoding.encode import Encoded
from grun.models.row_encoder import RowEncoder


def paired_order(n_forget: int, n_retain: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Order of one epoch: every forget row once, each with a retain row.

    Retain rows are drawn without replacement until all of them were used, across epochs, and then again from all of them.

    Raises:
        ValueError: if one side has no rows.
    """
    if n_forget < 1 or n_retain < 1:
        raise ValueError(f"pairing needs rows on both sides, got {n_forget} to forget and {n_retain} to retain")
    forget = _shuffled(n_forget, f"forget {seed} {epoch}")
    drawn = _draws(n_retain, seed, epoch * n_forget)
    return [(row, next(drawn)) for row in forget]


def _shuffled(n: int, seed: str) -> list[int]:
    rows = list(range(n))
    random.Random(seed).shuffle(rows)
    return rows


def _draws(n: int, seed: int, start: int) -> Iterator[int]:
    """Endless shuffles of `range(n)`, one after the other, from entry `start` on."""
    lap, skip = divmod(start, n)
    while True:
        yield from _shuffled(n, f"retain {seed} {lap}")[skip:]
        lap, skip = lap + 1, 0


References = Mapping[str, Sequence[Tensor]]  # by quantity, one tensor (answer tokens, ...) per row


@dataclass(frozen=True)
class PairedRows(Dataset):  # type: ignore[type-arg]
    """Training items in their final order: for each, one encoded row per side.

    Attributes:
        sides: encoded rows by side.
        order: for each item, the row index per side.
        references: by side, quantities of the base model on each row.
        prepare: called before an item is read, with its number, to make its rows known and fill `references`.
    """

    sides: Mapping[str, Sequence[Encoded]]
    order: Sequence[Mapping[str, int]]
    references: Mapping[str, References]
    prepare: Callable[[int], None] = lambda item: None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: int) -> dict[str, tuple[Encoded, dict[str, Tensor]]]:
        self.prepare(item)
        picked = self.order[item]
        return {
            side: (rows[picked[side]], {q: found[picked[side]] for q, found in self.references.get(side, {}).items()})
            for side, rows in self.sides.items()
        }


def paired_rows(
    rows: RowEncoder,
    encoded: Mapping[str, Sequence[Encoded]],
    forget: Sequence[Example],
    sides: Sequence[str],
    items: int,
    seed: int,
    answers: Mapping[str, Callable[[Example], Sequence[str]]],
) -> PairedRows:
    """All training items in order: every forget row once per pass, each with a retain row drawn at random.

    Args:
        rows: makes encoded rows.
        encoded: rows of the sides `forget` and `retain`.
        forget: the examples of the forget rows.
        sides: names of the sides in a batch.
        items: number of training items.
        seed: seed of the order and of the draws.
        answers: by side, a function from a forget example to the answers that may replace its own; one is drawn for every
            row and pass.
    """
    order: list[dict[str, int]] = []
    drawn = {side: _DrawnRows(rows, forget, choices, side, seed) for side, choices in answers.items() if side in sides}
    epoch = 0
    while len(order) < items:
        for f, r in paired_order(len(encoded["forget"]), len(encoded["retain"]), seed, epoch):
            item = {"forget": f, "retain": r} | {side: other.draw(f) for side, other in drawn.items()}
            order.append({side: item[side] for side in sides})
        epoch += 1
    everything = {**encoded, **{side: other.encoded for side, other in drawn.items()}}
    return PairedRows({side: everything[side] for side in sides}, order[:items], {})


class _DrawnRows:
    """Forget prompts with answers drawn at random; every pair is encoded once."""

    def __init__(
        self,
        rows: RowEncoder,
        forget: Sequence[Example],
        choices: Callable[[Example], Sequence[str]],
        side: str,
        seed: int,
    ) -> None:
        self.encoded: list[Encoded] = []
        self._rows, self._forget, self._choices = rows, forget, choices
        self._known: dict[tuple[int, str], int] = {}
        self._random = random.Random(f"{side}s {seed}")

    def draw(self, row: int) -> int:
        """Index in `encoded` of a forget row with an answer drawn for it."""
        key = (row, self._random.choice(self._choices(self._forget[row])))
        if key not in self._known:
            self._known[key] = len(self.encoded)
            self.encoded += self._rows.encode([replace(self._forget[row], answer=key[1])])
        return self._known[key]
