"""Passes of the base model that make the content of a prefix cache; each prompt is read once for all its answers."""

from __future__ import annotations

__all__ = ["base_model_parts"]

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from grun.models.encoding.encode import Encoded
from grun.models.forward import Enough, adapters_off, evaluating, forward_parameters
from grun.models.scoring import selected_rows
from grun.models.tuner.base_model import decoder_layers
from grun.training.forward_engines.prefix.batching import parts_by_length
from grun.training.forward_engines.prefix.requirements import check_cache
from grun.training.forward_engines.prefix.signals import continued_signals
from grun.training.forward_engines.prefix.store import AS_TUPLE, ENTERING, KEYS_VALUES, Parts


@torch.no_grad()
def base_model_parts(
    model: Any,
    rows: Sequence[Encoded],
    names: Collection[str],
    *,
    first: int,
    observed: nn.Module | None,
    pad: int,
    overhead: float,
    fused: bool = False,
) -> Parts:
    """Tensors to keep of some rows, on the CPU: `<row>.entering`, `<row>.<quantity>` and `prompt <row>.keys_values`.

    Only the first row of each prompt has keys and values.

    Args:
        model: PEFT model; its adapters are switched off during the pass.
        rows: encoded rows.
        names: quantities of the answers: `logps`, `logits`, `hidden`.
        first: index of the first edited layer.
        observed: decoder layer whose output the quantity `hidden` is.
        pad: token that fills rows up.
        overhead: cost of another batch, in columns (see `parts_by_length`).
        fused: as of `side_signals`.

    Raises:
        CannotContinue: if the model's cache does not hold the keys and values of every token.
    """
    base = model.get_base_model()
    layers = decoder_layers(base)[1]
    device = next(base.parameters()).device
    prefixes = [row.input_ids[: row.prompt_length - 1] for row in rows]
    prompts = {prefix: i for i, prefix in enumerate(dict.fromkeys(prefixes))}
    width = max(map(len, prompts))
    real_BP = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=device)
    ids_BP = torch.tensor([[*p, *[pad] * (width - len(p))] for p in prompts], device=device)
    found: Parts = {}
    with adapters_off(model), evaluating(model):
        cache = _read(base, ids_BP, real_BP.sum(1), first)
        for part in parts_by_length([len(row.input_ids) - row.prompt_length for row in rows], overhead):
            index_Y = torch.tensor([prompts[prefixes[i]] for i in part], device=device)
            copies = selected_rows(cache, index_Y) if width else DynamicCache()
            answers = {i: rows[i].input_ids[rows[i].prompt_length - 1 :] for i in part}
            found |= _answered(base, layers[first], answers, real_BP[index_Y], copies, names, observed, pad, fused)
    if not width:  # no prompt was read, so the shape of keys and values comes from the answers
        cache = copies
        check_cache(cache.layers, len(layers), max(map(len, answers.values())), first)
    above: list[Any] = cache.layers[first + 1 :]
    for prefix, b in prompts.items():
        parts = [
            values[b, :, width - len(prefix) : width] for kind in ("keys", "values") for values in _each(above, kind)
        ]
        stacked = torch.stack(parts) if parts else found[f"0.{ENTERING}"].new_zeros(0, 1, len(prefix), 1)
        found[f"prompt {prefixes.index(prefix)}.{KEYS_VALUES}"] = _kept(stacked)
    return found


def _answered(
    base: nn.Module,
    layer: nn.Module,
    answers: Mapping[int, Sequence[int]],
    real_BP: Tensor,
    copies: DynamicCache,
    names: Collection[str],
    observed: nn.Module | None,
    pad: int,
    fused: bool,
) -> Parts:
    """Parts of answers, by row, each read after the last token of its prompt; the tokens before that are in `copies`."""
    longest, device = max(map(len, answers.values())), real_BP.device
    ids_BC = torch.tensor([[*a, *[pad] * (longest - len(a))] for a in answers.values()], device=device)
    lengths_B = torch.tensor([len(a) - 1 for a in answers.values()], device=device)
    answer_BA = torch.arange(longest - 1, device=device) < lengths_B[:, None]
    quantities: dict[str, Tensor] = {}
    stop = not names and real_BP.shape[1] > 0  # the layers above the first edited one have no part in this
    with _output_of(layer, stop) as kept, suppress(Enough):
        # `hidden` makes it run the last token of each answer as well, which enters the trained part too
        side = continued_signals(
            base, ids_BC, answer_BA, real_BP, copies, {"hidden", *names}, observed or layer, fused=fused
        )
        quantities = {name: side.quantities[name] for name in names}
    as_tuple, entering_BCD = kept
    dtypes = {name: torch.float32 if name == "logps" else entering_BCD.dtype for name in names}
    parts = {name: value.to(dtypes[name]).split(lengths_B.tolist()) for name, value in quantities.items()}
    found: Parts = {AS_TUPLE: torch.tensor(as_tuple)}
    for b, (i, answer) in enumerate(answers.items()):
        found[f"{i}.{ENTERING}"] = _kept(entering_BCD[b, : len(answer)])
        found |= {f"{i}.{name}": _kept(values[b]) for name, values in parts.items()}
    return found


def _read(base: nn.Module, ids_BP: Tensor, lengths_B: Tensor, first: int) -> DynamicCache:
    """Keys and values of prompts that come padded on the right, moved to the right end of their rows.

    Prompts are read with the padding behind them, because a padding token in front has nothing to attend to, which gives NaN
    in some dtypes. They are moved because answers must follow them directly for sliding windows to cover the right tokens.
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
    check_cache(cache.layers, len(decoder_layers(base)[1]), width, first)
    from_BP = columns_P - (width - lengths_B[:, None])
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = (_moved(values, from_BP) for values in (layer.keys, layer.values))
    return cache


def _moved(values_BHPK: Tensor, from_BP: Tensor) -> Tensor:
    """Values whose column p comes from column `from_BP`; 0 where that is negative."""
    index_B1P1 = from_BP.clamp_min(0)[:, None, :, None].expand_as(values_BHPK)
    return values_BHPK.gather(2, index_B1P1).masked_fill(from_BP[:, None, :, None] < 0, 0.0)


def _each(layers: Sequence[Any], kind: str) -> list[Tensor]:
    return [getattr(layer, kind) for layer in layers]


def _kept(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


@contextmanager
def _output_of(layer: nn.Module, stop: bool) -> Iterator[list[Any]]:
    """Yield a list that a pass fills with two entries: True if the layer returns a tuple, and its hidden states.

    Args:
        layer: to observe.
        stop: raise `Enough` after it.
    """
    kept: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept.extend((isinstance(output, tuple), output[0] if isinstance(output, tuple) else output))
        if stop:
            raise Enough

    handle = layer.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
