"""A few learnt embeddings before the prompt."""

from __future__ import annotations

__all__ = ["soft_prompt"]

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

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
from grun.models.forward import gates_of_last_call, thresholds_of_last_call

COUNT, LEARNING_RATE = 8, 0.1  # the learning rate in standard deviations of the embeddings
EDIT, GATE = "against the edit", "against the gate"


@attacks.register(
    "soft_prompt",
    source="arXiv 2402.09063",
    measures="leak",
    access="weights",
    needs=("several", "questions"),
    on_request=True,
    references=("retain_only",),
)
def soft_prompt(material: AttackMaterial, opened: Opened, *, count: int = COUNT) -> Iterator[Trial]:
    """Learn the embeddings of 8 words before the question from every second row, and ask the others (Schwinn et al.).

    `--search-steps` is the number of steps. Learnt is what makes the true answers likely (against the edit), and then, from
    the start, what shuts the gate as well (against the gate). A gate that reads text sees the words that stand there, and
    gives nothing to learn from.
    """
    rows = Rows.of(material, opened, _place, count)
    words = starting_words(rows, usable_words(opened, rows.rows), count, material.seed)
    with training_only(opened.model):
        for variant in (EDIT, GATE) if _has_gate_to_learn_from(opened, rows, words) else (EDIT,):
            soft_KD = _learnt(opened, rows, words, shut_gates=variant == GATE)
            with changed_embeddings(embeddings_of(opened), _Put(words, soft_KD)):
                yield Trial(rows.probes(words, variant))


def _place(prompt: str, words: str) -> str:
    return f"{words} {prompt}"


class _Put:
    """Puts embeddings in the place of those of words.

    Args:
        words: the words.
        soft_KD: an embedding for each.
    """

    def __init__(self, words: Words, soft_KD: Tensor) -> None:
        self._ids_K, self._soft_KD = torch.tensor(words.ids, device=soft_KD.device), soft_KD

    def __call__(self, ids_BT: Tensor, h_BTD: Tensor) -> Tensor:
        found_BTK = ids_BT[..., None] == self._ids_K
        soft_BTD = self._soft_KD.to(h_BTD.dtype)[found_BTK.int().argmax(-1)]
        return torch.where(found_BTK.any(-1, keepdim=True), soft_BTD, h_BTD)


def _learnt(opened: Opened, rows: Rows, words: Words, *, shut_gates: bool) -> Tensor:
    """Embeddings (K, D) that were learnt in place of those of the words, from which they start."""
    table = embeddings_of(opened)
    soft_KD = _start(table, words)
    optimizer = torch.optim.Adam([soft_KD], lr=LEARNING_RATE * float(table.weight.float().std()))
    with changed_embeddings(table, _Put(words, soft_KD)):
        for step in range(opened.steps):
            optimizer.zero_grad()
            value = loss(opened, rows.batch(step, words), with_grad=True)
            (value + _openness(opened) if shut_gates else value).backward()
            optimizer.step()
    return soft_KD.detach()


def _start(table: nn.Embedding, words: Words) -> Tensor:
    """The embeddings (K, D) of the words, float32, to learn from there on."""
    return table.weight[torch.tensor(words.ids)].detach().float().clone().requires_grad_()


def _openness(opened: Opened) -> Tensor:
    """How far the gates of the last call are open, summed over gates, as a mean over rows; 0 without gates."""
    gates, thresholds_G = gates_of_last_call(opened.model), thresholds_of_last_call(opened.model)
    if gates is None or thresholds_G is None or not opened.adapters:
        return torch.zeros(())
    return softplus(gates[0].float() - thresholds_G).sum(1).mean()


def _has_gate_to_learn_from(opened: Opened, rows: Rows, words: Words) -> bool:
    """True if logits of gates have a gradient; of a model to compare with, always: it undergoes what the other one does."""
    if not opened.adapters:
        return opened.has_adapter
    table = embeddings_of(opened)
    with changed_embeddings(table, _Put(words, _start(table, words))):
        loss(opened, rows.batch(0, words), with_grad=True)
    return _openness(opened).requires_grad
