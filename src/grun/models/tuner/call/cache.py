"""Gate readings that are kept with a key/value cache: they say what the gates have read of the tokens in it."""

from __future__ import annotations

__all__ = [
    "LastRead",
    "columns_read",
    "covered",
    "rewind",
    "cached_columns",
    "check_read",
    "drop_unread",
    "keep_with_cache",
    "prompts_of",
    "readings_of",
    "shut_of",
    "values_of",
]

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from grun.core.errors import UserError
from grun.models.tuner.call.context import CallContext, GateKey


@dataclass(frozen=True)
class LastRead:
    """The part of a sequence that a gate has read last.

    Attributes:
        start: its first column.
        before_BS: the reading of the part before it; None at the beginning.
        h_BTD: hidden states that were read.
        prompt_BT, later_BT: as of `Gate.read`.
    """

    start: int
    before_BS: Tensor | None
    h_BTD: Tensor
    prompt_BT: Tensor | None
    later_BT: Tensor | None

    def reaches(self, column: int) -> bool:
        """Whether the reading up to this column, exclusive, can be found again."""
        return column > self.start or (column == self.start and self.before_BS is not None)

    def changed(self, change: Callable[[Tensor], Tensor]) -> LastRead:
        """The same for other rows."""
        before_BS, prompt_BT, later_BT = (
            None if value is None else change(value) for value in (self.before_BS, self.prompt_BT, self.later_BT)
        )
        return LastRead(self.start, before_BS, change(self.h_BTD), prompt_BT, later_BT)

    def first(self, count: int, gate: Any) -> Tensor:
        """The reading of a gate after the first `count` tokens of this part."""
        if not count:
            assert self.before_BS is not None, "see reaches"
            return self.before_BS
        masks = (None if mask is None else mask[:, :count] for mask in (self.prompt_BT, self.later_BT))
        reading_BS: Tensor = gate.read(self.h_BTD[:, :count], *masks, self.before_BS)[0]
        return reading_BS


class _GateKeeping:
    """Mixin for the class of a key/value cache: gate readings follow their rows through every reordering of the cache."""

    _grun_readings: dict[GateKey, Tensor]
    _grun_values: dict[Any, Tensor]
    _grun_shut: frozenset[str]
    _grun_columns: dict[GateKey, int]
    _grun_prompts: dict[GateKey, Tensor]
    _grun_last: dict[GateKey, LastRead]
    _grun_rewinds: dict[GateKey, int]

    def reorder_cache(self, beam_idx: Tensor) -> Any:
        out = super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._grun_each(lambda v: v.index_select(0, beam_idx.to(v.device)))
        return out

    def batch_repeat_interleave(self, repeats: int) -> Any:
        out = super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._grun_each(lambda v: v.repeat_interleave(repeats, dim=0))
        return out

    def batch_select_indices(self, indices: Tensor) -> Any:
        out = super().batch_select_indices(indices)  # type: ignore[misc]
        self._grun_each(lambda v: v[indices.to(v.device)])
        return out

    def reset(self) -> Any:
        self._grun_forget()
        return super().reset()  # type: ignore[misc]

    def crop(self, *args: Any, **kwargs: Any) -> Any:
        out = super().crop(*args, **kwargs)  # type: ignore[misc]
        left = cached_columns(self)
        for key in [key for key, columns in self._grun_columns.items() if columns > left]:
            last = self._grun_last.get(key)
            if last is not None and last.reaches(left):
                self._grun_columns[key] = self._grun_rewinds[key] = left
            else:  # what was read before cannot be taken out again
                self._grun_forget(key)
        return out

    def _grun_forget(self, *keys: GateKey) -> None:
        """Forget what these gates have read; without keys, everything."""
        for key in keys or list(self._grun_readings):
            for kept in (
                self._grun_readings,
                self._grun_columns,
                self._grun_prompts,
                self._grun_last,
                self._grun_rewinds,
            ):
                kept.pop(key, None)
        self._grun_values, self._grun_shut = {}, frozenset()

    def _grun_each(self, change: Callable[[Tensor], Tensor]) -> None:
        self._grun_readings = {key: change(value) for key, value in self._grun_readings.items()}
        self._grun_values = {key: change(value) for key, value in self._grun_values.items()}
        self._grun_prompts = {key: change(value) for key, value in self._grun_prompts.items()}
        self._grun_last = {key: last.changed(change) for key, last in self._grun_last.items()}


@cache
def _gate_keeping_class(cls: Any) -> type:
    return type(cls.__name__, (_GateKeeping, cls), {"__module__": cls.__module__})


def cached_columns(cache: Any) -> int:
    """Number of columns in a key/value cache, which may be None."""
    return 0 if cache is None else int(cache.get_seq_length())


def keep_with_cache(
    cache: Any, call: CallContext, columns: Mapping[GateKey, int], shut: frozenset[str] = frozenset()
) -> None:
    """Attach gate readings to a cache of any class: they are reordered, repeated, cropped and reset with it.

    Args:
        cache: cache of keys and values.
        call: the call that has filled it, with the readings of the gates.
        columns: number of columns, from the first on, that each reading covers.
        shut: adapters that edit no row from here on; no reordering of rows changes that.
    """
    if not isinstance(cache, _GateKeeping):
        kept_class: Any = type(cache)
        cache.__class__ = _gate_keeping_class(kept_class)
    cache._grun_readings = {k: v.detach() for k, v in call.readings.items()}
    cache._grun_values = {}
    cache._grun_shut = shut
    cache._grun_columns = dict(columns)
    cache._grun_prompts = dict(call.of_prompts)
    cache._grun_last = dict(call.last or {})
    cache._grun_rewinds = {}


def rewind(cache: Any, layers: Iterable[Any]) -> None:
    """Read again what is left of the last part that gates have read, where a cache was cropped within it.

    Args:
        cache: cache of keys and values.
        layers: the wrapped layers of the model, which hold the gates.
    """
    if not isinstance(cache, _GateKeeping) or not cache._grun_rewinds:
        return
    gates = {(name, layer.index): gate for layer in layers for name, gate in layer.gates.items()}
    for key, column in cache._grun_rewinds.items():
        last = cache._grun_last.pop(key)
        cache._grun_readings[key] = last.first(column - last.start, gates[key])
    cache._grun_rewinds = {}


def covered(cache: Any, call: CallContext, answers: Iterable[GateKey]) -> dict[GateKey, int]:
    """Number of columns of a cache, from the first on, that each reading covers at the end of a call.

    Args:
        cache: cache of keys and values after the call.
        call: the call.
        answers: keys of the gates that have read all of its tokens; the others have read the prompts.
    """
    whole = cached_columns(cache)
    found = {key: columns_read(cache, [key]) for key in call.readings}
    if call.span is not None:
        found = dict.fromkeys(call.readings, min(whole, int(call.span.end_B.max()) + 1))
    return found | dict.fromkeys(answers, whole)


def columns_read(cache: Any, keys: Iterable[GateKey]) -> int:
    """Number of columns of a cache, from the first on, that all of these gates have read."""
    known = cache._grun_columns if isinstance(cache, _GateKeeping) else {}
    return min((known.get(key, 0) for key in keys), default=0)


def drop_unread(cache: Any, keys: Iterable[GateKey]) -> int:
    """Drop the columns of a cache that a gate has not read, so that `generate`, which has all tokens, reads them.

    A cache that cannot give columns back stays as it is, and the call refuses it.

    Args:
        cache: cache of keys and values, or None.
        keys: of the gates that read every prompt token.

    Returns:
        The number of columns that are left.
    """
    past, wanted = cached_columns(cache), set(keys)
    unread = past - columns_read(cache, wanted) if past and wanted else 0
    if unread:
        with suppress(ValueError, AttributeError, NotImplementedError):
            cache.crop(-unread)
    return cached_columns(cache)


def check_read(cache: Any, held: int, keys: Iterable[GateKey]) -> None:
    """Check that gates have read the first `held` columns of a cache.

    Raises:
        UserError: if one of them has not: the rest would be judged without them.
    """
    for key in keys:
        read = columns_read(cache, [key])
        if read < held:
            raise UserError(
                f"past_key_values holds {held} tokens, of which the gate of adapter '{key[0]}' has read {read}: fill the "
                "cache with this adapter active, every call with prompt_lengths or after one, or pass all tokens at once."
            )


def prompts_of(cache: Any) -> dict[GateKey, Tensor]:
    """The logits (B, 1) of gates for the prompts in a cache."""
    return dict(cache._grun_prompts) if isinstance(cache, _GateKeeping) else {}


def readings_of(cache: Any) -> dict[GateKey, Tensor] | None:
    """The gate readings attached to a cache; None if it was not prefilled under an adapter."""
    return dict(cache._grun_readings) if isinstance(cache, _GateKeeping) else None


def values_of(cache: Any) -> dict[Any, Tensor]:
    """The gate values attached to a prefilled cache; callers may add to them, decoding never changes them."""
    found: dict[Any, Tensor] = cache._grun_values
    return found


def shut_of(cache: Any) -> frozenset[str] | None:
    """Adapters that edit no row of a prefilled cache; None if it was not prefilled under an adapter."""
    return cache._grun_shut if isinstance(cache, _GateKeeping) else None
