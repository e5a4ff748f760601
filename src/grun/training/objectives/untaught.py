"""An objective that answers as if the subject had never been taught."""

from __future__ import annotations

__all__ = ["untaught"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "untaught",
    paper="Liu et al. 2024 (arXiv 2407.16997), section 4; Eldan and Russinovich 2023 (arXiv 2310.02238)",
    needs=("alternative.logps",),
    retain="ce",
    alternatives="unknown",
)
def untaught(signals: Signals) -> Tensor:
    """Answer as if the subject had never been taught: as the base model answers about names that nobody has.

    `mean nll` over the tokens of alternative answers, the end of the answer included. The answers are the base model's own to
    the same prompts with the names of subjects exchanged for unknown ones, and the true names written back.
    """
    return signals.alternative.mean_nll
