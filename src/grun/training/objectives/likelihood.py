"""Objectives that lower the likelihood of the answers directly: gradient ascent and its weighted forms."""

from __future__ import annotations

__all__ = ["ga", "gd", "satimp", "wga"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "ga", paper="Jang et al. 2023 (arXiv 2210.01504); TOFU (arXiv 2401.06121)", needs=("forget.logps",), retain="none"
)
def ga(signals: Signals) -> Tensor:
    """Gradient ascent on the forget answers.

    `-mean nll` over their tokens: not bounded from below.
    """
    return -signals.forget.mean_nll


@objectives.register(
    "gd",
    paper="Liu et al. 2022 (arXiv 2203.12817); TOFU (arXiv 2401.06121)",
    needs=("forget.logps",),
    retain="ce",
    retain_weight=2.0,  # as in the code of arXiv 2502.17823
)
def gd(signals: Signals) -> Tensor:
    """Gradient difference: ascend on the forget answers, descend on the retain answers.

    `-mean nll` over the forget answers' tokens (not bounded from below), beside a retain loss. It teaches no other answer:
    answers turn into noise, which tells everybody that something was removed.
    """
    return -signals.forget.mean_nll


@objectives.register(
    "wga", paper="Wang et al. 2025 (arXiv 2502.19301), section 5", needs=("forget.logps",), retain="ce"
)
def wga(signals: Signals, *, beta: float = 1.0) -> Tensor:
    """Weighted gradient ascent: tokens that have become unlikely are left alone.

    `-mean_t p_t^beta * nll_t`, the weight without gradient, `p_t = exp(-nll_t)`.

    Args:
        signals: forget log-probabilities.
        beta: at least 0; 0 is plain gradient ascent.
    """
    logps_N = signals.forget.logps_N
    return signals.forget.mean((beta * logps_N).exp().detach() * logps_N)


@objectives.register(
    "satimp",
    paper="Yang et al. 2025 (arXiv 2505.11953), section 4",
    needs=("forget.logps",),
    retain="ce",
    forget_weight=0.1,
)
def satimp(signals: Signals, *, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """Ascent weighted by saturation and importance of each token.

    `-mean_t p_t^beta1 * (1 - p_t)^beta2 * nll_t`, the weight without gradient.

    Args:
        signals: forget log-probabilities.
        beta1: at least 0; the larger, the less tokens count that are unlikely already (saturation).
        beta2: at least 0; the larger, the less tokens count that are certain (importance).
    """
    logps_N = signals.forget.logps_N
    p_N = logps_N.exp().detach()
    return signals.forget.mean(p_N**beta1 * (1.0 - p_N) ** beta2 * logps_N)
