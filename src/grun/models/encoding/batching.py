"""Padded batches of encoded rows, and batches of rows of similar length."""

from __future__ import annotations

__all__ = ["collate", "length_batches", "pad_token_id"]

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from grun.core.errors import UserError
from grun.core.records import Batch
from grun.models.encoding.encode import Encoded

IGNORED = -100


def collate(
    encoded: Sequence[Encoded], pad_token_id: int, padding_side: str = "right", pad_to: int | None = None
) -> Batch:
    """Rows padded to one width (the longest row's, or `pad_to`), labelled on answers only.

    Raises:
        ValueError: for no rows, a row longer than `pad_to`, or a padding side other than "left" and "right".
    """
    if not encoded:
        raise ValueError("a batch needs at least one row")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side is {padding_side!r}, expected 'left' or 'right'")
    longest = max(len(row.input_ids) for row in encoded)
    width = longest if pad_to is None else pad_to
    if width < longest:
        raise ValueError(f"pad_to is {pad_to}, but the longest row has {longest} tokens")
    ids_BT = torch.full((len(encoded), width), pad_token_id, dtype=torch.long)
    mask_BT, labels_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, IGNORED)
    for i, row in enumerate(encoded):
        start = width - len(row.input_ids) if padding_side == "left" else 0
        end = start + len(row.input_ids)
        ids_BT[i, start:end] = torch.tensor(row.input_ids)
        mask_BT[i, start:end] = 1
        labels_BT[i, start + row.prompt_length : end] = ids_BT[i, start + row.prompt_length : end]
    return Batch(ids_BT, mask_BT, labels_BT, torch.tensor([row.prompt_length for row in encoded]))


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that pads rows: the padding token, or else the end-of-sequence token (it is masked in any case).

    Raises:
        UserError: if the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError("the tokenizer has neither a padding nor an end-of-sequence token: set one of them.")


def length_batches(lengths: Sequence[int], batch_size: int, token_budget: int | None = None) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: largest number of rows of a batch.
        token_budget: largest number of tokens of a batch, padding included; a longer row gets a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        last = batches[-1] if batches else []
        fits = token_budget is None or (last and lengths[last[0]] * (len(last) + 1) <= token_budget)
        if last and len(last) < batch_size and fits:
            last.append(i)
        else:
            batches.append([i])
    return batches
