"""Objectives that train the model towards a distribution over the next token."""

from __future__ import annotations

__all__ = ["ceu", "me", "undial"]

import math

from torch import Tensor
from torch.nn.functional import one_hot

from grun.core.records import Signals
from grun.training.objectives import objectives


@objectives.register(
    "undial",
    paper="Dong et al. 2024 (arXiv 2402.10052), eq. 3",
    needs=("forget.logits", "forget.ref_logits", "forget.targets"),
    retain="none",
)
def undial(signals: Signals, *, beta: float = 10.0) -> Tensor:
    """Self-distillation with the true token's logit lowered.

    `mean_t CE(softmax(logits_ref - beta * onehot(y_t)), p_t)` over the forget answer tokens.

    Args:
        signals: forget logits of the model and of the base model.
        beta: amount by which the true token's logit is lowered, at least 0.
    """
    side = signals.forget
    lowered_NV = side.ref_logits_NV - beta * one_hot(side.targets_N, side.ref_logits_NV.shape[1])
    return side.mean(_cross_entropy(lowered_NV.softmax(1), side.logits_NV))


@objectives.register(
    "ceu", paper="Yang 2025 (arXiv 2503.01224), section 3", needs=("forget.logits", "forget.targets"), retain="none"
)
def ceu(signals: Signals) -> Tensor:
    """Cross-entropy unlearning: imitate the model itself with the true token ruled out.

    `mean_t CE(q_t, p_t)` with `q_t` the softmax of the model's own logits (without gradient) after the true token's was set to
    minus infinity; the first token of each answer is left out.
    """
    side = signals.forget
    without_NV = side.logits_NV.detach().scatter(1, side.targets_N[:, None], -math.inf)
    return side.mean_after_first(_cross_entropy(without_NV.softmax(1), side.logits_NV))


@objectives.register(
    "me", paper="Yuan et al. 2024 (arXiv 2410.08109), section 4", needs=("forget.logits",), retain="ce"
)
def me(signals: Signals) -> Tensor:
    """Maximum entropy: predict every token of the vocabulary with the same probability.

    `mean_t KL(uniform || p_t)` over the forget answer tokens, in nats.
    """
    logps_NV = signals.forget.logits_NV.log_softmax(1)
    return signals.forget.mean(-logps_NV.mean(1) - math.log(logps_NV.shape[1]))


def _cross_entropy(target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    return -(target_NV * logits_NV.log_softmax(1)).sum(1)
