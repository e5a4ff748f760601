"""Token ids of examples; prompts and answers are tokenised here only.

The prompt's ids in training are exactly its ids in generation. Two things would break that and are handled here. Most
tokenizers merge a trailing space of the prompt with the answer's first word, so the space belongs to the answer. Where a
tokenizer merges across the boundary, prompt and answer are tokenised apart.
"""

from __future__ import annotations

__all__ = ["Encoded", "encode", "encode_prompt", "truncation_report"]

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.encoding.templates import Template, plain_ids

CHARACTERS = 32  # per token of the context; of a text with more of them, only so many are tokenised
SURELY = 2  # times as many tokens as there is room for: then what follows cannot change those that are kept


@dataclass(frozen=True)
class Encoded:
    """One tokenised row.

    Attributes:
        input_ids: prompt and answer; the answer's last token is the end of the sequence, unless it was truncated away or the
            answer is a choice.
        prompt_length: number of prompt tokens; the answer is `input_ids[prompt_length:]`.
        truncated: number of answer tokens that did not fit and were cut off; an estimate for answers that are so much longer
            than the context that their ends are not tokenised.
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
    answer, share = separator + example.answer, 1.0
    limit = _most_characters(max_length)
    if len(answer) > limit and len(plain_ids(tokenizer, answer[:limit])) > SURELY * (max_length or 0):
        answer, share = answer[:limit], len(answer) / limit
    full = start + plain_ids(tokenizer, prompt + answer)
    exact = full[: len(prompt_ids)] == prompt_ids
    answer_ids = full[len(prompt_ids) :] if exact else _answer_alone(tokenizer, answer)
    end_id = template.eos_id if example.raw_text else template.end_id
    while answer_ids and answer_ids[-1] in (end_id, template.eos_id):
        answer_ids.pop()
    ids = prompt_ids + answer_ids + ([] if example.choices else [end_id])
    cut = max(0, len(ids) - max_length) if max_length is not None else 0
    return Encoded(tuple(ids[: len(ids) - cut]), len(prompt_ids), cut + round((share - 1) * len(answer_ids)))


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None = None
) -> list[int]:
    """The prompt as token ids for generation: exactly `encode(...).input_ids[:prompt_length]`.

    Raises:
        UserError: as `encode` does.
    """
    prompt, _ = template.write(example, tokenizer)
    return _prompt_ids(prompt, example, tokenizer, template, max_length)


def truncation_report(encoded: Sequence[Encoded]) -> str | None:
    """One line on the rows that were truncated, or None if all of them fit."""
    cuts = [row.truncated for row in encoded if row.truncated]
    if not cuts:
        return None
    count = f"{len(cuts)} of {len(encoded)} rows"
    return f"{count} were too long: up to {max(cuts)} tokens were cut from the end of their answers."


def _prompt_ids(
    prompt: str, example: Example, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int | None
) -> list[int]:
    ids, limit = plain_ids(tokenizer, prompt[: _most_characters(max_length)]), _most_characters(max_length)
    is_too_long = len(prompt) > limit and len(ids) > SURELY * (max_length or 0)
    if len(prompt) > limit and not is_too_long:
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
            f"{where}: the prompt is longer than the model's context: {len(ids)} tokens{' or more' if is_too_long else ''}, "
            f"and {max_length} must hold it "
            "and at least one token of the answer. Shorten the prompt or split the row."
        )
    return ids


def _most_characters(max_length: int | None) -> int:
    """Characters of a text that are tokenised at first: of a megabyte, no more than tells whether it is too long."""
    return sys.maxsize if max_length is None else CHARACTERS * max_length


def _answer_alone(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Ids of an answer whose first letters would merge with the prompt's last ones.

    The answer is tokenised after a character that does not merge with it, because some tokenizers put a space of their own
    before every text.
    """
    for anchor in ("\n", "."):
        before, both = plain_ids(tokenizer, anchor), plain_ids(tokenizer, anchor + answer)
        if both[: len(before)] == before:
            return both[len(before) :]
    return plain_ids(tokenizer, answer)
