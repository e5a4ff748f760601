"""From examples to batches of token ids: the only place that tokenises.

The prompt's ids in training are exactly its ids in generation. Two things would break that and are handled here:
a trailing space of the prompt, which most tokenizers merge with the answer's first word (so it belongs to the answer),
and merges across the boundary (then prompt and answer are tokenised apart).
"""

from __future__ import annotations

__all__ = [
    "Encoded",
    "Template",
    "collate",
    "encode",
    "encode_prompt",
    "length_batches",
    "pad_token_id",
    "paired_order",
    "resolve_template",
    "truncation_report",
]

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from grun.errors import UserError
from grun.records import Batch, Example
from grun.templates import Template, plain_ids, resolve_template

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One tokenised row.

    Attributes:
        input_ids: prompt and answer; the answer's last token is the end of the sequence, unless it was truncated away or the
            answer is a choice.
        prompt_length: number of prompt tokens; the answer is `input_ids[prompt_length:]`.
        truncated: number of answer tokens that did not fit and were cut off.
    """

    input_ids: tuple[int, ...]
    prompt_length: int
    truncated: int


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None = None
) -> Encoded:
    """Prompt and answer as token ids, cut from the end of the answer to at most `max_length` tokens.

    Raises:
        UserError: if the prompt leaves no room for an answer, or the chat template refuses the conversation.
    """
    prompt, separator = template.write(example, tokenizer)
    prompt_ids = _prompt_ids(prompt, example, tokenizer, template, max_length)
    start = prompt_ids[: len(prompt_ids) - len(plain_ids(tokenizer, prompt))]
    answer = separator + example.answer
    full = start + plain_ids(tokenizer, prompt + answer)
    exact = full[: len(prompt_ids)] == prompt_ids
    answer_ids = full[len(prompt_ids) :] if exact else _answer_alone(tokenizer, answer)
    end_id = template.eos_id if example.raw_text else template.end_id
    while answer_ids and answer_ids[-1] in (end_id, template.eos_id):
        answer_ids.pop()
    ids = prompt_ids + answer_ids + ([] if example.choices else [end_id])
    cut = max(0, len(ids) - max_length) if max_length is not None else 0
    return Encoded(tuple(ids[: len(ids) - cut]), len(prompt_ids), cut)


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None = None
) -> list[int]:
    """The prompt as token ids for generation: exactly `encode(...).input_ids[:prompt_length]`.

    Raises:
        UserError: as `encode` does.
    """
    prompt, _ = template.write(example, tokenizer)
    return _prompt_ids(prompt, example, tokenizer, template, max_length)


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
    """The token that fills rows up: the padding token, or else the end-of-sequence token (it is masked in any case).

    Raises:
        UserError: if the tokenizer has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError("the tokenizer has neither a padding nor an end-of-sequence token: set one of them.")


def truncation_report(encoded: Sequence[Encoded]) -> str | None:
    """One line on the rows that were truncated, or None if all of them fit."""
    cuts = [row.truncated for row in encoded if row.truncated]
    if not cuts:
        return None
    count = f"{len(cuts)} of {len(encoded)} rows"
    return f"{count} were too long: up to {max(cuts)} tokens were cut from the end of their answers."


def length_batches(lengths: Sequence[int], batch_size: int, token_budget: int | None = None) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row.
        batch_size: most rows of a batch.
        token_budget: most tokens of a batch, padding included; a row that is longer gets a batch of its own.
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


def paired_order(n_forget: int, n_retain: int, seed: int, epoch: int) -> list[tuple[int, int]]:
    """Order of one epoch: every forget row once, each beside a retain row.

    Retain rows are drawn without replacement, and over the end of an epoch, until all of them were used; then again.

    Raises:
        ValueError: if one side has no rows.
    """
    if n_forget < 1 or n_retain < 1:
        raise ValueError(f"pairing needs rows on both sides, got {n_forget} to forget and {n_retain} to retain")
    forget = _shuffled(n_forget, f"forget {seed} {epoch}")
    drawn = _draws(n_retain, seed, epoch * n_forget)
    return [(row, next(drawn)) for row in forget]


def _shuffled(n: int, seed: str) -> list[int]:
    rows = list(range(n))
    random.Random(seed).shuffle(rows)
    return rows


def _draws(n: int, seed: int, start: int) -> Iterator[int]:
    """An endless run of shuffles of `range(n)`, from its `start`-th entry."""
    lap, skip = divmod(start, n)
    while True:
        yield from _shuffled(n, f"retain {seed} {lap}")[skip:]
        lap, skip = lap + 1, 0


def _prompt_ids(
    prompt: str, example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None
) -> list[int]:
    ids = plain_ids(tokenizer, prompt)
    where = example.source or f"the row with the prompt '{example.prompt[:40]}'"
    if not ids:
        raise UserError(f"{where}: the prompt is empty after tokenisation; give it some text.")
    start = list(template.start_ids)
    is_chat = template.pattern is None and not example.raw_text
    if not is_chat and ids[: len(start)] != start:
        ids = start + ids
    if max_length is not None and len(ids) > max_length - 1:
        raise UserError(
            f"{where}: the prompt is longer than the model's context: {len(ids)} tokens, and {max_length} must hold it "
            "and at least one token of the answer. Shorten the prompt or split the row."
        )
    return ids


def _answer_alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer whose first letters would merge with the prompt's last ones.

    Tokenised behind a character that does not merge: some tokenizers put a space of their own before every text.
    """
    for anchor in ("\n", "."):
        before, both = plain_ids(tokenizer, anchor), plain_ids(tokenizer, anchor + answer)
        if both[: len(before)] == before:
            return both[len(before) :]
    return plain_ids(tokenizer, answer)
