"""Thresholds of gates with a guarantee for unseen normal prompts.

Let a normal prompt's score be the margin by which its largest gate exceeds the gate's place, a number that does not depend on
the calibration prompts. One threshold on the score then decides for all gates together. With the (k + 1)-th largest score of n
calibration prompts as the threshold, the share of normal traffic above it is larger than alpha with a probability of at most
`P(Binomial(n, alpha) <= k)`, whatever the distribution of scores, as long as calibration prompts and traffic are drawn
independently from the same one: a one-sided tolerance limit (Wilks, 1941), known as training-conditional validity of inductive
conformal prediction (Vovk, 2012, proposition 2a). A higher threshold keeps the bound.
"""

from __future__ import annotations

__all__ = [
    "LOW_QUANTILE",
    "POSITION",
    "SLACK",
    "Guarantee",
    "guaranteed_thresholds",
    "sorted_scores",
    "thresholds_above",
    "upper_bound",
    "usual_place",
]

import math
from dataclasses import dataclass

import torch
from scipy.stats import beta, binom
from torch import Tensor

LOW_QUANTILE = 0.05  # of forget logits: the place of a gate where forget prompts are given
SLACK = 1e-3  # relative; other code rounds the same prompt differently
POSITION = 2 / 3  # of a threshold in the gap between normal and forget prompts; unseen normal prompts may score higher


@dataclass(frozen=True)
class Guarantee:
    """At most a share `alpha` of normal prompts opens any gate, with confidence `1 - delta` over the calibration prompts.

    The same numbers serve for prompts to forget that open no gate, see `grun.models.gates.misses`.

    Attributes:
        alpha, delta: both in (0, 1).
    """

    alpha: float
    delta: float

    @property
    def prompts_needed(self) -> int:
        """Fewest calibration prompts for this guarantee; with so few, none of them may open a gate."""
        return math.ceil(math.log(self.delta) / math.log1p(-self.alpha))

    def allowed(self, prompts: int) -> int:
        """Largest number of the calibration prompts that may open a gate; -1 if there are too few prompts for the guarantee.

        It is the largest k with `P(Binomial(prompts, alpha) <= k) <= delta`.
        """
        k = int(binom.ppf(self.delta, prompts, self.alpha))
        while k >= 0 and binom.cdf(k, prompts, self.alpha) > self.delta:
            k -= 1
        return k


def upper_bound(count: int, prompts: int, delta: float) -> float:
    """The largest share of all prompts that is plausible when `count` of `prompts` have a property.

    The share is larger with a probability of at most `delta`: the exact one-sided limit of Clopper and Pearson (1934).
    """
    return 1.0 if count == prompts else float(beta.ppf(1 - delta, count + 1, prompts - count))


def sorted_scores(logits_NG: Tensor, place_G: Tensor) -> list[float]:
    """Scores of prompts, the smallest first: the largest margin by which a gate's logit exceeds its place."""
    scores: list[float] = (logits_NG.double() - place_G.double()).amax(1).sort().values.tolist()
    return scores


def thresholds_above(exact_G: Tensor, slack: float = SLACK, deviation_G: Tensor | None = None) -> Tensor:
    """Thresholds (G,), float64, above logits (G,) by more than rounding moves them; see `guaranteed_thresholds`."""
    above_G = slack * (1 + exact_G.abs())
    return exact_G + (above_G if deviation_G is None else torch.maximum(above_G, deviation_G.double()))


def guaranteed_thresholds(
    normal_NG: Tensor,
    place_G: Tensor,
    guarantee: Guarantee,
    *,
    slack: float = SLACK,
    deviation_G: Tensor | None = None,
    lower: bool = False,
) -> Tensor:
    """Thresholds (G,), float32, with which the guarantee holds for all gates together.

    The place of a gate is the logit at which it is to open if normal prompts allow it. Its threshold is the place, or higher.

    Args:
        normal_NG: logits of calibration prompts, which no gate was fitted on.
        place_G: float32; must not depend on the calibration prompts.
        guarantee: the guarantee to give.
        slack: distance of a threshold above the deciding logit, relative to 1 + that logit's magnitude.
        deviation_G: smallest distance above it, absolute: the change of a logit with the batch that it is read in.
        lower: allow thresholds below the places, which are then the logits at which forget prompts begin. If normal prompts
            lie clear below them, thresholds are put into the gap, nearer to the places.

    Raises:
        ValueError: for too few prompts, or logits that are not finite numbers.
    """
    if not bool(normal_NG.isfinite().all()):
        raise ValueError("the gates give no finite numbers for the normal prompts")
    allowed = guarantee.allowed(len(normal_NG))
    if allowed < 0:
        raise ValueError(f"{len(normal_NG)} prompts, expected at least {guarantee.prompts_needed}")
    margin = sorted_scores(normal_NG, place_G)[-1 - allowed]
    decided_G = place_G.double() + (margin * (1 - POSITION) if lower and margin < 0 else margin)
    exact_G = thresholds_above(decided_G, slack, deviation_G)
    if not lower:
        exact_G = torch.maximum(exact_G, place_G.double())
    threshold_G = exact_G.float()
    next_G = torch.nextafter(threshold_G, torch.full_like(threshold_G, math.inf))
    return torch.where(threshold_G.double() < exact_G, next_G, threshold_G)  # rounded up: the bound must survive it


def usual_place(threshold_G: Tensor) -> Tensor:
    """Places (G,) of gates with these thresholds: the thresholds, or 0 (half open) for a gate without one (-inf)."""
    return torch.where(threshold_G.isfinite(), threshold_G, 0.0)
