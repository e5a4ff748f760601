"""Pieces of running text that is too long for one row."""

from __future__ import annotations

__all__ = ["chunk_running_text"]

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from grun.core.records import Example
from grun.data.examples import split_text
from grun.models.encoding.templates import plain_ids

SPECIAL_TOKENS = 4  # at the beginning and the end of a row


def chunk_running_text(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, most_tokens: int | None
) -> list[Example]:
    """The rows, with running text that is too long cut into pieces of about equal length, each with its own prompt.

    Rows with a question stay as they are.

    Args:
        examples: rows.
        tokenizer: counts the tokens.
        most_tokens: longest row, in tokens; None leaves everything whole.
    """
    out: list[Example] = []
    for example in examples:
        pieces = _pieces(example, tokenizer, most_tokens) if example.raw_text and most_tokens else []
        out += [
            replace(example, prompt=prompt, answer=answer, source=f"{example.source}, part {i}".lstrip(", "))
            for i, (prompt, answer) in enumerate(pieces, 1)
        ] or [example]
    return out


def _pieces(example: Example, tokenizer: PreTrainedTokenizerBase, most_tokens: int) -> list[tuple[str, str]]:
    text = example.prompt + ("" if example.prompt[-1:].isspace() else " ") + example.answer
    room = max(most_tokens - SPECIAL_TOKENS, 2)
    if len(plain_ids(tokenizer, text)) <= room:
        return []
    words = re.findall(r"\S+\s*", text)
    different = list(dict.fromkeys(words))
    counts = map(len, tokenizer(different, add_special_tokens=False, verbose=False)["input_ids"])
    length_of = dict(zip(different, counts, strict=True))
    lengths = [length_of[word] for word in words]
    total = sum(lengths)
    count = math.ceil(total / room)
    parts: list[str] = [""] * count
    before = 0
    for word, length in zip(words, lengths, strict=True):
        parts[min(before * count // total, count - 1)] += word
        before += length
    for i in range(count - 1, 0, -1):
        if len(parts[i].split()) < 2:  # a word as long as a piece stays with the piece before it
            parts[i - 1] += parts.pop(i)
    return [split_text(part) for part in parts]
