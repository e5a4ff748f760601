"""Objectives that teach another answer."""

from __future__ import annotations

__all__ = ["idk"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register("idk", paper="TOFU (arXiv 2401.06121), section 4.1", needs=("refusal.logps",), retain="ce")
def idk(signals: Signals) -> Tensor:
    """Answer forget prompts with a refusal ("I don't know"), drawn at random for every row and pass.

    `mean nll` over the refusals' tokens.
    """
    return signals.refusal.mean_nll
