"""Objectives that teach another answer."""

from __future__ import annotations

__all__ = ["idk", "idk_deep"]

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


@objectives.register(
    "idk_deep",
    paper="TOFU (arXiv 2401.06121), section 4.1; deep alignment after Qi et al. 2024 (arXiv 2406.05946)",
    needs=("refusal.logps", "forget.logps"),
    retain="ce",
    above={"push": 0.0},
)
def idk_deep(signals: Signals, *, margin: float = 5.0, push: float = 0.3) -> Tensor:
    """Answer forget prompts with a refusal, and go on with no beginning of the true answer either.

    `mean nll(refusal) + push * mean_t max(0, margin - nll_t)`, the second mean over the tokens of the true answer, each after
    the true ones before it. `idk` alone teaches nothing of what follows a beginning that somebody supplies.

    Args:
        signals: log-probabilities of refusals and answers.
        margin: nats per token from which on a token of the true answer counts as forgotten.
        push: weight of the second term, above 0.
    """
    lacking_N = (margin + signals.forget.logps_N).relu()
    return signals.refusal.mean_nll + push * signals.forget.mean(lacking_N)
