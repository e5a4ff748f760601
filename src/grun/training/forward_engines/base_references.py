"""Quantities of the base model on training rows, computed once and kept, so that no second model is in memory."""

from __future__ import annotations

__all__ = ["base_model_references"]

import logging
import math
import tempfile
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from grun.core.distributed import gathered, is_main, rank, world
from grun.core.process.progress import tracked
from grun.models.encoding.encode import Encoded
from grun.models.forward import reference_signals
from grun.models.row_encoder import RowEncoder

logger = logging.getLogger("grun")
IN_MEMORY = 2**30  # bytes of one quantity; larger ones go to a temporary file that the system pages in
WORTH_SAYING = 2**27  # bytes of one quantity from which on its size is logged


def base_model_references(
    rows: RowEncoder,
    model: nn.Module,
    encoded: Sequence[Encoded],
    drawn: Collection[int],
    wanted: Collection[str],
    layer: nn.Module | None = None,
    *,
    fused: bool = False,
) -> dict[str, list[Tensor]]:
    """Quantities (answer tokens, ...) of the base model by name, one tensor per row; empty for rows that are not drawn.

    Several processes share the work. Logits and hidden states are kept in the dtype of the model, in which they were computed;
    log-probabilities are float32.

    Args:
        rows: makes batches.
        model: the model, with or without adapters.
        encoded: rows.
        drawn: numbers of the rows that training will see.
        wanted: `logps`, `logits`, `hidden`.
        layer: the decoder layer whose output `hidden` is.
        fused: as of `side_signals`.
    """
    if not wanted:
        return {}
    order = sorted(drawn)
    found: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(encoded) for name in wanted}
    stores: dict[str, _Store] = {}
    total = sum(len(encoded[i].input_ids) - encoded[i].prompt_length for i in order)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mine = order[rank() :: world()]

    def keep(part: Sequence[tuple[int, dict[str, Tensor]]]) -> None:
        for row, values in part:
            for name, value in values.items():
                if name not in stores:
                    stores[name] = _Store(total, value)
                found[name][row] = stores[name].copy(value)

    own: list[tuple[int, dict[str, Tensor]]] = []
    batches = rows.batches([encoded[i] for i in mine])
    for index, batch in tracked(batches, "ask the base model", len(mine), "row", lambda part: len(part[0])):
        side = reference_signals(model, batch, wanted=wanted, layer=layer, fused=fused)
        lengths = side.lengths_B.tolist()
        split = {
            name: side.quantities[name].to("cpu", torch.float32 if name == "logps" else dtype).split(lengths)
            for name in wanted
        }
        part = [(mine[i], {name: split[name][b] for name in wanted}) for b, i in enumerate(index)]
        if world() == 1:
            keep(part)
        else:
            own += part
    if world() > 1:
        for part in gathered(own):
            keep(part)
    return found


class _Store:
    """Storage of one quantity of all rows, in memory or in a temporary file."""

    def __init__(self, total: int, like: Tensor) -> None:
        shape = (total, *like.shape[1:])
        size = math.prod(shape) * like.element_size()
        if size > WORTH_SAYING and is_main():
            where = "memory" if size <= IN_MEMORY else f"a temporary file in {tempfile.gettempdir()}"
            logger.info("Keeping %.1f GiB of what the base model says in %s.", size / 2**30, where)
        if size <= IN_MEMORY:
            self._values = torch.empty(shape, dtype=like.dtype)
        else:
            with tempfile.NamedTemporaryFile(prefix="grun-") as file:  # the mapping outlives the name of the file
                file.truncate(size)
                flat = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=like.dtype)
            self._values = flat.view(shape)
        self._used = 0

    def copy(self, value: Tensor) -> Tensor:
        """A copy of the values of one row, as a view of the store."""
        end = self._used + len(value)
        self._values[self._used : end] = value
        view, self._used = self._values[self._used : end], end
        return view
