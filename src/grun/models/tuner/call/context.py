"""State that the layers of one model share during a forward call: the prompt positions and the readings of the gates."""

from __future__ import annotations

__all__ = [
    "CallContext",
    "Gates",
    "GenerationScope",
    "Runtime",
    "span_of_call",
]

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.errors import UserError
from grun.models.tuner.call.decision import is_open
from grun.models.tuner.call.prompt_position import (
    NO_BOUNDARY,
    PromptSpan,
    from_attention_mask,
    from_labels,
    from_prompt_lengths,
    full_mask,
)

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
        takes_back: tokens may be taken back, as those of an assistant that the model does not agree with.
    """

    mask_BT: Tensor
    kept: dict[Any, Any] = field(default_factory=dict)
    takes_back: bool = False

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
        running: logits (B, T) up to every token of this call, of gates that read the tokens after the prompt as well.
        of_prompts: logits (B, 1) of the same gates for the whole prompts. In decoding they are kept with the cache.
        last: what gates have read in this call, kept only if the caller may take a part of it back.
        ids_BT: token ids (B, T) of this call; None where no gate reads text.
        real_BT: bool, true on the real tokens of this call; None where no gate reads tokens after the prompt.
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
    running: dict[GateKey, Tensor] = field(default_factory=dict)
    ids_BT: Tensor | None = None
    real_BT: Tensor | None = None
    of_prompts: dict[GateKey, Tensor] = field(default_factory=dict)
    last: dict[GateKey, Any] | None = None

    def keep_edited(self, as_tuple: bool) -> None:
        """Keep hidden states after edits, for a caller who asked for hidden states, as a tuple or not."""
        self.edited, self.as_tuple = {}, as_tuple

    def columns(self, width: int, device: torch.device) -> Tensor:
        """Absolute columns (T,) of this call's tokens."""
        return torch.arange(self.past, self.past + width, device=device)

    def prompt_on(self, device: torch.device, width: int) -> Tensor | None:
        """Bool mask (B, width) of the prompt tokens of this call, on a device; None in decoding."""
        span = self.span_on(device)
        return None if span is None else span.is_prompt(self.past, width)

    def later_on(self, device: torch.device, width: int) -> Tensor | None:
        """Bool mask (B, width) of the real tokens after the prompts in this call; None where they are not to be read."""
        if self.real_BT is None:
            return None
        later_BT, span = self.real_BT.to(device), self.span_on(device)
        return later_BT if span is None else later_BT & (self.columns(width, device) > span.end_B[:, None])

    def take_later(self, key: GateKey, running_BT: Tensor) -> None:
        """Take over the logits (B, T) of a gate up to every token of this call, and those of whole prompts among them."""
        self.running[key] = running_BT
        if self.span is None:
            return
        end_B = self.span.end_B.to(running_BT.device) - self.past
        logit_B1 = running_BT.gather(1, end_B.clamp(0, running_BT.shape[1] - 1)[:, None])
        if (before_B1 := self.of_prompts.get(key)) is not None:
            logit_B1 = torch.where(end_B[:, None] < 0, before_B1.to(logit_B1), logit_B1)
        self.of_prompts[key] = logit_B1

    def logits(self, key: GateKey, threshold: Tensor) -> Tensor:
        """Logits (B, T or 1) that open edits: that of a prompt, if it opens the gate, else those up to every token."""
        if key not in self.running:
            return self.readings[key][:, :1].to(threshold.device)
        prompt_B1, running_BT = (part.to(threshold.device) for part in (self.of_prompts[key], self.running[key]))
        return torch.where(is_open(prompt_B1, threshold), prompt_B1, running_BT)

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

    def gates_of_last_call(self, parts: Iterable[str]) -> dict[str, Gates]:
        """Gate decisions of these parts in the thread's last call that read prompts; parts without a gate are missing."""
        found: dict[str, Gates] = {}
        for name in parts:
            held = [layer for layer in self.layers if (name, layer.index) in self.last_logits]
            if not held:
                continue
            logits = [self.last_logits[name, layer.index] for layer in held]
            values = [layer.gates[name].value(logit) for layer, logit in zip(held, logits, strict=True)]
            device = logits[0].device
            threshold_G = torch.stack([layer.gates[name].threshold.to(device) for layer in held])
            both = [torch.stack([x.to(device) for x in side], dim=1) for side in (logits, values)]
            found[name] = Gates(both[0], both[1], threshold_G)
        return found


def span_of_call(
    inputs: Tensor,
    past: int,
    prompt_lengths: Tensor | None,
    given: Mapping[str, Any],
    scope: GenerationScope | None,
    *,
    prefilled: bool,
) -> PromptSpan | None:
    """Prompt positions of a call; None in decoding, when the whole prompts are in the cache.

    Args:
        inputs: token ids (B, T), or embeddings (B, T, D).
        past: number of columns in the cache.
        prompt_lengths: number of prompt tokens of each row, if the caller gave it.
        given: arguments of the call.
        scope: the `generate` call in progress.
        prefilled: gates have read what is in the cache.

    Raises:
        UserError: if nothing says where the prompts end.
    """
    rows, new = inputs.shape[:2]
    labels = given.get("labels")
    if prompt_lengths is None and labels is None:
        if scope is not None:
            return scope.span(rows) if past < scope.width else None
        if prefilled:
            return None
        raise UserError(NO_BOUNDARY)
    mask_BT = full_mask(given.get("attention_mask"), rows, new, past, inputs.device)
    if prompt_lengths is not None:
        return from_prompt_lengths(prompt_lengths, mask_BT)
    return from_labels(nn.functional.pad(torch.as_tensor(labels), (past, 0), value=-100), mask_BT)
