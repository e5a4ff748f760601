"""The whole loss of a run: an objective, a retain loss and the gate's cross-entropy, each with its weight."""

from __future__ import annotations

__all__ = ["Recipe", "Weights", "gate_loss", "loss_terms", "split_sides", "steering_direction"]

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from grun.core.records import LossTerms, SideSignals, Signals


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms: `L = forget * L_forget + retain * L_retain + gate * L_gate` (arXiv 2502.17823, eq. 5).

    Attributes:
        forget, retain, gate: weights of the terms.
        forget_class: weight of forget prompts in the gate's cross-entropy; retain prompts have 1.
        warmup: number of steps over which the weights of the forget and retain terms grow from 0; the gate's is constant.
    """

    forget: float
    retain: float
    gate: float
    forget_class: float = 1.0
    warmup: int = 0

    def warmed(self, step: int) -> float:
        """Factor of the forget and retain terms at a step; the first step is 0."""
        return 1.0 if self.warmup == 0 else min(1.0, (step + 1) / self.warmup)


@dataclass(frozen=True)
class Recipe:
    """The loss that a run minimises.

    Attributes:
        objective: forget loss with its settings bound.
        retain_loss: loss on retain rows.
        needs: quantities by side that both losses read, in the order of the sides in a batch (see `needs_of`).
        weights: weights of the terms.
        hidden_layer: decoder layer whose output the quantity `hidden` is; None if no loss reads it.
        steering_D: fixed random direction; None if no loss reads hidden states.
    """

    objective: Callable[[Signals], Tensor]
    retain_loss: Callable[[SideSignals], Tensor]
    needs: Mapping[str, set[str]]
    weights: Weights
    hidden_layer: int | None = None
    steering_D: Tensor | None = None

    @property
    def sides(self) -> list[str]:
        """Names of the sides of a batch; a trained gate needs retain prompts even if no loss reads them."""
        gated = self.weights.gate > 0 and "retain" not in self.needs
        return [*self.needs, "retain"] if gated else list(self.needs)

    def wanted(self) -> set[str]:
        """Quantities of the trained model that the losses read on any side."""
        return {quantity for side in self.needs for quantity in self.wanted_of(side)}

    def wanted_of(self, side: str) -> frozenset[str]:
        """Those that they read on one side; `targets` are there in any case."""
        return frozenset(q for q in self.needs.get(side, ()) if not q.startswith("ref_") and q != "targets")

    def references(self, side: str) -> set[str]:
        """Quantities of the base model that the losses read on a side, without the prefix `ref_`."""
        return {q.removeprefix("ref_") for q in self.needs.get(side, ()) if q.startswith("ref_")}

    @property
    def reads_tokens(self) -> bool:
        """True if the losses read predictions; if not, no parameter above the hidden layer can be trained."""
        return bool(self.wanted() & {"logps", "logits"})


def steering_direction(hidden_size: int, seed: int) -> Tensor:
    """Random direction (D,) of unit length with uniform entries in [0, 1), as in RMU (arXiv 2403.03218)."""
    generator = torch.Generator().manual_seed(seed)
    direction_D = torch.rand(hidden_size, generator=generator, dtype=torch.float32)
    return direction_D / direction_D.norm()


def split_sides(
    joined: SideSignals,
    sides: Sequence[str],
    references: Mapping[str, Mapping[str, Tensor]],
    token_counts: Mapping[str, float] | None = None,
    wanted: Mapping[str, Collection[str]] | None = None,
) -> dict[str, SideSignals]:
    """Signals by side of a batch that holds the same number of rows of every side, one side after the other.

    Args:
        joined: signals of the whole batch.
        sides: names of the sides.
        references: by side, the base model's quantities without the prefix `ref_`.
        token_counts: by side, the divisor of means over tokens; None to divide by the number of tokens in the batch.
        wanted: by side, the quantities that the joined signals have of its rows; None for all of them.
    """
    masks = joined.mask_BT.split(len(joined.mask_BT) // len(sides))
    counts = [int(mask_BT.sum()) for mask_BT in masks]
    parts: dict[str, dict[str, Tensor]] = {side: {} for side in sides}
    for name, values in joined.quantities.items():
        holders = [i for i, side in enumerate(sides) if wanted is None or name == "targets" or name in wanted[side]]
        for i, part in zip(holders, values.split([counts[i] for i in holders]), strict=True):
            parts[sides[i]][name] = part
    found = {}
    for i, side in enumerate(sides):
        own = parts[side]
        own |= {f"ref_{name}": _widened(values, joined.mask_BT) for name, values in references.get(side, {}).items()}
        found[side] = SideSignals(masks[i], own, None if token_counts is None else token_counts[side])
    return found


def _widened(values: Tensor, like: Tensor) -> Tensor:
    """Values on the device of `like`, in float32 or wider."""
    return values.to(like.device, torch.promote_types(torch.float32, values.dtype))


def gate_loss(logits_BG: Tensor, is_forget_B: Tensor, forget_class: float = 1.0) -> Tensor:
    """Binary cross-entropy of every gate, 1 for forget prompts, 0 for retain prompts, averaged over gates and rows.

    Args:
        logits_BG: gate logits.
        is_forget_B: bool, true for forget prompts.
        forget_class: weight of the forget rows' terms (the mean still divides by the number of rows).
    """
    target_BG = is_forget_B.to(logits_BG)[:, None].expand_as(logits_BG)
    weight = torch.tensor(forget_class, device=logits_BG.device, dtype=logits_BG.dtype)
    return binary_cross_entropy_with_logits(logits_BG, target_BG, pos_weight=weight)


def loss_terms(recipe: Recipe, sides: Mapping[str, SideSignals], gate_logits_BG: Tensor | None) -> LossTerms:
    """All terms of the loss of one batch, unweighted.

    Args:
        recipe: the loss that is minimised.
        sides: signals by side.
        gate_logits_BG: gate logits of the whole batch, one side after the other; None if no gate is trained.
    """
    forget = recipe.objective(Signals(sides, recipe.steering_D))
    retain = recipe.retain_loss(sides["retain"]) if "retain" in sides else None
    if gate_logits_BG is None:
        return LossTerms(forget, retain)
    rows = len(gate_logits_BG) // len(sides)
    is_forget_B = torch.tensor([side != "retain" for side in sides], device=gate_logits_BG.device).repeat_interleave(
        rows
    )
    return LossTerms(forget, retain, gate_loss(gate_logits_BG, is_forget_B, recipe.weights.forget_class))
