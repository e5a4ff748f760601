"""Objectives that lower the likelihood of the answers directly."""

from __future__ import annotations

__all__ = ["gd"]

from grun.objectives import objectives
from grun.records import LossTerms, Signals


@objectives.register(
    "gd",
    paper="Liu et al. 2022 (arXiv 2203.12817); TOFU (arXiv 2401.06121)",
    needs=("forget.logps", "retain.logps"),
    retain_weight=2.0,
)
def gd(signals: Signals) -> LossTerms:
    """Gradient difference: ascend on the forget answers, descend on the retain answers.

    `forget = -mean nll(forget)`, `retain = mean nll(retain)`; means over the answer tokens of the batch. The forget term is
    not bounded from below.
    """
    assert signals.forget is not None
    assert signals.retain is not None
    return LossTerms(forget=-signals.forget.mean_nll, retain=signals.retain.mean_nll)
