"""What an unlearning run forgets, keeps and answers instead, read from a benchmark or from files."""

from __future__ import annotations

__all__ = ["OtherAnswers", "Sides", "chunk_running_text", "load_sides", "other_answers"]

import logging
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from grun.benchmarks import load_benchmark
from grun.config import UnlearnConfig
from grun.errors import UserError
from grun.readers import check_disjoint, read_examples, split_text
from grun.records import Example
from grun.refusals import REFUSALS
from grun.splitting import withhold
from grun.templates import plain_ids

logger = logging.getLogger("grun")
OtherAnswers = Callable[[Example], Sequence[str]]
SPECIAL_TOKENS = 4  # of a row, at the beginning and the end


@dataclass(frozen=True)
class Sides:
    """Examples of an unlearning run: what to forget, what to keep, and what to keep that is only looked at."""

    forget: list[Example]
    retain: list[Example]
    validation: list[Example]


def load_sides(config: UnlearnConfig) -> Sides:
    """Read what to forget and what to keep, from a benchmark or from files, and withhold whole retain subjects.

    Raises:
        UserError: for missing or contradictory settings, unreadable files, or identical forget and retain rows.
    """
    if config.benchmark and (config.forget or config.retain):
        raise UserError("--benchmark and --forget/--retain were both given; take the rows from one of them.")
    if config.benchmark:
        data = load_benchmark(
            config.benchmark, data_dir=config.data_dir, seed=config.seed, options=config.benchmark_options
        )
        forget, retain = list(data.splits[data.forget]), list(data.splits[data.retain])
    else:
        for name, meaning in (("forget", "forget"), ("retain", "keep")):
            if not getattr(config, name):
                raise UserError(f"--{name} is missing: give a file of what to {meaning}, or --benchmark.")
        forget = [row for source in config.forget for row in read_examples(source, columns=config.columns)]
        retain = [row for source in config.retain for row in read_examples(source, columns=config.columns)]
    shared = check_disjoint(forget, retain)
    if shared:
        logger.warning("%d rows are in both --forget and --retain; they are forgotten.", shared)
        known = {(row.prompt, row.answer) for row in forget}
        retain = [row for row in retain if (row.prompt, row.answer) not in known]
    return Sides(forget, *withhold(retain, config.withhold, config.seed))


def other_answers(config: UnlearnConfig, sides: Collection[str], forget: Sequence[Example]) -> dict[str, OtherAnswers]:
    """Where the answers of the sides `refusal` and `alternative` come from.

    Args:
        config: names a file of refusals, and which answers count as alternatives.
        sides: those that a batch holds.
        forget: the forget rows, all of which must have alternatives if that side is needed.

    Raises:
        UserError: if the file cannot be read or is empty, or a row has no alternative.
    """
    found: dict[str, OtherAnswers] = {}
    if "refusal" in sides:
        refusals = _refusals(config.refusals)
        found["refusal"] = lambda _: refusals
    elif config.refusals is not None:
        raise UserError(f"--refusals was given, but objective '{config.objective}' uses none; dpo and idk do.")
    if "alternative" in sides and config.alternatives == "generate":
        found["alternative"] = lambda row: row.alternative_answers  # made up once the model is there
    elif "alternative" in sides:
        column = "perturbed_answers" if config.alternatives == "perturbed" else "alternative_answers"
        lacking = [row for row in forget if not getattr(row, column)]
        if lacking:
            raise UserError(
                f"objective '{config.objective}' needs alternative answers, but {len(lacking)} of {len(forget)} forget rows "
                f"have no {column} (the first: {lacking[0].source or repr(lacking[0].prompt)}). Add a column "
                f"{column}, or choose another source with --alternatives."
            )
        found["alternative"] = lambda row: getattr(row, column)
    return found


def chunk_running_text(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, most_tokens: int | None
) -> list[Example]:
    """Running text that is too long for one row in pieces of about equal length, each with a prompt of its own.

    Rows with a question stay as they are.

    Args:
        examples: rows.
        tokenizer: counts the tokens.
        most_tokens: longest row; None leaves everything whole.
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
    words = re.findall(r"\S+\s*", text)
    lengths = [len(ids) for ids in tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"]]
    if len(plain_ids(tokenizer, text)) <= room:
        return []
    count = math.ceil(sum(lengths) / room)
    parts: list[str] = [""] * count
    before = 0
    for word, length in zip(words, lengths, strict=True):
        parts[min(before * count // sum(lengths), count - 1)] += word
        before += length
    for i in range(count - 1, 0, -1):
        if len(parts[i].split()) < 2:  # a word that is as long as a piece: it stays with what precedes it
            parts[i - 1] += parts.pop(i)
    return [split_text(part) for part in parts]


def _refusals(file: str | None) -> tuple[str, ...]:
    if file is None:
        return REFUSALS
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--refusals '{file}' cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    sentences = tuple(line.strip() for line in lines if line.strip())
    if not sentences:
        raise UserError(f"--refusals '{file}' is empty; expected one sentence per line.")
    return sentences
