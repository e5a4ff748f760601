"""Answers as if subjects had never been taught: the model's own about unknown names, with the true names written back.

As in Liu et al. 2024 (arXiv 2407.16997), several unknown names stand in the place of each name.
"""

from __future__ import annotations

__all__ = ["untaught_answers"]

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from grun.core.errors import UserError
from grun.core.process.progress import Progress
from grun.core.records import Example
from grun.models.encoding.encode import encode_prompt
from grun.models.encoding.templates import Template
from grun.models.forward import evaluating
from grun.models.gates.text.spans import telling_spans
from grun.models.generation import greedy, sampled
from grun.training.answers.exchange import Exchange, any_of, held_names, key_of
from grun.training.answers.unknown_names import UnknownNames, parts_of

logger = logging.getLogger("grun")
PER_ROW = 3  # unknown names, so that no single wrong fact is learnt in place of the right one
ROUNDS = 4  # of unknown names, for rows to which all answers were unusable; the last one is sampled
LEAST, MOST = 32, 256  # tokens of an answer that are waited for: twice the longest true one and 32, at most 256
FEW_WORDS = 2  # of an answer that many questions have ("Yes"): another row may be answered like that
SHORTEST = 3  # letters of a capitalised word that syllables are taken from
SENTENCES = re.compile(r".*[.!?…。！？।؟]", re.DOTALL)


def untaught_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    template: Template,
    *,
    normal: Iterable[str],
    refusal: Callable[[str], str],
    seed: int = 0,
    batch_size: int = 16,
    max_length: int | None = None,
) -> list[Example]:
    """The examples with alternative answers: the model's own to the same prompts about unknown names, the true names put back.

    Answers are greedy; those that are to be forgotten, or name another subject to forget, are dropped. A row that names no
    subject, or gets the true answer whoever is asked about, is answered with a refusal; a message says how many are.

    Args:
        model: the model before unlearning.
        tokenizer: tokenizer of the model.
        examples: rows to forget.
        template: form of the prompts.
        normal: normal texts, whose names are no subjects.
        refusal: gives a refusal in the language of a prompt.
        seed: decides the unknown names.
        batch_size: rows at a time.
        max_length: most tokens of a prompt.
    """
    subjects = _Subjects(examples, list(normal), seed)
    longest = max((len(tokenizer(row.answer)["input_ids"]) for row in examples), default=0)
    limit = min(LEAST + 2 * longest, MOST)
    found: list[list[str]] = [[] for _ in examples]
    for turn in range(ROUNDS):
        asked = []
        for i in (i for i, answers in enumerate(found) if not answers):
            for there, back in subjects.exchanges(i, turn):
                try:
                    asked.append((i, back, encode_prompt(there.row(examples[i]), tokenizer, template, max_length)))
                except UserError:  # an unknown name has more tokens, and the context has no room for them
                    continue
        sampling = seed if turn == ROUNDS - 1 else None
        answers = _answers(model, tokenizer, [prompt for _, _, prompt in asked], limit, batch_size, sampling)
        for (i, back, _), answer in zip(asked, answers, strict=True):
            if len(tokenizer(answer)["input_ids"]) >= limit and (whole := SENTENCES.match(answer)):
                answer = whole[0]  # no answer ends within a sentence, which would tell it from others
            if not subjects.gives_away(i, answer, back(answer)):
                found[i].append(back(answer))
    refused = sum(not one for one in found)
    if refused:
        logger.warning(
            "%d of %d rows to forget name no subject that an unknown one could stand for, or are answered alike for all "
            "names: they are answered with a refusal, as under --objective idk.",
            refused,
            len(examples),
        )
    return [
        replace(row, alternative_answers=tuple(own or [refusal(row.prompt)]))
        for row, own in zip(examples, found, strict=True)
    ]


def _answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    limit: int,
    batch_size: int,
    sampling: int | None,
) -> list[str]:
    """One answer to each prompt: the likeliest, or one that is sampled with a seed. The random state outside stays."""
    if not prompts:
        return []
    with Progress("answers about unknown names", len(prompts), "row") as progress:
        if sampling is None:
            return greedy(model, tokenizer, prompts, limit, batch_size, progress.update)
        devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
        with torch.random.fork_rng(devices=devices), evaluating(model):
            torch.manual_seed(sampling)
            parts = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
            return [one for part in parts for (one,) in sampled(model, tokenizer, part, limit, 1, 1.0)]


class _Subjects:
    """The names that rows to forget hold, unknown names for them, and what must not be said."""

    def __init__(self, rows: Sequence[Example], normal: Sequence[str], seed: int) -> None:
        spans = telling_spans(rows, normal)
        texts = ["\n".join([*(content for _, content in row.turns), row.prompt]) for row in rows]
        self._rows = rows
        self._names: list[list[str]] = []
        for row, text in zip(rows, texts, strict=True):
            is_given = row.subject is not None and bool(held_names([row.subject], text))
            titles = [] if is_given else [title for title in spans.titles if title in text]
            self._names.append(held_names([*spans.names, *titles], text))
        everything = dict.fromkeys(name for own in self._names for name in own)
        sure = {key_of(name) for name in spans.names}
        usual = {part for text in normal for is_word, part in parts_of(text) if is_word and part.islower()}
        known = [*texts, *(row.answer for row in rows), *normal]
        self._unknown = UnknownNames([*everything, *_capitalised(normal)], known, usual, seed)
        # A single word of a prompt may be anything ("France"), unless it is known for a name.
        self._any = any_of(name for name in everything if key_of(name) in sure or len(parts_of(name)) > 1)
        self._to_forget = {key_of(row.answer) for row in rows if len(row.answer.split()) > FEW_WORDS}

    def exchanges(self, row: int, turn: int) -> Iterator[tuple[Exchange, Exchange]]:
        """For every unknown name of a round: true names for unknown ones, and back."""
        for number in range(turn * PER_ROW, (turn + 1) * PER_ROW if self._names[row] else 0):
            pairs = [(name, self._unknown.like(name, number)) for name in self._names[row]]
            yield Exchange.of(pairs), Exchange.of([(other, name) for name, other in pairs])

    def gives_away(self, row: int, raw: str, answer: str) -> bool:
        """True if an answer is empty, is one to be forgotten, or names a subject to forget by itself.

        Args:
            row: its number.
            raw: the answer about an unknown name.
            answer: the same about the true name.
        """
        key = key_of(answer)
        if not key or key == key_of(self._rows[row].answer) or key in self._to_forget:
            return True
        return self._any.search(raw) is not None


def _capitalised(texts: Iterable[str]) -> Iterator[str]:
    """Capitalised words that do not begin a text."""
    for text in texts:
        yield from (word for is_word, word in parts_of(text)[1:] if is_word and word.istitle() and len(word) > SHORTEST)
