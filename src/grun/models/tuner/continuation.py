"""Forward calls that begin in the middle of the model: at the first edited layer and the last prompt token.

Nothing below that layer and nothing before that token depends on an adapter, and the base model is frozen. The input of the
trained part is therefore the same in every training step: the layers below are skipped, and the first edited layer returns
its known output.
"""

from __future__ import annotations

__all__ = ["Continuation", "continuing"]

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from grun.models.tuner.call.context import GateKey
from grun.models.tuner.layer import GrunLayer


@dataclass(frozen=True)
class Continuation:
    """The states of a batch that are known before the call.

    Attributes:
        layer: index of the first edited layer.
        hidden_BTD: output of that layer before its edit, for the last prompt token and those after it.
        as_tuple: decoder layers of this model return tuples.
        readings: readings of the gates on the tokens before the call; of the gates in `complete`, on the whole prompts.
        complete: gates that read nothing in the call.
    """

    layer: int
    hidden_BTD: Tensor
    as_tuple: bool = False
    readings: Mapping[GateKey, Tensor] = field(default_factory=dict)
    complete: frozenset[GateKey] = frozenset()


class _Returning(nn.Module):
    """Stands in for a decoder layer: it returns the known states, or its input, and has the attributes of the layer."""

    def __init__(self, layer: nn.Module, known_BTD: Tensor | None, as_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_in_place_of", layer)  # not a submodule, so that its parameters are not found here
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
    """Context in which forward calls of the model with these decoder layers begin at a continuation."""
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
