"""Objectives on hidden states."""

from __future__ import annotations

__all__ = ["rmu"]

from torch import Tensor

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "rmu", paper="Li et al. 2024 (arXiv 2403.03218), section 4", needs=("forget.hidden",), retain="mse"
)
def rmu(signals: Signals, *, coefficient: float = 20.0) -> Tensor:
    """Representation misdirection: steer the hidden states of forget answers to one random direction.

    `mean_t ||h_t - c u||^2 / d` over the forget answer tokens, `h` the output of the observed layer (`--hidden-layer`), `u` a
    random unit vector (uniform entries, normalised) that is fixed for the run.

    Args:
        signals: hidden states of forget answers, and the direction.
        coefficient: c, the length of the state to steer to; choose it well above the usual length of a hidden state.
    """
    assert signals.steering_D is not None
    side = signals.forget
    return side.mean((side.hidden_ND - coefficient * signals.steering_D).square().mean(1))
