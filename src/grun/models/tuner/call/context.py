"""State that the layers of one model share during a forward call: the prompt positions and the readings of the gates."""

from __future__ import annotations

__all__ = [
    "CallContext",
    "Gates",
    "GenerationScope",
    "Runtime",
]

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grun.models.tuner.call.prompt_position import PromptSpan, from_attention_mask

GateKey = tuple[str, int]  # adapter name, index of the decoder layer that holds the gate


@dataclass(frozen=True)
class Gates:
    """Decisions of the gates of one adapter for each prompt, in layer order.

    Attributes:
        logits_BG, values_BG: float32.
        threshold_G: float32, in logits; minus infinity for a gate without a threshold.
    """

    logits_BG: Tensor
    values_BG: Tensor
    threshold_G: Tensor


@dataclass(frozen=True)
class GenerationScope:
    """A `generate` call, with everything that is computed once for all of its steps.

    Attributes:
        mask_BT: mask of the prompts, valid for every step.
        kept: rotations of edits, and stacks of gates and edits of several adapters, by kind, layer and names; parameters do
            not change within the call.
    """

    mask_BT: Tensor
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: tuple[Any, ...], build: Callable[[], Any]) -> Any:
        """The value under a key, built when it is first asked for."""
        if key not in self.kept:
            self.kept[key] = build()
        return self.kept[key]

    @property
    def width(self) -> int:
        """Columns of the prompt, padding included."""
        return self.mask_BT.shape[1]

    def span(self, rows: int) -> PromptSpan:
        """Prompt positions for a step with `rows` rows; beams and return sequences repeat the rows of the prompts."""
        return from_attention_mask(self.mask_BT).repeated(rows)


@dataclass
class CallContext:
    """One forward call.

    Attributes:
        span: prompt positions in absolute columns; None in decoding, when the whole prompt is in the cache.
        past: number of columns in the cache before this call.
        readings: readings of the gates so far (B, S), by adapter and layer; the first column is the logit.
        edited: hidden states after the edit by layer, kept only if the caller asked for hidden states.
        as_tuple: the caller asked for a tuple, which is made once the hidden states are replaced.
        complete: gates whose readings cover the whole prompts already.
        values: gate values (B,) times the adapter's scale, by adapter and layer, and (B, N) of several adapters, by the layer
            that holds their gates or reads them and their names. In decoding they are kept with the cache.
        shut: adapters whose gates are shut for every row of this call; found only without gradients.
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
        """`span` on a device; a model may be spread over several devices."""
        return None if self.span is None else self.span.to(device)

    def with_edits(self, hidden_states: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """Hidden states with those of edited layers replaced: the model recorded them before the edit.

        The last entry stays: it follows the final norm, after all edits.
        """
        edited = self.edited or {}
        return tuple(
            edited[i - 1] if i - 1 in edited and h is not None and i < len(hidden_states) - 1 else h
            for i, h in enumerate(hidden_states)
        )


class Runtime(threading.local):
    """State shared by the wrapped layers of one model; calls are kept per thread, so that threads may share a model.

    Attributes:
        layers: the wrapped layers, in order; the same list in every thread.
        call: the forward call in progress.
        generation: the `generate` call in progress.
        idle: no adapter edits any row of the call in progress.
        continuation: the known states of the batch, if calls begin in the middle of the model.
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
        """Copy the layers only: a call in progress, with its autograd graph, belongs to the original."""
        return Runtime, ([],), list(self.layers)

    def __setstate__(self, layers: list[Any]) -> None:
        self.layers.extend(layers)
