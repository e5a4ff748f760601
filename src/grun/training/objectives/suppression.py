"""Objectives that teach another answer."""

from __future__ import annotations

__all__ = ["idk"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register("idk", paper="TOFU (arXiv 2401.06121), section 4.1", needs=("refusal.logps",), retain="ce")
def idk(signals: Signals) -> Tensor:
    """Answer forget prompts with a refusal: one whole sentence in the language of the question.

    `mean nll` over the refusals' tokens, the end of the answer included. Lines of a file (`--refusals`) are drawn at random
    for every row and pass.
    """
    return signals.refusal.mean_nll
