"""Random signals for tests of objectives, as rows of a plain formula and as the package sees them."""

from __future__ import annotations

__all__ = ["HIDDEN", "LENGTHS", "SIDES", "VOCABULARY", "everything", "gradients", "leaves_of", "of_side", "plain_side"]

from typing import Any

import torch
from torch import Tensor

from grun.core.records import SideSignals, Signals
from grun.training.loss.terms import steering_direction
from support.plain_objectives import Row

VOCABULARY, HIDDEN = 7, 5
LENGTHS = (3, 5, 1, 2)
SIDES = ("forget", "refusal", "alternative", "retain")


def plain_side(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 1.5

    return [
        Row(
            noise(n, VOCABULARY).requires_grad_(),
            noise(n, VOCABULARY),
            torch.randint(VOCABULARY, (n,), generator=generator).tolist(),
            noise(n, HIDDEN).requires_grad_(),
            noise(n, HIDDEN),
        )
        for n in lengths
    ]


def of_side(rows: list[Row], padding: tuple[int, int] = (1, 2)) -> SideSignals:
    """The same rows as the package sees them, prompts and padding masked."""
    width = padding[0] + max(len(row.tokens) for row in rows) + padding[1]
    mask_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        mask_BT[i, padding[0] : padding[0] + len(row.tokens)] = True
    targets = torch.tensor([token for row in rows for token in row.tokens])
    logits, base = (torch.cat([getattr(row, name) for row in rows]) for name in ("logits", "base_logits"))
    picked = targets[:, None]
    quantities = {
        "targets": targets,
        "logits": logits,
        "ref_logits": base,
        "logps": logits.log_softmax(1).gather(1, picked)[:, 0],
        "ref_logps": base.log_softmax(1).gather(1, picked)[:, 0],
        "hidden": torch.cat([row.hidden for row in rows]),
        "ref_hidden": torch.cat([row.base_hidden for row in rows]),
    }
    return SideSignals(mask_BT, quantities)


def everything(seed: int = 0) -> tuple[dict[str, Any], Signals]:
    rows: dict[str, Any] = {side: plain_side(10 * seed + i) for i, side in enumerate(SIDES)}
    steering = steering_direction(HIDDEN, seed).double()
    return rows | {"steering": steering}, Signals({side: of_side(rows[side]) for side in SIDES}, steering)


def leaves_of(rows: dict[str, Any]) -> list[Tensor]:
    return [leaf for side in SIDES for row in rows[side] for leaf in (row.logits, row.hidden)]


def gradients(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
