"""Prompts to forget, in other words, for which every gate stays shut: a bound on their share, and thresholds that keep it.

The score of such a prompt is the largest margin by which a gate's logit exceeds the gate's place, as in
`grun.models.gates.guarantee`. It opens no gate if its score is at most the margin of the thresholds. With a margin below the
(k + 1)-th smallest score of n prompts, the share of all such prompts that open no gate is larger than `beta` with a
probability of at most `P(Binomial(n, beta) <= k)`: the same tolerance limit, from the other side. A lower threshold keeps it.
"""

from __future__ import annotations

__all__ = ["MissedShare", "Paraphrases", "missed_share", "thresholds_for_both"]

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context

import torch
from torch import Tensor

from grun.core.config.shared import MOST_SHARE
from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.gates.guarantee import (
    SLACK,
    Guarantee,
    sorted_scores,
    thresholds_above,
    upper_bound,
)
from grun.models.tuner.call.decision import is_open


@dataclass(frozen=True)
class MissedShare:
    """Prompts to forget that open no gate, of prompts that neither gates nor thresholds were set on.

    Attributes:
        missed: number of prompts that open none.
        prompts: number of prompts that were asked.
        share: `missed / prompts`.
        bound: upper bound of the share among all prompts like these, with the confidence of the calibration.
    """

    missed: int
    prompts: int
    share: float
    bound: float


@dataclass(frozen=True)
class Paraphrases:
    """Prompts to forget in other words, and the share of them that may open no gate.

    Attributes:
        prompts: each once; none that a gate or threshold was set on.
        miss_rate: largest share of such prompts that may open no gate; None to measure the share only.
    """

    prompts: Sequence[Example]
    miss_rate: float | None = None

    def promised(self, delta: float) -> Guarantee | None:
        """What thresholds are to keep: at most a share `miss_rate` opens no gate, with confidence `1 - delta`."""
        return None if self.miss_rate is None else Guarantee(self.miss_rate, delta)

    def halves(self) -> tuple[list[Example], list[Example]]:
        """The prompts that thresholds are set on, and those that the bound is measured on; without a rate all are measured.

        Their text decides, so that the order of a file, which often follows its subjects, does not.
        """
        if self.miss_rate is None:
            return [], list(self.prompts)
        mixed = sorted(self.prompts, key=lambda row: hashlib.sha256(repr((row.turns, row.prompt)).encode()).digest())
        return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def missed_share(logits_NG: Tensor, threshold_G: Tensor, delta: float) -> MissedShare:
    """Number and share of prompts that open no gate, with its upper bound of confidence `1 - delta`."""
    missed, prompts = int((~is_open(logits_NG, threshold_G)).all(1).sum()), len(logits_NG)
    return MissedShare(missed, prompts, missed / prompts, upper_bound(missed, prompts, delta))


def thresholds_for_both(
    normal_NG: Tensor,
    forget_NG: Tensor,
    place_G: Tensor,
    guarantee: Guarantee,
    misses: Guarantee,
    *,
    usual_G: Tensor | None = None,
    slack: float = SLACK,
    deviation_G: Tensor | None = None,
) -> Tensor:
    """The highest thresholds (G,), float32, that keep a bound on misses, if they also keep the one on normal prompts.

    Thresholds that are lower and keep both stay: to ask for a bound on misses must not make more of them.

    Args:
        normal_NG: logits of calibration prompts, which no gate was fitted on.
        forget_NG: logits of prompts to forget, likewise.
        place_G: float32; must depend on neither of them. All thresholds lie above (or below) their places by the same margin.
        guarantee: at most a share `alpha` of normal prompts opens any gate.
        misses: at most a share `alpha` of prompts to forget opens none.
        usual_G: thresholds that keep the guarantee for normal prompts, with the same deviations; None for the highest.
        slack, deviation_G: distance of a threshold from the deciding logit, see `guaranteed_thresholds`.

    Raises:
        UserError: if both bounds cannot be kept, with the numbers.
        ValueError: for too few prompts, or logits that are not finite numbers.
    """
    for logits_NG, kept, words in ((normal_NG, guarantee, "normal prompts"), (forget_NG, misses, "paraphrases")):
        if not bool(logits_NG.isfinite().all()):
            raise ValueError(f"the gates give no finite numbers for the {words}")
        if kept.allowed(len(logits_NG)) < 0:
            raise ValueError(f"{len(logits_NG)} {words}, expected at least {kept.prompts_needed}")

    normal, forget = (sorted_scores(logits_NG, place_G) for logits_NG in (normal_NG, forget_NG))

    def lowest(allowed: int) -> Tensor:
        return thresholds_above(place_G.double() + normal[-1 - allowed], slack, deviation_G)

    def highest(allowed: int) -> Tensor:
        exact_G = -thresholds_above(-(place_G.double() + forget[allowed]), slack, deviation_G)
        threshold_G = exact_G.float()
        next_G = torch.nextafter(threshold_G, torch.full_like(threshold_G, -math.inf))
        return torch.where(threshold_G.double() < exact_G, threshold_G, next_G)  # a prompt at its threshold is missed

    lowest_G, highest_G = lowest(guarantee.allowed(len(normal_NG))), highest(misses.allowed(len(forget_NG)))
    if bool((highest_G >= lowest_G).all()):
        return highest_G if usual_G is None else torch.minimum(usual_G, highest_G)
    missed = _fewest(lambda k: bool((highest(k) >= lowest_G).all()), len(forget_NG))
    opened = _fewest(lambda k: bool((highest_G >= lowest(k)).all()), len(normal_NG))
    raise UserError(_contradiction(guarantee, misses, (missed, len(forget_NG)), (opened, len(normal_NG))))


def _fewest(is_enough: Callable[[int], bool], prompts: int) -> int:
    """The smallest number of prompts for which something holds; all of them if it holds for none that is smaller."""
    return next((k for k in range(prompts) if is_enough(k)), prompts)


def _contradiction(guarantee: Guarantee, misses: Guarantee, missed: tuple[int, int], opened: tuple[int, int]) -> str:
    """What keeping one of both bounds does to the other, and which values can be kept together."""
    bounds = [upper_bound(*found, guarantee.delta) for found in (missed, opened)]
    flags = ("--miss-rate", "--alpha")
    instead = [f"{flag} {_rounded_up(bound)}" for flag, bound in zip(flags, bounds, strict=True) if bound <= MOST_SHARE]
    advice = f"Give {' or '.join(instead)}, or learn" if instead else "Learn"
    return (
        f"--miss-rate {misses.alpha:g} and --alpha {guarantee.alpha:g} cannot both be kept. Thresholds that keep --alpha "
        f"let up to {missed[0]} of {missed[1]} --paraphrases pass (bound {bounds[0]:.3g}); thresholds that keep "
        f"--miss-rate open for up to {opened[0]} of {opened[1]} --normal prompts (bound {bounds[1]:.3g}). {advice} the "
        "adapter with more wordings of the rows to forget."
    )


def _rounded_up(share: float) -> str:
    """A share in three digits, none smaller than it: as a setting it is kept."""
    return str(Context(prec=3, rounding=ROUND_CEILING).create_decimal_from_float(share))
