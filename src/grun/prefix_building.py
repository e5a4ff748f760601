"""What the base model says about rows, each prompt read once for all its answers: the content of a prefix cache."""

from __future__ import annotations

__all__ = ["AS_TUPLE", "ENTERING", "KEYS_VALUES", "base_model_parts", "in_chunks"]

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from grun.adapters.model import decoder_layers
from grun.batches import Encoded
from grun.prefix_signals import continued_signals
from grun.prefix_store import Parts
from grun.scoring import selected_rows
from grun.signals import adapters_off, evaluating, forward_parameters

AS_TUPLE = "as_tuple"  # whether decoder layers of the model return tuples
ENTERING = "entering"  # output of the first edited layer, from the last prompt token on
KEYS_VALUES = "keys_values"  # of the prompt tokens before it, in the layers above


def in_chunks(rows: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Rows in chunks of so many, those with the same prompt next to each other, long prompts first."""
    order = sorted(rows, key=lambda row: (-row.prompt_length, row.input_ids))
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def base_model_parts(
    model: Any, rows: Sequence[Encoded], names: Collection[str], *, first: int, observed: nn.Module | None, pad: int
) -> Parts:
    """Everything that is kept of some rows, on the CPU: `<row>.entering`, `<row>.<quantity>`, `prompt <row>.keys_values`.

    The last is there for the first row of each prompt only.

    Args:
        model: PEFT model; its adapters are off meanwhile.
        rows: encoded rows.
        names: quantities of the answers: `logps`, `logits`, `hidden`.
        first: index of the first edited layer.
        observed: decoder layer whose output the quantity `hidden` is.
        pad: token that fills rows up.
    """
    base = model.get_base_model()
    layer = decoder_layers(base)[1][first]
    device = next(base.parameters()).device
    prefixes = [row.input_ids[: row.prompt_length - 1] for row in rows]
    prompts = {prefix: i for i, prefix in enumerate(dict.fromkeys(prefixes))}
    width = max(map(len, prompts))
    real_BP = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=device)
    ids_BP = torch.tensor([[*p, *[pad] * (width - len(p))] for p in prompts], device=device)
    index_C = torch.tensor([prompts[prefix] for prefix in prefixes], device=device)
    with adapters_off(model), evaluating(model):
        cache = _read(base, ids_BP, real_BP.sum(1))
        answers = [row.input_ids[row.prompt_length - 1 :] for row in rows]
        longest = max(map(len, answers))
        ids_BC = torch.tensor([[*a, *[pad] * (longest - len(a))] for a in answers], device=device)
        lengths_B = torch.tensor([len(a) - 1 for a in answers], device=device)
        answer_BA = torch.arange(longest - 1, device=device) < lengths_B[:, None]
        copies = selected_rows(cache, index_C) if width else DynamicCache()
        with _output_of(layer) as kept:
            # the last token of an answer enters the trained part too, so all columns are read
            side = continued_signals(
                base, ids_BC, answer_BA, real_BP[index_C], copies, {"hidden", *names}, observed or layer
            )
    as_tuple, entering_BCD = kept
    above: list[Any] = cache.layers[first + 1 :] if width else copies.layers[first + 1 :]
    found: Parts = {AS_TUPLE: torch.tensor(as_tuple)}
    dtypes = {name: torch.float32 if name == "logps" else entering_BCD.dtype for name in names}
    quantities = {name: side.quantities[name].to(dtypes[name]).split(lengths_B.tolist()) for name in names}
    for i, answer in enumerate(answers):
        found[f"{i}.{ENTERING}"] = _kept(entering_BCD[i, : len(answer)])
        found |= {f"{i}.{name}": _kept(quantities[name][i]) for name in names}
    for prefix, b in prompts.items():
        parts = [
            values[b, :, width - len(prefix) : width] for kind in ("keys", "values") for values in _each(above, kind)
        ]
        stacked = torch.stack(parts) if parts else entering_BCD.new_zeros(0, 1, len(prefix), 1)
        found[f"prompt {prefixes.index(prefix)}.{KEYS_VALUES}"] = _kept(stacked)
    return found


def _read(base: nn.Module, ids_BP: Tensor, lengths_B: Tensor) -> DynamicCache:
    """Keys and values of prompts, which are padded on the right, moved to the right end of their rows.

    A token before which there is nothing but padding would have nothing to attend to, which is not a number in some dtypes;
    and what follows must come right after them, for windows to reach as far as they should.
    """
    cache = DynamicCache()
    width = ids_BP.shape[1]
    if not width:
        return cache
    columns_P = torch.arange(width, device=ids_BP.device)
    inputs: dict[str, Any] = {"input_ids": ids_BP, "attention_mask": (columns_P < lengths_B[:, None]).long()}
    if "logits_to_keep" in forward_parameters(base):
        inputs["logits_to_keep"] = 1
    base(**inputs, past_key_values=cache, use_cache=True)
    from_BP = columns_P - (width - lengths_B[:, None])
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = (_moved(values, from_BP) for values in (layer.keys, layer.values))
    return cache


def _moved(values_BHPK: Tensor, from_BP: Tensor) -> Tensor:
    """Values whose column p comes from column `from_BP`; 0 where that lies before the first."""
    index_B1P1 = from_BP.clamp_min(0)[:, None, :, None].expand_as(values_BHPK)
    return values_BHPK.gather(2, index_B1P1).masked_fill(from_BP[:, None, :, None] < 0, 0.0)


def _each(layers: Sequence[Any], kind: str) -> list[Tensor]:
    return [getattr(layer, kind) for layer in layers]


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Any]]:
    """Inside, a list that will hold whether the layer returns a tuple, and its hidden states."""
    kept: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.extend((isinstance(output, tuple), output[0] if isinstance(output, tuple) else output))

    handle = layer.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
