"""Thresholds of gates with a guarantee for normal prompts that nobody has seen yet.

Let a normal prompt's score be the margin by which its largest gate exceeds the gate's place, a number that does not depend on
the calibration prompts. One threshold on the score then decides for all gates together. With the (k + 1)-th largest score of n
calibration prompts as the threshold, the share of normal traffic above it is larger than alpha with a probability of at most
`P(Binomial(n, alpha) <= k)`, whatever the distribution of scores, as long as calibration prompts and traffic are drawn
independently from the same one: a one-sided tolerance limit (Wilks, 1941), known as training-conditional validity of inductive
conformal prediction (Vovk, 2012, proposition 2a). A higher threshold keeps the bound.
"""

from __future__ import annotations

__all__ = ["LOW_QUANTILE", "POSITION", "Guarantee", "guaranteed_thresholds", "usual_place"]

import math
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

LOW_QUANTILE = 0.05  # of forget logits: where a gate is to open, if normal prompts allow it
SLACK = 1e-3  # relative: a prompt that is read by other code has another rounding
POSITION = 2 / 3  # of a threshold in a gap: forget prompts are known, normal ones may be anything


@dataclass(frozen=True)
class Guarantee:
    """At most a share `alpha` of normal prompts opens any gate, with confidence `1 - delta` over the calibration prompts.

    Attributes:
        alpha, delta: as asked for, both in (0, 1).
    """

    alpha: float
    delta: float

    @property
    def prompts_needed(self) -> int:
        """Fewest calibration prompts with which this can be promised; then none of them may open a gate."""
        return math.ceil(math.log(self.delta) / math.log1p(-self.alpha))

    def allowed(self, prompts: int) -> int:
        """How many of so many calibration prompts may open a gate: the largest k for which the bound holds; -1 for none.

        It is -1 where there are too few prompts for any threshold.
        """
        k = int(binom.ppf(self.delta, prompts, self.alpha))
        while k >= 0 and binom.cdf(k, prompts, self.alpha) > self.delta:
            k -= 1
        return k


def guaranteed_thresholds(
    normal_NG: Tensor,
    place_G: Tensor,
    guarantee: Guarantee,
    *,
    slack: float = SLACK,
    deviation_G: Tensor | None = None,
    lower: bool = False,
) -> Tensor:
    """A float32 threshold (G,) for each gate, for which the guarantee holds for all gates together.

    A place is where a gate is to open if normal prompts allow it: thresholds are there, or higher.

    Args:
        normal_NG: logits of calibration prompts, which no gate was fitted on.
        place_G: float32; must not depend on the calibration prompts.
        guarantee: what to promise.
        slack: how far above the deciding prompt, relative to 1 + its distance from 0.
        deviation_G: at least so far above it, absolutely: how much a logit changes with the batch that it is read in.
        lower: places are where forget prompts begin. If normal prompts lie clear below, thresholds are put into the gap,
            nearer to the places, since what is unknown may be anything.

    Raises:
        ValueError: for too few prompts, or logits that are no finite numbers.
    """
    if not bool(normal_NG.isfinite().all()):
        raise ValueError("the gates give no finite numbers for the normal prompts")
    allowed = guarantee.allowed(len(normal_NG))
    if allowed < 0:
        raise ValueError(f"{len(normal_NG)} prompts, expected at least {guarantee.prompts_needed}")
    margin_N = (normal_NG.double() - place_G.double()).amax(1)
    margin = float(margin_N.sort(descending=True).values[allowed])
    exact_G = place_G.double() + (margin * (1 - POSITION) if lower and margin < 0 else margin)
    above_G = slack * (1 + exact_G.abs())
    exact_G = exact_G + (above_G if deviation_G is None else torch.maximum(above_G, deviation_G.double()))
    if not lower:
        exact_G = torch.maximum(exact_G, place_G.double())
    threshold_G = exact_G.float()
    next_G = torch.nextafter(threshold_G, torch.full_like(threshold_G, math.inf))
    return torch.where(threshold_G.double() < exact_G, next_G, threshold_G)  # rounded up: the bound must survive it


def usual_place(threshold_G: Tensor) -> Tensor:
    """Where gates with these thresholds are to open: there, or half open at a logit of 0 if they have none (-inf)."""
    return torch.where(threshold_G.isfinite(), threshold_G, 0.0)
