"""Objectives under a bound on the retain loss."""

from __future__ import annotations

__all__ = ["pdu"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "pdu",
    paper="Entesari et al. 2025 (arXiv 2506.05314), section 3",
    needs=("forget.logits",),
    retain="ce",
    constrained=True,
)
def pdu(signals: Signals) -> Tensor:
    """Primal-dual unlearning: flatten the forget logits, while the retain loss must stay below a bound.

    `mean_t (max_v z_tv - mean_v z_tv)^2` over the forget answer tokens. The weight of the retain loss is a dual variable that
    grows while the loss exceeds the bound (`--retain-bound`, `--dual-step`, `--dual-warmup`).
    """
    logits_NV = signals.forget.logits_NV
    return signals.forget.mean((logits_NV.amax(1) - logits_NV.mean(1)).square())
