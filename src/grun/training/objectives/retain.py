"""Losses on retain rows, which preserve the other abilities of the model; each works with every objective."""

from __future__ import annotations

__all__ = ["ce", "kl", "mse", "none"]

import torch
from torch import Tensor

from grun.core.records import SideSignals
from grun.training.objectives import retain_losses


@retain_losses.register("ce", paper="TOFU (arXiv 2401.06121), section 4.1", needs=("logps",))
def ce(retain: SideSignals) -> Tensor:
    """Cross-entropy of the retain answers: `mean nll` over their tokens."""
    return retain.mean_nll


@retain_losses.register("kl", paper="TOFU (arXiv 2401.06121), section 4.1", needs=("logits", "ref_logits"))
def kl(retain: SideSignals) -> Tensor:
    """Divergence from the base model: `mean KL(p_ref || p)` over the retain answer tokens, in nats; 0 for the base model."""
    ref_NV, now_NV = retain.ref_logits_NV.log_softmax(1), retain.logits_NV.log_softmax(1)
    return retain.mean((ref_NV.exp() * (ref_NV - now_NV)).sum(1))


@retain_losses.register("mse", paper="RMU (arXiv 2403.03218), section 4", needs=("hidden", "ref_hidden"))
def mse(retain: SideSignals) -> Tensor:
    """Distance of hidden states from the base model's: `mean ||h - h_ref||^2 / d` over the retain answer tokens."""
    return retain.mean((retain.hidden_ND - retain.ref_hidden_ND).square().mean(1))


@retain_losses.register("none", needs=())
def none(retain: SideSignals) -> Tensor:
    """No retain loss: nothing but the adapter itself protects other prompts."""
    return torch.zeros((), device=retain.mask_BT.device)
