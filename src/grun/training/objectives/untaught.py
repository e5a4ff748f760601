"""An objective that answers as if the subject had never been taught."""

from __future__ import annotations

__all__ = ["untaught"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "untaught",
    paper="Liu et al. 2024 (arXiv 2407.16997), section 4; Eldan and Russinovich 2023 (arXiv 2310.02238)",
    needs=("alternative.logps", "forget.logps"),
    retain="ce",
    above={"push": 0.0},
    alternatives="unknown",
)
def untaught(signals: Signals, *, margin: float = 3.0, push: float = 0.3) -> Tensor:
    """Answer as if the subject had never been taught: as the base model answers about names that nobody has.

    `mean nll(alternative) + push * mean_B max(0, margin - nll / n)`, the first mean over the alternatives' tokens, the end of
    the answer included. Alternatives are the base model's own answers to the same prompts with the names of subjects
    exchanged for unknown ones, and the true names written back. Once the true answer is unlikely enough, it is left alone.

    Args:
        signals: log-probabilities of alternatives and answers.
        margin: nats per token from which on the true answer counts as forgotten; at 0 nothing but the imitation is left.
        push: weight of the second term, above 0.
    """
    lacking_B = (margin - signals.forget.nll_B / signals.forget.lengths_B).relu()
    return signals.alternative.mean_nll + push * lacking_B.mean()
