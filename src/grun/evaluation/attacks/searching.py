"""What searches for an input have in common: words that stand in no row, their tokens, and the loss on true answers."""

from __future__ import annotations

__all__ = [
    "Words",
    "changed_embeddings",
    "embeddings_of",
    "forget_gradients",
    "halves",
    "holds_words",
    "loss",
    "starting_words",
    "usable_words",
    "with_words",
]

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.opened import NotPossible, Opened
from grun.models.forward import evaluating, language_model, side_signals

TRIES = 200
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

    @property
    def text(self) -> str:
        """The words, with a blank before each of them."""
        return "".join(f" {text}" for text in self.texts)

    def replaced(self, place: int, text: str, token: int) -> Words:
        """The same words, but for one."""
        return Words(
            (*self.texts[:place], text, *self.texts[place + 1 :]), (*self.ids[:place], token, *self.ids[place + 1 :])
        )


def halves(material: AttackMaterial) -> tuple[list[int], list[int]]:
    """Numbers of the rows to search with, and of those to ask: every second one each, questions only."""
    rows = [i for i, row in enumerate(material.forget) if not row.raw_text]
    return rows[::2], rows[1::2]


def usable_words(opened: Opened, rows: Sequence[Example]) -> dict[int, str]:
    """Words of plain letters that are one token after a blank, by their tokens; none that the rows hold.

    Raises:
        NotPossible: if the tokenizer has too few of them.
    """
    tokenizer = opened.encoder.tokenizer
    taken = {token for row in opened.encoder.encode(rows) for token in row.input_ids}
    found = {}
    for token in range(len(tokenizer)):
        text = str(tokenizer.decode([token])).strip()
        if token not in taken and text.isascii() and text.isalpha():
            found[token] = text
    kept = {
        token: text
        for token, text in found.items()
        if tokenizer(f"a {text} a", add_special_tokens=False)["input_ids"][1:-1] == [token]
    }
    if not kept:
        raise NotPossible("its tokenizer has no words of one token that the rows lack")
    return kept


def _drawn_words(usable: dict[int, str], count: int, draw: random.Random) -> Words:
    """Different words, as many as there are."""
    ids = draw.sample(sorted(usable), min(count, len(usable)))
    return Words(tuple(usable[token] for token in ids), tuple(ids))


def with_words(rows: Sequence[Example], words: Words, place: Place) -> list[Example]:
    """Rows whose prompts hold the words."""
    return [asked(row, prompt=place(row.prompt, words.text)) for row in rows]


def holds_words(opened: Opened, rows: Sequence[Example], words: Words) -> bool:
    """True if all rows hold the tokens of the words, in a row."""
    wanted = list(words.ids)
    for row in opened.encoder.encode(rows):
        ids = list(row.input_ids[: row.prompt_length])
        if not any(ids[i : i + len(wanted)] == wanted for i in range(len(ids))):
            return False
    return True


def starting_words(opened: Opened, rows: Sequence[Example], place: Place, count: int, seed: int) -> Words:
    """Words that stay the same tokens in every prompt.

    Raises:
        NotPossible: if there are none.
    """
    usable, draw = usable_words(opened, rows), random.Random(seed)
    for _ in range(TRIES):
        words = _drawn_words(usable, count, draw)
        if holds_words(opened, with_words(rows, words, place), words):
            return words
    raise NotPossible("no words of one token stay what they are in its prompts")


def loss(opened: Opened, rows: Sequence[Example], *, with_grad: bool = False) -> Tensor:
    """Cross-entropy of the true answers, in nats per token."""
    batch = opened.encoder.batch(opened.encoder.encode(rows))
    with evaluating(opened.model), torch.enable_grad() if with_grad else torch.no_grad():
        return side_signals(opened.model, batch, with_grad=with_grad).mean_nll


def forget_gradients(model: nn.Module) -> None:
    """Drop the gradients of parameters, which searches do not change."""
    for parameter in model.parameters():
        parameter.grad = None


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
