"""Fitting of gates on cached features, before any edit is trained, and their thresholds from withheld prompts.

Gates that are trained together with the edits for a few hundred steps stay half open. The states that a gate reads do not
depend on the edit that it controls, so they are computed once and the gate is fitted on them like any small classifier.
"""

from __future__ import annotations

__all__ = [
    "ALONE",
    "BESIDE_TOPICS",
    "TEXT",
    "TOPICS",
    "GateFit",
    "Place",
    "chosen_thresholds",
    "fit_gates",
    "set_thresholds",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.process.progress import tracked
from grun.models.gates.features import GateFeatures, gates_of, joined
from grun.models.gates.guarantee import LOW_QUANTILE, POSITION
from grun.models.tuner.call.decision import is_open
from grun.models.tuner.edit import Gate

MAX_STEPS = 400
CHECK_EVERY = 10
PATIENCE = 250  # steps; rows without a name are learnt late
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.1
COMPARED_TOKENS = 20_000  # most retain tokens that prototypes are compared with
SAME_STATE = 1e-3  # squared distance, relative to the squared norm, below which two states are the same token


@dataclass(frozen=True)
class GateFit:
    """The fit of one gate.

    Attributes:
        layer: index of the layer that holds the gate.
        steps: optimiser steps taken.
        validation_loss: balanced cross-entropy on the validation rows, in nats.
    """

    layer: int
    steps: int
    validation_loss: float


@dataclass(frozen=True)
class Place:
    """Where the threshold of a gate is put.

    Attributes:
        share: of the normal prompts that may open any gate, those that may exceed this one, in [0, 1].
        position: in the gap between withheld normal prompts (0) and prompts to forget (1), where there is one.
        least: lowest threshold, in logits.
    """

    share: float
    position: float
    least: float = -math.inf


ALONE = Place(1.0, POSITION)
# Evidence of text is counted in the same way for every request, and opens a gate from here on.
TEXT = Place(0.5, 0.0, 3.5)
# Prompts to forget that are still to come lie further from those given in what they are about than in the names they hold.
TOPICS = Place(1.0, 0.25)
# What a gate for names knows lies clear of normal prompts, so that it needs less room than the gate for topics beside it.
BESIDE_TOPICS = Place(0.5, POSITION)


def fit_gates(
    model: nn.Module,
    forget: Sequence[GateFeatures],
    retain: Sequence[GateFeatures],
    validation: Sequence[GateFeatures],
    *,
    seed: int = 0,
    adapter: str = "default",
    only: Sequence[int] | None = None,
) -> list[GateFit]:
    """Fit gates for names of `adapter`: forget prompts open it, retain prompts close it, both classes weigh the same.

    A gate that pools over several tokens also learns to stay closed for retain prompts in which one token was replaced by one
    of a forget prompt: names share pieces with other names, so no single piece may open it. Half of its detectors start as
    prototypes of tokens that only forget prompts have. With random detectors alone the largest logit of most prompts is at a
    token that all prompts share, and the fit may never find the few words that differ.

    Args:
        model: PEFT model with a GRUN adapter.
        forget, retain: features of the prompts to learn from, one entry per gate.
        validation: features of normal prompts that the fit never learns from; the best state on them is kept.
        seed: seed of the replaced tokens and of the prototypes.
        adapter: name of the adapter.
        only: positions of the gates to fit; None for all.
    """
    gates = gates_of(model, adapter)
    gates = gates if only is None else [gates[i] for i in only]
    parts = zip(gates, forget, retain, validation, strict=True)
    return [_fit(gate, index, f, r, v, seed) for (index, gate), f, r, v in parts]


@torch.no_grad()
def set_thresholds(
    model: nn.Module,
    forget_NG: Tensor,
    normal: Sequence[tuple[Tensor, float]],
    places: Sequence[Place],
    *,
    adapter: str = "default",
) -> Tensor:
    """Set the thresholds of a model's gates to `chosen_thresholds`.

    Args:
        model: PEFT model with a GRUN adapter whose gates are fitted.
        forget_NG, normal, places: as of `chosen_thresholds`.
        adapter: name of the adapter.

    Returns:
        The thresholds (G,).
    """
    threshold_G = chosen_thresholds(forget_NG, normal, places)
    for (_, gate), threshold in zip(gates_of(model, adapter), threshold_G, strict=True):
        gate.threshold.copy_(threshold)
    return threshold_G


def chosen_thresholds(forget_NG: Tensor, normal: Sequence[tuple[Tensor, float]], places: Sequence[Place]) -> Tensor:
    """Thresholds (G,) for which at most a given share of withheld normal prompts opens any gate.

    A threshold just above the withheld prompts would suit these alone. Where forget prompts lie clear of them, it is put
    into the gap, nearer to the forget prompts, which only lowers the share. With several gates, the numbers of prompts that
    may exceed each gate's threshold keep the ratio of their shares: the largest for which the union of the gates keeps the
    bound.

    Args:
        forget_NG: logits of the forget prompts.
        normal: logits (N, G) of normal prompts that no gate was fitted on, one entry for each kind of them, each with the
            largest share that may open a gate, in [0, 1].
        places: of the threshold of each gate.
    """
    share_G, position_G = (forget_NG.new_tensor([getattr(p, name) for p in places]) for name in ("share", "position"))
    low_G = torch.stack([_lowest_thresholds(logits_NG, rate, share_G) for logits_NG, rate in normal]).amax(0)
    high_G = forget_NG.quantile(LOW_QUANTILE, dim=0)
    least_G = forget_NG.new_tensor([place.least for place in places])
    return torch.maximum(low_G + position_G * (high_G - low_G).clamp_min(0.0), least_G)


def _lowest_thresholds(normal_NG: Tensor, false_positive_rate: float, share_G: Tensor) -> Tensor:
    """Thresholds (G,) that at most the given share of prompts exceeds in any gate."""
    allowed = int(false_positive_rate * len(normal_NG))
    descending_NG = normal_NG.sort(dim=0, descending=True).values
    for exceeding in range(min(allowed, len(normal_NG) - 1), -1, -1):
        exceeding_G = (exceeding * share_G).long().to(normal_NG.device)
        low_G = descending_NG.gather(0, exceeding_G[None])[0]
        if int(is_open(normal_NG, low_G).any(1).sum()) <= allowed:
            break
    return low_G


def _balanced_loss(gate: Gate, forget: GateFeatures, *normal: GateFeatures) -> Tensor:
    """Binary cross-entropy (nats) in which both classes weigh the same. All parts share one `h_UD`."""
    x_UK, softplus = gate.detect(forget.h_UD), nn.functional.softplus
    normal_N = torch.cat([part.logits(gate, x_UK) for part in normal])
    return 0.5 * softplus(-forget.logits(gate, x_UK)).mean() + 0.5 * softplus(normal_N).mean()


def _with_borrowed_token(normal: GateFeatures, forget: GateFeatures, generator: torch.Generator) -> GateFeatures:
    """Normal prompts with one token of each replaced by one of a forget prompt."""
    at_NP, device = normal.at_NP.clone(), normal.at_NP.device
    rows_N = torch.arange(len(at_NP), device=device)
    token_N = (torch.rand(len(at_NP), generator=generator).to(device) * normal.mask_NP.sum(1)).long()
    at_M = forget.at_M
    at_NP[rows_N, token_N] = at_M[torch.randint(len(at_M), (len(at_NP),), generator=generator).to(device)]
    return replace(normal, at_NP=at_NP)


def _scale(parts: Sequence[GateFeatures]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (D,) over all tokens of parts that share one `h_UD`."""
    h_UD = parts[0].h_UD.float()
    count_U = torch.bincount(torch.cat([part.at_M for part in parts]), minlength=len(h_UD)).to(h_UD)
    mean_D = count_U @ h_UD / count_U.sum()
    std_D = (count_U @ (h_UD - mean_D).square() / (count_U.sum() - 1)).sqrt()
    return mean_D, std_D.clamp_min(1e-6)


def _fit(
    gate: Gate, index: int, forget: GateFeatures, retain: GateFeatures, validation: GateFeatures, seed: int
) -> GateFit:
    """Full-batch AdamW on standardised features until the validation loss stops falling; the best state is kept."""
    mean_D, std_D = _scale(joined([forget, retain]))
    forget, retain, validation = (
        replace(part, h_UD=(part.h_UD.float() - mean_D) / std_D) for part in (forget, retain, validation)
    )
    learning, checking = joined([forget, retain]), joined([forget, validation])
    generator = torch.Generator().manual_seed(seed)
    if gate.window > 1:
        _start_at_prototypes(gate, learning[0], learning[1], generator)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best, best_step, best_state = math.inf, 0, _copied(gate)
    step = 0
    for step in tracked(range(1, MAX_STEPS + 1), "fit the gate", MAX_STEPS, "step", lambda _: 1):
        optimizer.zero_grad()
        borrowed = [_with_borrowed_token(learning[1], learning[0], generator)] if gate.window > 1 else []
        _balanced_loss(gate, *learning, *borrowed).backward()
        optimizer.step()
        if step % CHECK_EVERY:
            continue
        with torch.no_grad():
            loss = float(_balanced_loss(gate, *checking))
        if loss < best:
            best, best_step, best_state = loss, step, _copied(gate)
        elif step - best_step >= PATIENCE:
            break
    gate.load_state_dict(best_state)
    _fold_standardisation(gate.layers[0], mean_D, std_D)
    return GateFit(index, step, best)


@torch.no_grad()
def _start_at_prototypes(gate: Gate, forget: GateFeatures, retain: GateFeatures, generator: torch.Generator) -> None:
    """Set half of the detectors to 1 at the state of a forget token, and to 0 halfway to any state orthogonal to it."""
    first: Any = gate.layers[0]
    count = first.out_features // 2
    found_KD = _prototypes(forget, retain, count, generator)
    first.weight[: len(found_KD)] = 2 * found_KD / found_KD.square().sum(1, keepdim=True)
    first.bias[: len(found_KD)] = -1.0
    head: Any = gate.layers[1]
    if head.out_features == 1:  # one prototype alone gives a logit of 0, two give 1
        head.weight[:, : len(found_KD)] = 1.0
        head.bias.fill_(-1.0)


def _prototypes(forget: GateFeatures, retain: GateFeatures, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` of the forget states, by k-means++ seeding for which the retain states are centres already.

    A token is drawn with a probability that grows with its squared distance from all centres (Arthur and Vassilvitskii,
    2007), so states that occur in retain prompts are never drawn, and none is drawn twice.
    """
    h_UD, at_M, retain_at_M = forget.h_UD, forget.at_M, retain.at_M
    compared = torch.randperm(len(retain_at_M), generator=generator)[:COMPARED_TOKENS].to(at_M.device)
    centres_UD = retain.h_UD[retain_at_M[compared].unique()]
    distance_U = torch.cat([torch.cdist(part, centres_UD).amin(1) for part in h_UD.split(256)]).square()
    same_U = SAME_STATE * h_UD.square().sum(1)
    chosen: list[Tensor] = []
    for _ in range(count):
        distance_U = torch.where(distance_U > same_U, distance_U, 0.0)
        distance_M = distance_U[at_M].cpu()
        if not bool(distance_M.any()):
            break
        drawn_D = h_UD[at_M[int(torch.multinomial(distance_M, 1, generator=generator))]]
        chosen.append(drawn_D)
        distance_U = torch.minimum(distance_U, (h_UD - drawn_D).square().sum(1))
    return torch.stack(chosen) if chosen else h_UD[:0]


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _fold_standardisation(first: nn.Module, mean_D: Tensor, std_D: Tensor) -> None:
    """Change a first layer that was fitted on standardised features so that it reads raw ones."""
    assert isinstance(first, nn.Linear)
    first.weight.div_(std_D)
    first.bias.sub_(first.weight @ mean_D)
