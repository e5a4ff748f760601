"""Forward calls that begin in the middle of the model: at the first edited layer, after the last prompt token but one.

Nothing below that layer and nothing before the last prompt token depends on an adapter, and the base model is frozen. What
enters the trained part is therefore the same in every training step: the layers below are passed over, and the first edited
one returns what it is known to return.
"""

from __future__ import annotations

__all__ = ["Continuation", "continuing"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from grun.models.tuner.context import GateKey
from grun.models.tuner.layer import GrunLayer


@dataclass(frozen=True)
class Continuation:
    """What is known of a batch before the call.

    Attributes:
        layer: index of the first edited layer.
        hidden_BTD: its output before its edit, for the tokens of the call: the last prompt token and those after it.
        as_tuple: whether decoder layers of this model return tuples.
        readings: what gates have read of the tokens before the call, or, of those in `complete`, of the whole prompts.
        complete: gates that need not read anything in the call.
    """

    layer: int
    hidden_BTD: Tensor
    as_tuple: bool = False
    readings: Mapping[GateKey, Tensor] = field(default_factory=dict)
    complete: frozenset[GateKey] = frozenset()


class _Returning(nn.Module):
    """Takes the place of a decoder layer and returns what is known, or what came in; it has the attributes of the layer."""

    def __init__(self, layer: nn.Module, known_BTD: Tensor | None, as_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_in_place_of", layer)  # not a submodule: nobody shall find its parameters here
        self._known_BTD = known_BTD
        self._as_tuple = as_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_in_place_of"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        h_BTD = (args[0] if args else kwargs["hidden_states"]) if self._known_BTD is None else self._known_BTD
        return (h_BTD,) if self._as_tuple else h_BTD


@contextmanager
def continuing(layers: nn.ModuleList, continuation: Continuation) -> Iterator[None]:
    """Inside, forward calls of the model that the decoder layers belong to begin where `continuation` says."""
    first = layers[continuation.layer]
    assert isinstance(first, GrunLayer), "a continuation begins at an edited layer"
    below = {str(i): layers._modules[str(i)] for i in range(continuation.layer)}
    base = first._modules["base_layer"]
    assert base is not None
    first.runtime.continuation = continuation
    try:
        for name, layer in below.items():
            layers._modules[name] = _Returning(layer, None, continuation.as_tuple)
        first._modules["base_layer"] = _Returning(base, continuation.hidden_BTD, continuation.as_tuple)
        yield
    finally:
        first._modules["base_layer"] = base
        layers._modules.update(below)
        first.runtime.continuation = None
