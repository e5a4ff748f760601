"""What the layers of one model share during a forward call: where the prompt is, and what the gates said."""

from __future__ import annotations

__all__ = [
    "CallContext",
    "Gates",
    "GenerationScope",
    "Runtime",
    "keep_with_cache",
    "readings_of",
    "shut_of",
    "values_of",
]

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grun.models.tuner.prompt_position import PromptSpan, from_attention_mask

GateKey = tuple[str, int]  # adapter name, index of the decoder layer that holds the gate


@dataclass(frozen=True)
class Gates:
    """What the gates of one adapter said about each prompt: float32 logits and values, both (B, G), in layer order."""

    logits_BG: Tensor
    values_BG: Tensor


@dataclass(frozen=True)
class GenerationScope:
    """A `generate` call: the mask (B, T) of its prompts, valid for every step, and what is computed once for all steps.

    Attributes:
        rotations: orthonormal matrices by adapter and layer; parameters do not change within the call.
        stacks: of several adapters, by kind, layer and names.
    """

    mask_BT: Tensor
    rotations: dict[GateKey, Tensor] = field(default_factory=dict)
    stacks: dict[Any, Any] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Columns of the prompt, padding included."""
        return self.mask_BT.shape[1]

    def span(self, rows: int) -> PromptSpan:
        """Prompt positions for a step of `rows` rows (beams and return sequences repeat rows)."""
        return from_attention_mask(self.mask_BT).repeated(rows)


@dataclass
class CallContext:
    """One forward call.

    Attributes:
        span: prompt positions in absolute columns; None in decoding, when the whole prompt is in the cache.
        past: number of columns in the cache before this call.
        readings: what each gate has read of the prompts so far (B, S), by adapter and layer; the first column is its logit.
        edited: hidden states after the edit by layer, kept only if the caller asked for hidden states.
        as_tuple: the caller wants a tuple, which is made once the hidden states are in place.
        complete: gates whose readings are those of the whole prompts already.
        values: gate values (B,) times the adapter's scale, by adapter and layer, and (B, N) of several adapters, by the layer
            that holds their gates or reads them and their names. In decoding they are kept with the cache.
        shut: adapters known to leave every row of this call alone; only looked for where nothing is trained.
    """

    span: PromptSpan | None
    past: int
    readings: dict[GateKey, Tensor] = field(default_factory=dict)
    edited: dict[int, Tensor] | None = None
    as_tuple: bool = False
    complete: frozenset[GateKey] = frozenset()
    values: dict[Any, Tensor] = field(default_factory=dict)
    shut: set[str] = field(default_factory=set)

    def columns(self, width: int, device: torch.device) -> Tensor:
        """Absolute columns (T,) of this call's tokens."""
        return torch.arange(self.past, self.past + width, device=device)

    def span_on(self, device: torch.device) -> PromptSpan | None:
        """`span` on a device (models may be spread over several)."""
        return None if self.span is None else self.span.to(device)


class Runtime(threading.local):
    """State shared by the wrapped layers of one model; calls are kept per thread, so that threads may share a model.

    Attributes:
        layers: the wrapped layers, in order; the same list in every thread.
        call: the forward call in progress.
        generation: the `generate` call in progress.
        idle: every adapter leaves every row of the call in progress alone.
        continuation: what is known of the batch, where calls begin in the middle of the model.
        last_logits: gate logits of the thread's last call that read prompts.
    """

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.call: CallContext | None = None
        self.generation: GenerationScope | None = None
        self.continuation: Any = None
        self.idle = False
        self.last_logits: dict[GateKey, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies share nothing that belongs to a call in progress (nor its autograd graph)."""
        return Runtime, ([],), list(self.layers)

    def __setstate__(self, layers: list[Any]) -> None:
        self.layers.extend(layers)


class _GateKeeping:
    """Mixed into the class of a key/value cache: gate readings follow their rows through every reordering of the cache."""

    _grun_readings: dict[GateKey, Tensor]
    _grun_values: dict[Any, Tensor]
    _grun_shut: frozenset[str]

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
        self._grun_readings, self._grun_values, self._grun_shut = {}, {}, frozenset()
        return super().reset()  # type: ignore[misc]

    def _grun_each(self, change: Callable[[Tensor], Tensor]) -> None:
        self._grun_readings = {key: change(value) for key, value in self._grun_readings.items()}
        self._grun_values = {key: change(value) for key, value in self._grun_values.items()}


@cache
def _gate_keeping_class(cls: Any) -> type:
    return type(cls.__name__, (_GateKeeping, cls), {"__module__": cls.__module__})


def keep_with_cache(cache: Any, readings: dict[GateKey, Tensor], shut: frozenset[str] = frozenset()) -> None:
    """Keep gate readings with the sequence's cache, whatever its class: they are reordered, repeated and reset with it.

    Args:
        cache: of keys and values.
        readings: what gates have read of the prompts.
        shut: adapters that leave every row alone from here on; no reordering of rows changes that.
    """
    if not isinstance(cache, _GateKeeping):
        kept_class: Any = type(cache)
        cache.__class__ = _gate_keeping_class(kept_class)
    cache._grun_readings = {k: v.detach() for k, v in readings.items()}
    cache._grun_values = {}
    cache._grun_shut = shut


def readings_of(cache: Any) -> dict[GateKey, Tensor] | None:
    """The gate readings kept with a cache; None if nothing in it was prefilled under an adapter."""
    return dict(cache._grun_readings) if isinstance(cache, _GateKeeping) else None


def values_of(cache: Any) -> dict[Any, Tensor]:
    """Gate values kept with a prefilled cache, to be added to: nothing that is decoded changes them."""
    found: dict[Any, Tensor] = cache._grun_values
    return found


def shut_of(cache: Any) -> frozenset[str] | None:
    """Adapters that leave every row of a prefilled cache alone; None if nothing in it was prefilled under an adapter."""
    return cache._grun_shut if isinstance(cache, _GateKeeping) else None
