"""Fit of a gate for topics: the prompts that it keeps, and the logits of prompts as if it did not keep them."""

from __future__ import annotations

__all__ = ["KeptPrompts", "fit_topic_gate", "withheld_logits"]

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grun.models.tuner.readers.topic import TopicGate

MOST_KEPT = 2048  # normal prompts: those closest to prompts to forget, and as many others at random
SHARPNESS = 40.0  # logits per unit of cosine similarity
OPEN_LOGIT = 4.0  # of a prompt at the threshold: an open gate is worth at least 0.98


@dataclass(frozen=True)
class KeptPrompts:
    """Prompts of one kind, as a gate for topics compares with them.

    Attributes:
        embedding_NK: unit vectors.
        groups: a name for each prompt; prompts of one group are withheld together.
    """

    embedding_NK: Tensor
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.embedding_NK) == len(self.groups), "a group for each prompt"

    @classmethod
    def of(cls, parts: Sequence[KeptPrompts]) -> KeptPrompts:
        """The prompts of all parts, one after the other."""
        groups = tuple(group for part in parts for group in part.groups)
        return cls(torch.cat([part.embedding_NK for part in parts]), groups)

    def at(self, numbers: Sequence[int]) -> KeptPrompts:
        """The prompts with these numbers."""
        return KeptPrompts(self.embedding_NK[list(numbers)], tuple(self.groups[i] for i in numbers))


def fit_topic_gate(
    gate: TopicGate, forget: KeptPrompts, normal: KeptPrompts, false_positive_rate: float, *, seed: int = 0
) -> KeptPrompts:
    """Choose the prompts that the gate keeps, and scale its logit.

    The logit is `OPEN_LOGIT` where the given share of normal prompts, each compared without those of its own group, would
    open the gate.

    Args:
        gate: has its head already.
        forget: prompts to forget; all are kept.
        normal: normal prompts; of many, those that are closest to the prompts to forget are kept, and some of the others.
        false_positive_rate: share of normal prompts, in [0, 1].
        seed: of the draw of the others.

    Returns:
        The normal prompts that are kept.
    """
    kept = normal.at(_worth_keeping(forget.embedding_NK, normal.embedding_NK, seed))
    gate.keep(forget.embedding_NK, kept.embedding_NK)
    gate.scale.fill_(1.0)
    gate.bias.zero_()
    closeness_N = withheld_logits(gate, normal, forget, kept)
    above = min(int(false_positive_rate * len(closeness_N)), len(closeness_N) - 1)
    gate.scale.fill_(SHARPNESS)
    gate.bias.fill_(OPEN_LOGIT - SHARPNESS * float(closeness_N.sort(descending=True).values[above]))
    return kept


@torch.no_grad()
def withheld_logits(gate: TopicGate, prompts: KeptPrompts, forget: KeptPrompts, normal: KeptPrompts) -> Tensor:
    """Logits (N,) of prompts as if the gate did not keep any prompt of the same group.

    Args:
        gate: the gate.
        prompts: those to judge.
        forget, normal: those that the gate keeps.
    """
    closeness = [_closeness_to_others(prompts, kept, gate.nearest) for kept in (forget, normal)]
    return gate.scale.cpu() * (closeness[0] - closeness[1]) + gate.bias.cpu()


def _closeness_to_others(prompts: KeptPrompts, kept: KeptPrompts, nearest: int) -> Tensor:
    """Mean cosine similarity (N,) with the nearest kept prompts of other groups."""
    names = {name: i for i, name in enumerate(dict.fromkeys((*prompts.groups, *kept.groups)))}
    own_N, own_E = (torch.tensor([names[name] for name in one.groups]) for one in (prompts, kept))
    found = []
    for part_NK, group_N in zip(prompts.embedding_NK.split(512), own_N.split(512), strict=True):
        similarity_NE = part_NK @ kept.embedding_NK.T
        similarity_NE = similarity_NE.masked_fill(group_N[:, None] == own_E, -1.0)
        found.append(similarity_NE.topk(min(nearest, len(own_E)), dim=1).values.mean(1))
    return torch.cat(found)


def _worth_keeping(forget_EK: Tensor, normal_NK: Tensor, seed: int) -> list[int]:
    """Numbers of the normal prompts to keep, in their order."""
    if len(normal_NK) <= MOST_KEPT:
        return list(range(len(normal_NK)))
    closest_N = (normal_NK @ forget_EK.T).amax(1).argsort(descending=True)
    near, far = closest_N[: MOST_KEPT // 2], closest_N[MOST_KEPT // 2 :]
    drawn = far[torch.randperm(len(far), generator=torch.Generator().manual_seed(seed))[: MOST_KEPT // 2]]
    return sorted(torch.cat([near, drawn]).tolist())
