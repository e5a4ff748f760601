"""Words after the prompt, found by greedy coordinate gradient."""

from __future__ import annotations

__all__ = ["suffix_search"]

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import Opened, Trial, training_only
from grun.evaluation.attacks.searching import (
    Rows,
    Words,
    changed_embeddings,
    embeddings_of,
    loss,
    starting_words,
    usable_words,
)

COUNT, BEST, CANDIDATES = 8, 64, 12


@attacks.register(
    "suffix_search",
    source="arXiv 2307.15043",
    measures="leak",
    access="weights",
    needs=("several", "questions"),
    on_request=True,
    references=("retain_only",),
    asks=("before",),
)
def suffix_search(material: AttackMaterial, opened: Opened, *, count: int = COUNT) -> Iterator[Trial]:
    """Search for 8 words after the question with every second row, and ask the others (GCG, Zou et al.).

    In each of `--search-steps` steps 12 exchanges of a word are tried, drawn from the 64 best by the gradient. A gate that
    reads text gives no gradient of its own: it is attacked by what is tried.
    """
    rows = Rows.of(material, opened, _place, count)
    usable, draw = usable_words(opened, rows.rows), random.Random(material.seed)
    words = starting_words(rows, usable, count, material.seed)
    with training_only(opened.model):
        for step in range(opened.steps):
            words = _better(opened, rows, step, words, usable, draw)
    yield Trial(rows.probes(words))


def _place(prompt: str, words: str) -> str:
    return f"{prompt} {words}"


def _better(opened: Opened, rows: Rows, step: int, words: Words, usable: dict[int, str], draw: random.Random) -> Words:
    """The best of some exchanges of one word, or the words themselves if none is better."""
    table, tokens = embeddings_of(opened), sorted(usable)
    gain_KV = -(_gradient(opened, rows, step, words) @ table.weight[torch.tensor(tokens)].detach().float().T)
    best_KB = gain_KV.topk(min(BEST, len(tokens)), dim=1).indices.tolist()
    found, least = words, float(loss(opened, rows.batch(step, words)))
    for _ in range(CANDIDATES):
        place = draw.randrange(len(words.ids))
        token = tokens[draw.choice(best_KB[place])]
        tried = words.replaced(place, usable[token], token)
        if token in words.ids or not rows.hold(tried):
            continue
        value = float(loss(opened, rows.batch(step, tried)))
        found, least = (tried, value) if value < least else (found, least)
    return found


def _gradient(opened: Opened, rows: Rows, step: int, words: Words) -> Tensor:
    """Gradient (K, D) of the loss by the embeddings of the words, summed over rows and over all times that they are read."""
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(ids_BT: Tensor, h_BTD: Tensor) -> Tensor:
        leaf = h_BTD.detach().requires_grad_(torch.is_grad_enabled())
        kept.append((ids_BT, leaf))
        return leaf

    table = embeddings_of(opened)
    with changed_embeddings(table, keep):
        loss(opened, rows.batch(step, words), with_grad=True).backward()
    found_KD = torch.zeros(len(words.ids), table.weight.shape[1], device=table.weight.device)
    for ids_BT, leaf in kept:
        if leaf.grad is not None:
            found_KD += torch.stack([leaf.grad[ids_BT == token].float().sum(0) for token in words.ids])
    return found_KD
