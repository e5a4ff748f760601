"""Objectives in the form of a preference between the model and its former self."""

from __future__ import annotations

__all__ = ["npo"]

from torch.nn.functional import logsigmoid

from grun.objectives import objectives
from grun.records import LossTerms, Signals


@objectives.register(
    "npo",
    paper="Zhang et al. 2024 (arXiv 2404.05868), eq. 3",
    needs=("forget.logps", "forget.ref_logps", "retain.logps"),
    retain_weight=1.0,
)
def npo(signals: Signals, *, beta: float = 0.1) -> LossTerms:
    """Negative preference optimisation: like gradient ascent, but it fades out once the answers have become unlikely.

    `forget = -(2 / beta) * mean_B log sigmoid(beta * (nll - nll_ref))`, with nll summed over the tokens of an answer. For the
    base model itself it is `(2 / beta) * log 2`; as beta tends to 0 its gradient tends to that of ascent on summed nll.

    Args:
        signals: forget log-probabilities of the model and of the base model, and retain log-probabilities.
        beta: inverse temperature, above 0; small values behave like gradient ascent.
    """
    assert signals.forget is not None
    assert signals.retain is not None
    drop_B = signals.forget.nll_B - signals.forget.ref_nll_B
    return LossTerms(forget=-(2.0 / beta) * logsigmoid(beta * drop_B).mean(), retain=signals.retain.mean_nll)
