"""What a GRUN adapter needs to know of the base model that it is attached to, and PEFT of it."""

from __future__ import annotations

__all__ = [
    "MethodName",
    "check_writes_text",
    "decoder_layers",
    "layer_index",
    "parsed_layer",
    "text_config",
    "token_ids",
]

from typing import Any

import torch
from torch import Tensor, nn

from grun.core.errors import UserError


class MethodName(str):
    """Name of the PEFT method; PEFT's messages ask for the value of a member of its enumeration."""

    @property
    def value(self) -> str:
        return str(self)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers of a causal language model.

    Raises:
        UserError: if the model has no module list with as many entries as its configuration has layers.
    """
    count = text_config(model).num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        f"{type(model).__name__} has no list of {count} decoder layers; GRUN needs a decoder-only language model."
    )


def check_writes_text(model: nn.Module) -> None:
    """Check that a model predicts tokens.

    Raises:
        UserError: if it has no language modelling head: a bare encoder of text, or a classifier.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None or type(model).__name__.endswith(("Classification", "QuestionAnswering")):
        raise UserError(
            f"{type(model).__name__} writes no text: GRUN needs a causal language model with its head, such as "
            "AutoModelForCausalLM loads."
        )


def token_ids(inputs: Tensor, embeddings: nn.Module) -> Tensor:
    """Token ids (B, T) of inputs: they themselves, or for embeddings (B, T, D) those of the nearest tokens.

    Args:
        inputs: token ids or embeddings.
        embeddings: the model's table of embeddings.
    """
    if not inputs.is_floating_point():
        return inputs
    table_VD: Any = embeddings.weight
    flat_ND, table_VD = inputs.detach().flatten(0, 1).float(), table_VD.detach().float()
    nearest = [torch.cdist(part_ND, table_VD).argmin(-1) for part_ND in flat_ND.split(64)]
    return torch.cat(nearest).view(inputs.shape[:2])


def layer_index(value: int | float, num_layers: int) -> int:
    """Index of a layer that is given as an index, or as a fraction of a model's depth."""
    if not isinstance(value, float):
        return value
    return min(int(value * num_layers + 1e-6), num_layers - 1)  # 0.29 * 100 is 28.999999999999996


def parsed_layer(text: str, flag: str) -> int | float:
    """A layer given on the command line: an index (int), or a fraction of depth (float, with a decimal point).

    Raises:
        UserError: naming the flag.
    """
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise UserError(
            f"{flag} contains '{text}', expected an index (20) or a fraction of depth (0.65); separate several by commas."
        ) from error


def text_config(model: nn.Module) -> Any:
    """Configuration of the language model, which a model of several parts holds in its own.

    Raises:
        UserError: if the model has none.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise UserError(
            f"{type(model).__name__} has no Hugging Face configuration; GRUN needs a transformers causal language model."
        )
    return config.get_text_config()
