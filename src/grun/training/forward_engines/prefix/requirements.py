"""Requirements of training from a cached prefix: checks that raise a named refusal."""

from __future__ import annotations

__all__ = ["CannotContinue", "check_architecture", "check_cache", "check_run", "first_edited"]

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedModel, TrainingArguments
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from grun.core.distributed import world
from grun.models.forward import forward_parameters

SHAPES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)  # settings that all layers must share


class CannotContinue(Exception):
    """Refusal to train from a cached prefix; training then runs whole rows through the whole model.

    Attributes:
        reason: the obstacle, in words that end the log line "Training runs whole rows through the whole model: ...".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def first_edited(model: Any) -> int:
    """Index of the first layer that the active adapter of a PEFT model edits."""
    tuner = model.base_model
    return min(layer.index for layer in tuner.runtime.layers if tuner.active_adapters[0] in layer.edits)


def check_run(model: Any, hidden_layer: int | None, arguments: TrainingArguments) -> None:
    """Refuse runs in which the states of the prefix change, or the loss reads states below them.

    Args:
        model: PEFT model with GRUN or ReFT adapters.
        hidden_layer: index of the layer whose output the loss reads; None if it reads none.
        arguments: arguments of the trainer.

    Raises:
        CannotContinue: for several processes, dropout in the base model, activation checkpointing, or a loss that reads a
            layer below the first edited one.
    """
    first = first_edited(model)
    dropped = next((m.p for m in model.get_base_model().modules() if isinstance(m, nn.Dropout) and m.p > 0), 0.0)
    if world() > 1:
        raise CannotContinue("several processes share it")
    if dropped > 0:
        raise CannotContinue(f"the base model has dropout ({dropped:g}), so nothing in it stays the same")
    if arguments.gradient_checkpointing:
        raise CannotContinue("activation checkpointing was asked for")
    if hidden_layer is not None and hidden_layer < first:
        raise CannotContinue(f"the loss looks at layer {hidden_layer}, below the first edited one, {first}")


def check_architecture(base: PreTrainedModel) -> None:
    """Refuse architectures whose layers need anything but keys and values of earlier tokens.

    Args:
        base: the model inside the PEFT model.

    Raises:
        CannotContinue: if the forward call takes no `past_key_values`, a layer keeps anything but keys and values (linear
            attention, convolutions, the keys and values of another layer), or the shapes of layers differ.
    """
    if "past_key_values" not in forward_parameters(base):
        raise CannotContinue("the forward call of its architecture takes no past_key_values")
    for index, layer in enumerate(DynamicCache(config=base.config).layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            kind = type(layer).__name__
            raise CannotContinue(f"layer {index} of its architecture does not cache keys and values alone ({kind})")
    varying = getattr(base.config.get_text_config(), "per_layer_attributes", None) or ()
    differing = [name for name in SHAPES if name in varying]
    if differing:
        raise CannotContinue(f"the layers of its architecture differ in {', '.join(differing)}")


def check_cache(layers: Sequence[Any], count: int, columns: int, first: int) -> None:
    """Refuse a cache that does not hold one column of keys and values per token for every decoder layer.

    Args:
        layers: layers of the cache after a pass.
        count: number of decoder layers.
        columns: number of tokens that were read.
        first: index of the first edited layer; keys and values of the layers above must agree in shape.

    Raises:
        CannotContinue: if a layer is missing, holds nothing or another number of columns, or the shapes differ.
    """
    if len(layers) != count:
        raise CannotContinue(f"its architecture caches {len(layers)} layers of {count}")
    for index, layer in enumerate(layers):
        for kept in (layer.keys, layer.values):
            if kept is None or kept.ndim != 4 or kept.shape[2] != columns:
                found = "nothing" if kept is None else f"shape {tuple(kept.shape)}"
                raise CannotContinue(f"layer {index} of its architecture caches {found} for {columns} tokens")
    shapes = {tuple(kept.shape) for layer in layers[first + 1 :] for kept in (layer.keys, layer.values)}
    if len(shapes) > 1:
        listed = " and ".join(map(str, sorted(shapes)))
        raise CannotContinue(f"the keys and values of its architecture differ in shape: {listed}")
