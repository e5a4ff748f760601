"""Every forward pass on rows of text: log-probabilities of answers, what the gates said, and greedy answers."""

from __future__ import annotations

__all__ = [
    "accepts_prompt_lengths",
    "adapters_off",
    "context_length",
    "evaluating",
    "forward_parameters",
    "Enough",
    "gates_of_last_call",
    "greedy",
    "longest_row",
    "observed_outputs",
    "reference_signals",
    "sampled",
    "side_signals",
    "stop_tokens",
]

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from grun.batches import length_batches, pad_token_id
from grun.records import Batch, SideSignals
from grun.templates import stop_ids

IGNORED = -100


def accepts_prompt_lengths(model: nn.Module) -> bool:
    """Whether the model's forward call takes `prompt_lengths`, as one with GRUN adapters does."""
    return bool(getattr(getattr(_unwrapped(model), "base_model", None), "takes_prompt_lengths", False))


class Enough(Exception):
    """Raised inside a forward pass once everything is known that was asked."""


def side_signals(
    model: nn.Module,
    batch: Batch,
    *,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
    with_grad: bool = True,
) -> SideSignals:
    """What a model says about the labelled tokens of a batch, in float32.

    Args:
        model: a causal language model, with or without adapters.
        batch: on the model's device.
        wanted: quantities to return: `logps`, `logits`, `hidden`; `targets` are always there.
        layer: the decoder layer whose output `hidden` is.
        with_grad: keep the graph.

    Raises:
        ValueError: if the first token of a row is labelled: nothing precedes it that it could be predicted from.
    """
    mask_BT = batch.labels_BT != IGNORED
    if bool(mask_BT[:, 0].any()):
        raise ValueError("the first token of a row is labelled, but nothing precedes it: leave its label at -100")
    states: list[Tensor] = []
    with (
        nullcontext() if with_grad else torch.no_grad(),
        observed_outputs(layer if "hidden" in wanted else None, states),
    ):
        logits_BKV, columns_K = _logits(model, batch, mask_BT, everything="logps" in wanted or "logits" in wanted)
        device = logits_BKV.device
        found: dict[str, Tensor] = {"targets": batch.labels_BT[mask_BT].to(device)}
        if "hidden" in wanted:
            found["hidden"] = states[0][mask_BT.to(states[0].device)].float().to(device)
        if "logps" in wanted or "logits" in wanted:
            logits_NV = logits_BKV[mask_BT[:, columns_K + 1].to(device)].float()
        if "logps" in wanted:
            chosen_N = logits_NV.gather(1, found["targets"][:, None]).squeeze(1)
            found["logps"] = chosen_N - logits_NV.logsumexp(1)
        if "logits" in wanted:
            found["logits"] = logits_NV
    return SideSignals(mask_BT.to(device), found)


@torch.no_grad()
def reference_signals(
    model: nn.Module,
    batch: Batch,
    *,
    wanted: Collection[str] = ("logps",),
    layer: nn.Module | None = None,
) -> SideSignals:
    """The same under the base model: adapters off, dropout off, no gradient."""
    with adapters_off(model), evaluating(model):
        return side_signals(model, batch, wanted=wanted, layer=layer, with_grad=False)


def context_length(model: nn.Module) -> int | None:
    """Most tokens that the model can read, as its configuration says; None if it does not say."""
    config = getattr(_unwrapped(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config  # type: ignore[union-attr]
    longest = getattr(text, "max_position_embeddings", None)
    return None if longest is None else int(longest)


def longest_row(model: nn.Module, asked: int | None) -> int | None:
    """Most tokens of a row: what was asked for or the model's context, whichever is less; None if neither is known."""
    return min(filter(None, (asked, context_length(model))), default=None)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, a PEFT model is its base model; any other model is itself."""
    disable: Callable[[], Any] = getattr(_unwrapped(model), "disable_adapter", nullcontext)
    with disable():
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode; afterwards every module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def gates_of_last_call(model: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Gate logits and values, (B, G) each, of the last call that read prompts; None without gates.

    All active adapters, and of each its gates in layer order. Do not ask after a call with adapters off: the answer
    would be that of an earlier call.
    """
    found = getattr(getattr(_unwrapped(model), "base_model", None), "last_gates", None)
    if not found:
        return None
    gates = list(found.values())
    return torch.cat([g.logits_BG for g in gates], dim=1), torch.cat([g.values_BG for g in gates], dim=1)


@torch.no_grad()
def greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[str]:
    """The model's greedy answer to each prompt, in the order given, without special tokens and outer white space.

    Whatever sampling or penalties the model's own generation settings ask for is left out. An answer also ends where
    the model's context does.

    Args:
        prompts: token ids; none may be empty.
        max_new_tokens: most tokens of an answer.
        batch_size: prompts at a time.
        progress: called with the number of rows done after each batch.
    """
    ends = stop_tokens(model, tokenizer)
    texts = [""] * len(prompts)
    with evaluating(model):
        for limit, rows in _by_room(model, prompts, max_new_tokens):
            for index in length_batches([len(prompts[i]) for i in rows], batch_size):
                chosen = [rows[i] for i in index]
                answers = _generated(model, tokenizer, [prompts[i] for i in chosen], limit, ends)
                for i, ids in zip(chosen, answers, strict=True):
                    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                    texts[i] = str(text).strip()
                progress(len(chosen))
    return texts


@contextmanager
def observed_outputs(layer: nn.Module | None, states: list[Tensor]) -> Iterator[None]:
    """Inside, the outputs of a layer are appended to `states` (with a GRUN adapter at that layer, after its edit)."""
    if layer is None:
        yield
        return

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _logits(model: nn.Module, batch: Batch, mask_BT: Tensor, everything: bool) -> tuple[Tensor, Tensor]:
    """Logits (B, K, V) of the columns whose next token is labelled in some row, and those columns (K,).

    Models that can do so compute no other logits: with a large vocabulary they are most of a step's memory. Where nobody looks
    at logits, one column is enough.
    """
    columns_K = mask_BT[:, 1:].any(0).nonzero().squeeze(1)
    columns_K = columns_K if everything else columns_K[:1]
    parameters = forward_parameters(model)
    inputs: dict[str, Any] = dict(batch.model_inputs(), use_cache=False)
    if accepts_prompt_lengths(model):
        inputs["prompt_lengths"] = batch.prompt_lengths_B
    if "position_ids" in parameters and bool((batch.attention_mask_BT[:, 0] == 0).any()):
        inputs["position_ids"] = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
    if "logits_to_keep" in parameters:
        return model(**inputs, logits_to_keep=columns_K).logits, columns_K
    return model(**inputs).logits[:, columns_K], columns_K


@torch.no_grad()
def sampled(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    count: int,
    temperature: float,
) -> list[list[str]]:
    """`count` sampled answers to each prompt, in one batch, from torch's own random state; otherwise as `greedy`."""
    ends = stop_tokens(model, tokenizer)
    sampling = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0, num_return_sequences=count)
    ids = _generated(model, tokenizer, list(prompts), max_new_tokens, ends, **sampling)
    texts = [str(tokenizer.decode(one, skip_special_tokens=True)).strip() for one in ids]
    return [texts[i : i + count] for i in range(0, len(texts), count)]


def _generated(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    limit: int,
    ends: set[int],
    **sampling: Any,
) -> list[list[int]]:
    """New tokens of each prompt up to, and without, the first that ends it; greedy but for `sampling`. Padding is left."""
    width, pad = max(map(len, prompts)), pad_token_id(tokenizer)
    device = next(model.parameters()).device
    ids_BT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    out_BT = model.generate(  # type: ignore[operator]
        input_ids=ids_BT, attention_mask=mask_BT, generation_config=_generation(limit, pad, ends, **sampling)
    )
    return [_until_end(row[width:].tolist(), ends) for row in out_BT]


def _generation(limit: int, pad: int, ends: set[int], **sampling: Any) -> GenerationConfig:
    """Everything neutral is said outright: what is left open would be taken from the model's own settings."""
    neutral: dict[str, Any] = {
        "max_new_tokens": limit,
        "min_new_tokens": 0,
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "pad_token_id": pad,
        "eos_token_id": sorted(ends),
        "use_cache": True,
        "return_dict_in_generate": False,
    }
    return GenerationConfig(**(neutral | sampling))


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def _by_room(model: nn.Module, prompts: Sequence[Sequence[int]], limit: int) -> Iterator[tuple[int, list[int]]]:
    """Prompts that may be answered with the same number of tokens: the limit, or what the context leaves to a long one.

    Apart, so that a long prompt never shortens the answer to a short one in its batch.
    """
    context = context_length(model)
    rooms: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        rooms[limit if context is None else min(limit, context - len(prompt))].append(i)
    for room, rows in sorted(rooms.items()):
        if room > 0:
            yield room, rows


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that end an answer: the tokenizer's, and those of the model's own generation settings."""
    ends = getattr(getattr(_unwrapped(model), "generation_config", None), "eos_token_id", None)
    own = {int(end) for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end is not None}
    return own | stop_ids(tokenizer)


def forward_parameters(model: nn.Module) -> set[str]:
    """Names that the language model's own forward call takes (a PEFT wrapper passes everything on)."""
    inner = _unwrapped(model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner  # type: ignore[operator]
    return set(inspect.signature(base.forward).parameters)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside data-parallel, sharding and compiled wrappers."""
    for name in ("module", "_orig_mod", "_fsdp_wrapped_module"):
        if name in model._modules:
            return _unwrapped(model._modules[name])  # type: ignore[arg-type]
    return model
