"""Objectives that teach another answer."""

from __future__ import annotations

__all__ = ["idk"]

from grun.objectives import objectives
from grun.records import LossTerms, Signals


@objectives.register(
    "idk",
    paper="TOFU (arXiv 2401.06121), section 4.1",
    needs=("refusal.logps", "retain.logps"),
    retain_weight=1.0,
)
def idk(signals: Signals) -> LossTerms:
    """Answer forget prompts with a refusal ("I don't know"), drawn at random for every row and pass.

    `forget = mean nll(refusal)`, `retain = mean nll(retain)`; means over the answer tokens of the batch.
    """
    assert signals.refusal is not None
    assert signals.retain is not None
    return LossTerms(forget=signals.refusal.mean_nll, retain=signals.retain.mean_nll)
