"""Greedy and sampled answers."""

from __future__ import annotations

__all__ = ["generation_settings", "greedy", "sampled", "stop_tokens"]

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from grun.models.encoding.batching import length_batches, pad_token_id
from grun.models.encoding.templates import stop_ids
from grun.models.forward import context_length, evaluating, unwrapped


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

    Sampling and penalties of the model's own generation settings do not apply. An answer ends at the latest where the
    model's context ends.

    Args:
        prompts: token ids; none may be empty.
        max_new_tokens: longest answer, in tokens.
        batch_size: number of prompts at a time.
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


@torch.no_grad()
def sampled(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    count: int,
    temperature: float,
) -> list[list[str]]:
    """`count` answers to each prompt, sampled in one batch with torch's global random state; otherwise as `greedy`."""
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
    """New tokens of each prompt before the first that ends the answer; greedy unless `sampling` asks for something else."""
    width, pad = max(map(len, prompts)), pad_token_id(tokenizer)
    device = next(model.parameters()).device
    ids_BT = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    out_BT = model.generate(  # type: ignore[operator]
        input_ids=ids_BT, attention_mask=mask_BT, generation_config=generation_settings(limit, pad, ends, **sampling)
    )
    return [_until_end(row[width:].tolist(), ends) for row in out_BT]


def generation_settings(limit: int, pad: int, ends: set[int], **sampling: Any) -> GenerationConfig:
    """Settings with every neutral value spelt out: an open one would be taken from the model's own settings."""
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
    """Prompts grouped by the longest answer that they may have: the limit, or the rest of the context after a long prompt.

    The groups are answered apart, so that a long prompt never shortens the answer to a short one in its batch.
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
    ends = getattr(getattr(unwrapped(model), "generation_config", None), "eos_token_id", None)
    own = {int(end) for end in (ends if isinstance(ends, (list, tuple)) else [ends]) if end is not None}
    return own | stop_ids(tokenizer)
