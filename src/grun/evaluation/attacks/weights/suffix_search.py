"""Words after the prompt, found by greedy coordinate gradient."""

from __future__ import annotations

__all__ = ["suffix_search"]

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.opened import Opened, Trial
from grun.evaluation.attacks.searching import (
    Words,
    changed_embeddings,
    embeddings_of,
    forget_gradients,
    halves,
    holds_words,
    loss,
    starting_words,
    usable_words,
    with_words,
)

COUNT, BATCH, BEST, CANDIDATES = 8, 8, 64, 12


@attacks.register(
    "suffix_search",
    source="arXiv 2307.15043",
    measures="leak",
    access="weights",
    needs=("several", "questions"),
    on_request=True,
    references=("retain_only",),
)
def suffix_search(material: AttackMaterial, opened: Opened, *, count: int = COUNT) -> Iterator[Trial]:
    """Search for 8 words after the question with every second row, and ask the others (GCG, Zou et al.).

    In each of `--search-steps` steps 12 exchanges of a word are tried, drawn from the 64 best by the gradient. A gate that
    reads text gives no gradient of its own: it is attacked by what is tried.
    """
    searched, held = halves(material)
    if not held:
        return
    every = [row for row in material.forget if not row.raw_text]
    usable, draw = usable_words(opened, every), random.Random(material.seed)
    words = starting_words(opened, every, _place, count, material.seed)
    rows = [material.forget[i] for i in searched]
    for step in range(opened.steps):
        batch = [rows[(step * BATCH + i) % len(rows)] for i in range(min(BATCH, len(rows)))]
        words = _better(opened, batch, words, usable, draw)
    if not holds_words(opened, with_words(every, words, _place), words):  # blanks fall together in another prompt
        words = starting_words(opened, every, _place, count, material.seed)
    yield Trial(
        tuple(Probe(asked(material.forget[i], prompt=_place(material.forget[i].prompt, words.text)), i) for i in held),
        adapters=opened.adapters,
    )


def _place(prompt: str, words: str) -> str:
    return f"{prompt}{words}"


def _better(
    opened: Opened, rows: Sequence[Example], words: Words, usable: dict[int, str], draw: random.Random
) -> Words:
    """The best of some exchanges of one word, or the words themselves if none is better."""
    table, tokens = embeddings_of(opened), sorted(usable)
    gradient_KD = _gradient(opened, rows, words)
    gain_KV = -(gradient_KD.float() @ table.weight[torch.tensor(tokens)].detach().float().T)
    best_KB = gain_KV.topk(min(BEST, len(tokens)), dim=1).indices.tolist()
    found, least = words, float(loss(opened, with_words(rows, words, _place)))
    for _ in range(CANDIDATES):
        place = draw.randrange(len(words.ids))
        token = tokens[draw.choice(best_KB[place])]
        tried = words.replaced(place, usable[token], token)
        asked_with = with_words(rows, tried, _place)
        if token not in words.ids and holds_words(opened, asked_with, tried):
            value = float(loss(opened, asked_with))
            found, least = (tried, value) if value < least else (found, least)
    return found


def _gradient(opened: Opened, rows: Sequence[Example], words: Words) -> Tensor:
    """Gradient (K, D) of the loss by the embeddings of the words, summed over rows."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(ids_BT: Tensor, h_BTD: Tensor) -> Tensor:
        leaf = h_BTD.detach().requires_grad_()
        kept.append((ids_BT, leaf))
        return leaf

    with changed_embeddings(embeddings_of(opened), keep):
        loss(opened, with_words(rows, words, _place), with_grad=True).backward()
    ids_BT, leaf = kept[0]
    assert leaf.grad is not None
    forget_gradients(opened.model)
    return torch.stack([leaf.grad[ids_BT == token].sum(0) for token in words.ids])
