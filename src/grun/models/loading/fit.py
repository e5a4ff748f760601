"""Checks of a model that was loaded: it is whole, its numbers are finite, and it is a decoder that fits its tokenizer."""

from __future__ import annotations

__all__ = ["Complete", "check_decoder", "check_finite"]

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from grun.core.errors import UserError
from grun.models.forward import adapters_off, evaluating
from grun.models.loading.reading import counted, refusing
from grun.models.tuner.base_model import decoder_layers

BENIGN = re.compile(
    r"(_scales?|_zero_points?|inv_freq|masked_bias|\.attn\.bias)$"
)  # of layers; models do not need them
TEXT = "The sea is deep, and a book about it was written in the harbour."
PROBED = 12  # tokens of the text, at most


@dataclass(frozen=True)
class Complete:
    """A class of transformers whose `from_pretrained` refuses weights that do not fit.

    Attributes:
        kind: such as `AutoModelForCausalLM`.
        said: how a message begins.
    """

    kind: Any
    said: str

    def from_pretrained(self, *args: Any, **others: Any) -> PreTrainedModel:
        """The model.

        Raises:
            UserError: see `check_complete`.
        """
        others |= {
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
        }  # they are refused with names and shapes
        model, loading = self.kind.from_pretrained(*args, **others)
        check_complete(model, loading, self.said)
        return model


def check_complete(model: PreTrainedModel, loading: Mapping[str, Any], said: str) -> None:
    """Check that the weight files hold the model that `config.json` describes.

    Args:
        model: loaded with mismatched sizes ignored.
        loading: what transformers says of it (`output_loading_info`).
        said: how a message begins.

    Raises:
        UserError: if tensors are missing, have other shapes, or belong to layers that the model does not have.
    """
    architectures = getattr(model.config, "architectures", None)
    kind = getattr(model.config, "model_type", None)
    if isinstance(architectures, list) and (others := _other_kinds(architectures)) and kind not in others:
        raise UserError(
            f"{said} cannot be loaded: its config.json has model_type '{kind}', but its architectures are of another one "
            f"({', '.join(architectures)}); restore the config.json that the weights were saved with."
        )
    mismatched = sorted(loading.get("mismatched_keys") or ())
    ways = (
        ("tensors missing in its files", sorted(loading.get("missing_keys") or ())),
        (
            "tensors of other shapes in its files",
            [f"{name} {tuple(saved)} instead of {tuple(own)}" for name, saved, own in mismatched],
        ),
        ("tensors in its files that have no place in it", _of_layers(model, loading.get("unexpected_keys") or ())),
    )
    for what, names in ways:
        if names:
            raise UserError(
                f"{said} cannot be loaded: its config.json describes a {type(model).__name__}, but there are {what}: "
                f"{counted(names)}; copy the whole model, with the config.json that its weights were saved with."
            )


def _other_kinds(architectures: Collection[Any]) -> set[str]:
    """Model types of the classes that a configuration names, if all are decoders that transformers knows."""
    kinds: dict[str, set[str]] = {}
    for kind, classes in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in (classes,) if isinstance(classes, str) else classes:
            kinds.setdefault(name, set()).add(kind)
    if not all(name in kinds for name in architectures):
        return set()
    return {kind for name in architectures for kind in kinds[name]}


def _of_layers(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Tensors that no place was found for, though they belong to a decoder layer: the model is not the one that was saved."""
    try:
        prefix, layers = decoder_layers(model)
    except UserError:  # said elsewhere, where layers are needed
        return []
    further = getattr(model.config.get_text_config(), "num_nextn_predict_layers", None) or 0  # read by other programs
    found = []
    for name in unexpected:
        place = re.match(rf"(?:.*\.)?{re.escape(prefix.rpartition('.')[2])}\.(\d+)\.", name)
        inside = place is not None and name.startswith((f"{prefix}.", prefix.partition(".")[2] + "."))
        if place is None or not inside or BENIGN.search(name):
            continue
        if not len(layers) <= int(place.group(1)) < len(layers) + further:
            found.append(name)
    return sorted(found)


def check_finite(model: torch.nn.Module, said: str) -> None:
    """Check that no parameter holds NaN or infinity, and no buffer NaN.

    Raises:
        UserError: naming the tensor.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() < 2 or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor.detach())
        bad = low.isnan() | (torch.isinf(low) | torch.isinf(high) if isinstance(tensor, torch.nn.Parameter) else False)
        if bool(bad):
            count = int((~tensor.detach().isfinite()).sum())
            raise UserError(
                f"{said} cannot be used: {count} of the {tensor.numel()} values of its tensor {name} are NaN or infinite; "
                "copy the file again, or load it with another --dtype if its numbers are too large for this one."
            )


def check_decoder(model: Any, tokenizer: PreTrainedTokenizerBase, said: str) -> None:
    """Check that a model has a vector for every token of its tokenizer, and that no token sees a later one.

    The second is measured, with two rows that differ in their last token: whatever the architecture, a decoder gives the
    same logits before it.

    Raises:
        UserError: if the tokenizer is of another model, the model cannot compute anything, or reads text in both directions.
    """
    if any(p.is_meta or hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters()):
        return
    rows = _embedded(model)
    largest = _largest_token(tokenizer)
    if rows is not None and largest >= rows:
        raise UserError(
            f"{said} cannot be used: its tokenizer has a token of number {largest}, but the model has vectors for {rows} "
            f"tokens (0 to {rows - 1}), so they are of different models; copy the tokenizer that belongs to the weights."
        )
    _check_ends(model, said)
    with refusing(f"{said}: its tokenizer"):
        ids = [int(i) for i in tokenizer(TEXT, add_special_tokens=False)["input_ids"]][:PROBED]
    other = next((i for i in reversed(ids) if i != ids[-1]), None)
    if other is None:
        raise UserError(f"{said} cannot be used: its tokenizer makes {len(set(ids))} different tokens of '{TEXT}'.")
    before, after = _logits(model, torch.tensor([ids, [*ids[:-1], other]]), said)[:, :-1]
    if bool(before.isnan().any()):
        raise UserError(
            f"{said} cannot be used: it computes NaN for '{TEXT}', though its weights are finite; compare its config.json "
            "with the one that the weights were saved with, or load it with another --dtype."
        )
    step = torch.finfo(model.dtype if model.dtype.is_floating_point else torch.float32).eps ** 0.5
    if not getattr(model, "is_quantized", False) and float((before - after).abs().max()) > step * float(before.std()):
        raise UserError(
            f"{said} cannot be used: it is a {type(model).__name__} whose tokens see later ones, so it is no decoder "
            "(causal language model); name a model that writes text."
        )


def _check_ends(model: Any, said: str) -> None:
    """Check that the tokens which end an answer, in the model's settings for generation, are numbers."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    for end in ends if isinstance(ends, (list, tuple)) else [ends]:
        if not (end is None or (isinstance(end, int) and not isinstance(end, bool))):
            raise UserError(
                f"{said} cannot be used: its generation_config.json has eos_token_id {ends!r}, expected numbers of tokens."
            )


@torch.no_grad()
def _logits(model: Any, ids_BT: Tensor, said: str) -> Tensor:
    """Logits (B, T, V) in float32 on the CPU."""
    with evaluating(model), refusing(said), adapters_off(model):
        logits_BTV: Tensor = model(ids_BT.to(model.device), use_cache=False).logits
        return logits_BTV.float().cpu()


def _embedded(model: Any) -> int | None:
    """Tokens that the model has a vector for."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def _largest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number among the tokens that text can be made of; of special tokens, those that every row may need."""
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special}
    used = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    ordinary = (i for i in tokenizer.get_vocab().values() if i not in special)
    return max([*ordinary, *(i for i in used if isinstance(i, int))], default=0)
