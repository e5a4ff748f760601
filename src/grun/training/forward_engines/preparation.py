"""Preparation of training items: an engine is asked for the rows of some steps at a time, as training comes to them."""

from __future__ import annotations

__all__ = ["Preparation"]

from collections.abc import Mapping, Sequence

from torch import Tensor

from grun.models.encoding.encode import Encoded
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.loss.terms import Recipe


class Preparation:
    """Makes the rows of items known to an engine, stretch by stretch and always in the same order.

    A run that stops early then never computes rows of steps that it does not take. A resumed run prepares all stretches up to
    its first step, so that the states of a row come from the same pass as before.

    Args:
        engine: runs the base model.
        recipe: the loss, which says what is read of each side.
        sides: encoded rows by side.
        order: for each item, the row index per side.
        stretch: number of items prepared at a time.

    Attributes:
        references: by side, quantities of the base model by name, one tensor per row; empty for rows of later items.
    """

    def __init__(
        self,
        engine: ForwardEngine,
        recipe: Recipe,
        sides: Mapping[str, Sequence[Encoded]],
        order: Sequence[Mapping[str, int]],
        stretch: int,
    ) -> None:
        self._engine = engine
        self._recipe = recipe
        self._sides = sides
        self._order = order
        self._stretch = stretch
        self._ready = 0
        self._drawn: dict[str, set[int]] = {side: set() for side in sides}
        self.references: dict[str, dict[str, list[Tensor]]] = {side: {} for side in sides}
        self(0)

    def __call__(self, item: int) -> None:
        """Prepare everything up to the stretch of an item."""
        while self._ready <= min(item, len(self._order) - 1):
            items = self._order[self._ready : self._ready + self._stretch]
            for side, rows in self._sides.items():
                self._add(side, rows, {picked[side] for picked in items} - self._drawn[side])
            self._ready += len(items)

    def _add(self, side: str, rows: Sequence[Encoded], new: set[int]) -> None:
        self._drawn[side] |= new
        recipe = self._recipe
        found = self._engine.references(rows, new, recipe.references(side), recipe.wanted_of(side))
        for name, values in found.items():
            kept = self.references[side].setdefault(name, list(values))
            for i in new:
                kept[i] = values[i]
