"""Gate readings that are kept with a key/value cache: they say what the gates have read of the tokens in it."""

from __future__ import annotations

__all__ = [
    "cached_columns",
    "check_read",
    "drop_unread",
    "keep_with_cache",
    "readings_of",
    "shut_of",
    "values_of",
]

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any

from torch import Tensor

from grun.core.errors import UserError
from grun.models.tuner.call.context import GateKey
from grun.models.tuner.call.prompt_position import PromptSpan


class _GateKeeping:
    """Mixin for the class of a key/value cache: gate readings follow their rows through every reordering of the cache."""

    _grun_readings: dict[GateKey, Tensor]
    _grun_values: dict[Any, Tensor]
    _grun_shut: frozenset[str]
    _grun_columns: int

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
        if cached_columns(self) < self._grun_columns:  # a part of what was read is gone, and cannot be taken out again
            self._grun_forget()
        return out

    def _grun_forget(self) -> None:
        self._grun_readings, self._grun_values, self._grun_shut, self._grun_columns = {}, {}, frozenset(), 0

    def _grun_each(self, change: Callable[[Tensor], Tensor]) -> None:
        self._grun_readings = {key: change(value) for key, value in self._grun_readings.items()}
        self._grun_values = {key: change(value) for key, value in self._grun_values.items()}


@cache
def _gate_keeping_class(cls: Any) -> type:
    return type(cls.__name__, (_GateKeeping, cls), {"__module__": cls.__module__})


def cached_columns(cache: Any) -> int:
    """Number of columns in a key/value cache, which may be None."""
    return 0 if cache is None else int(cache.get_seq_length())


def keep_with_cache(
    cache: Any, readings: dict[GateKey, Tensor], columns: int, shut: frozenset[str] = frozenset()
) -> None:
    """Attach gate readings to a cache of any class: they are reordered, repeated, cropped and reset with it.

    Args:
        cache: cache of keys and values.
        readings: readings of the gates on the prompts.
        columns: number of columns, from the first on, that the readings cover.
        shut: adapters that edit no row from here on; no reordering of rows changes that.
    """
    if not isinstance(cache, _GateKeeping):
        kept_class: Any = type(cache)
        cache.__class__ = _gate_keeping_class(kept_class)
    cache._grun_readings = {k: v.detach() for k, v in readings.items()}
    cache._grun_values = {}
    cache._grun_shut = shut
    cache._grun_columns = columns


def _columns_read(cache: Any, keys: Iterable[GateKey]) -> int:
    """Number of columns of a cache, from the first on, that all of these gates have read."""
    known = readings_of(cache) or {}
    return int(cache._grun_columns) if known and known.keys() >= set(keys) else 0


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
    unread = past - _columns_read(cache, wanted) if past and wanted else 0
    if unread:
        with suppress(ValueError, AttributeError, NotImplementedError):
            cache.crop(-unread)
    return cached_columns(cache)


def check_read(cache: Any, span: PromptSpan, keys: Iterable[GateKey]) -> None:
    """Check that gates have read the prompt tokens that a cache holds.

    Args:
        cache: cache of keys and values, not empty.
        span: prompt positions of the call that continues it.
        keys: of the gates that read every prompt token.

    Raises:
        UserError: if one of them has not: the prompt would be judged by its last part only.
    """
    held = min(cached_columns(cache), int(span.end_B.max()) + 1)
    if int(span.start_B.min()) >= held:
        return
    for key in keys:
        read = _columns_read(cache, [key])
        if read < held:
            raise UserError(
                f"past_key_values holds {held} tokens of the prompt, of which the gate of adapter '{key[0]}' has read "
                f"{read}: fill the cache with this adapter active and prompt_lengths, or pass the whole prompt alone."
            )


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
