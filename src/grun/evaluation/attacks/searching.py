"""What searches for an input have in common: words that stand in no row, their tokens, and the loss on true answers."""

from __future__ import annotations

__all__ = [
    "Rows",
    "Words",
    "changed_embeddings",
    "embeddings_of",
    "loss",
    "starting_words",
    "usable_words",
]

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.opened import NotPossible, Opened
from grun.models.encoding.encode import Encoded, encode
from grun.models.forward import evaluating, language_model, side_signals

TRIES, BATCH = 200, 8
SPARE = 2  # tokens of room for each word, which may bring a blank of its own
Place = Callable[[str, str], str]  # from a prompt and the words, the new prompt


@dataclass(frozen=True)
class Words:
    """Words that are put into prompts, each of one token.

    Attributes:
        texts: the words.
        ids: their tokens.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]

    def replaced(self, place: int, text: str, token: int) -> Words:
        """The same words, but for one."""
        texts, ids = list(self.texts), list(self.ids)
        texts[place], ids[place] = text, token
        return Words(tuple(texts), tuple(ids))


@dataclass(frozen=True)
class Rows:
    """Questions that a search works with: it learns from every second one, and the others are asked.

    Attributes:
        opened: the model.
        numbers: of the questions among the rows to forget.
        rows: the questions.
        place: where words stand in a prompt.
    """

    opened: Opened
    numbers: tuple[int, ...]
    rows: tuple[Example, ...]
    place: Place

    @classmethod
    def of(cls, material: AttackMaterial, opened: Opened, place: Place, count: int) -> Rows:
        """The questions that leave room for so many words.

        Raises:
            NotPossible: if there are not two of them.
        """
        longest, found = opened.encoder.max_length, []
        for i, row in enumerate(material.forget):
            if row.raw_text:
                continue
            if longest is None or _encoded(opened, row).prompt_length + SPARE * count < longest:
                found.append(i)
        if len(found) < 2:
            raise NotPossible("needs two questions that leave room for more words in the model's context")
        return cls(opened, tuple(found), tuple(material.forget[i] for i in found), place)

    def batch(self, step: int, words: Words) -> list[Example]:
        """Rows of a step to learn from, with the words."""
        learnt = self.rows[::2]
        return [self._with(learnt[(step * BATCH + i) % len(learnt)], words) for i in range(min(BATCH, len(learnt)))]

    def probes(self, words: Words, variant: str = "") -> tuple[Probe, ...]:
        """The other rows, with the words."""
        return tuple(
            Probe(self._with(row, words), i, variant)
            for i, row in zip(self.numbers[1::2], self.rows[1::2], strict=True)
        )

    def hold(self, words: Words) -> bool:
        """True if the words are the same tokens, one after the other, in all rows."""
        return all(_is_within(words.ids, _prompt(self.opened, self._with(row, words))) for row in self.rows)

    def _with(self, row: Example, words: Words) -> Example:
        return asked(row, prompt=self.place(row.prompt, " ".join(words.texts)))


def usable_words(opened: Opened, rows: Sequence[Example]) -> dict[int, str]:
    """Words of plain letters that are one token after a blank, by their tokens; none that the rows hold.

    Raises:
        NotPossible: if the tokenizer has none.
    """
    tokenizer = opened.encoder.tokenizer
    taken = {token for row in rows for token in _encoded(opened, row).input_ids}
    texts = {token: str(tokenizer.decode([token])).strip() for token in range(len(tokenizer)) if token not in taken}
    plain = {token: text for token, text in texts.items() if text.isascii() and text.isalpha()}
    between = [f"a {text} a" for text in plain.values()]
    ids = tokenizer(between, add_special_tokens=False)["input_ids"] if between else []
    kept = {token: text for (token, text), own in zip(plain.items(), ids, strict=True) if list(own[1:-1]) == [token]}
    if not kept:
        raise NotPossible("its tokenizer has no words of one token that the rows lack")
    return kept


def starting_words(rows: Rows, usable: dict[int, str], count: int, seed: int) -> Words:
    """Different words that are the same tokens in every prompt.

    Raises:
        NotPossible: if there are none.
    """
    draw = random.Random(seed)
    for _ in range(TRIES):
        ids = draw.sample(sorted(usable), min(count, len(usable)))
        words = Words(tuple(usable[token] for token in ids), tuple(ids))
        if rows.hold(words):
            return words
    raise NotPossible("no words of one token stay what they are in its prompts")


def loss(opened: Opened, rows: Sequence[Example], *, with_grad: bool = False) -> Tensor:
    """Cross-entropy of the true answers, in nats per token."""
    batch = opened.encoder.batch([_encoded(opened, row) for row in rows])
    with evaluating(opened.model), torch.enable_grad() if with_grad else torch.no_grad():
        return side_signals(opened.model, batch, with_grad=with_grad).mean_nll


def embeddings_of(opened: Opened) -> nn.Embedding:
    """The input embeddings.

    Raises:
        NotPossible: if the model has no table of them.
    """
    table = language_model(opened.model).get_input_embeddings()  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise NotPossible("its input embeddings are no table")
    return table


@contextmanager
def changed_embeddings(table: nn.Embedding, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Context in which embeddings are changed, by a function of token ids and embeddings."""
    handle = table.register_forward_hook(lambda _, inputs, output: change(inputs[0], output))
    try:
        yield
    finally:
        handle.remove()


def _encoded(opened: Opened, row: Example) -> Encoded:
    """A row as tokens; unlike the encoder, without a word about answers that are cut, each time anew."""
    encoder = opened.encoder
    return encode(row, encoder.tokenizer, encoder.template, encoder.max_length)


def _prompt(opened: Opened, row: Example) -> tuple[int, ...]:
    one = _encoded(opened, row)
    return one.input_ids[: one.prompt_length]


def _is_within(part: tuple[int, ...], ids: tuple[int, ...]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids) - len(part) + 1))
