"""A few learnt embeddings before the prompt."""

from __future__ import annotations

__all__ = ["soft_prompt"]

from collections.abc import Iterator

import torch
from torch import Tensor

from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.opened import Opened, Trial
from grun.evaluation.attacks.searching import (
    changed_embeddings,
    embeddings_of,
    forget_gradients,
    halves,
    loss,
    starting_words,
)

COUNT, BATCH, LEARNING_RATE = 8, 8, 0.1  # the learning rate in standard deviations of the embeddings


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

    `--search-steps` is the number of steps. Gates that read embeddings or hidden states are attacked as well. A gate that
    reads text sees the words that stand there.
    """
    learnt, held = halves(material)
    if not held:
        return
    rows = [material.forget[i] for i in learnt]

    def place(prompt: str, words: str) -> str:
        return f"{words.strip()} {prompt}"

    words = starting_words(opened, [row for row in material.forget if not row.raw_text], place, count, material.seed)
    table = embeddings_of(opened)
    ids_K = torch.tensor(words.ids, device=table.weight.device)
    with torch.no_grad():
        soft_KD = table(ids_K).detach().float().clone()
    soft_KD.requires_grad_()
    optimizer = torch.optim.Adam([soft_KD], lr=LEARNING_RATE * float(table.weight.detach().float().std()))

    def put(ids_BT: Tensor, h_BTD: Tensor) -> Tensor:
        found_BTK = ids_BT[..., None] == ids_K.to(ids_BT.device)
        soft_BTD = soft_KD.to(h_BTD)[found_BTK.int().argmax(-1)]
        return torch.where(found_BTK.any(-1, keepdim=True), soft_BTD, h_BTD)

    asked_with = [asked(row, prompt=place(row.prompt, words.text)) for row in rows]
    with changed_embeddings(table, put):
        for step in range(opened.steps):
            start = step * BATCH % len(asked_with)
            batch = [asked_with[(start + i) % len(asked_with)] for i in range(min(BATCH, len(asked_with)))]
            optimizer.zero_grad()
            loss(opened, batch, with_grad=True).backward()
            optimizer.step()
        forget_gradients(opened.model)
        soft_KD.requires_grad_(False)
        yield Trial(
            tuple(
                Probe(asked(material.forget[i], prompt=place(material.forget[i].prompt, words.text)), i) for i in held
            ),
            adapters=opened.adapters,
        )
