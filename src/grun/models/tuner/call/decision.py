"""Decisions of gates: open or shut, and of several gates that open the same edits."""

from __future__ import annotations

__all__ = ["GateLogits", "any_open", "beside", "compute_dtype", "gate_value", "is_open", "largest_value"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


def compute_dtype(h: Tensor) -> torch.dtype:
    """The dtype in which gates and edits compute: float32, or the dtype of the hidden states if it is wider."""
    return torch.promote_types(torch.float32, h.dtype)


def is_open(logits: Tensor, threshold: Tensor) -> Tensor:
    """Gates whose logit is above the threshold, as a bool tensor. NaN is open: a broken gate must not pass for a shut one.

    Args:
        logits: of any shape.
        threshold: in logits; its shape broadcasts with that of the logits.
    """
    return ~(logits <= threshold)


def gate_value(logits: Tensor, threshold: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """`scale * sigmoid(logit)` where the gate is open, exactly 0 where it is shut. NaN stays NaN.

    Args:
        logits: of any shape.
        threshold: in logits; its shape broadcasts with that of the logits.
        scale: factor of the adapter's edits; a tensor's shape broadcasts likewise.
    """
    return torch.where(is_open(logits, threshold), scale * torch.sigmoid(logits), 0.0)


@dataclass(frozen=True)
class GateLogits:
    """Logits of one gate (B, T), or of one gate of each of N adapters (B, T, N), with thresholds that broadcast.

    T is 1 where the logit is the same for all tokens of a call.
    """

    logits_X: Tensor
    threshold_X: Tensor


def beside(gates: Sequence[GateLogits]) -> GateLogits:
    """Gates of N adapters side by side, (B, T, N) with thresholds (N,)."""
    device = gates[0].threshold_X.device
    logits = torch.broadcast_tensors(*(gate.logits_X.to(device) for gate in gates))
    return GateLogits(torch.stack(logits, dim=-1), torch.stack([gate.threshold_X.to(device) for gate in gates]))


def any_open(gates: Sequence[GateLogits], device: torch.device) -> Tensor:
    """Rows (B,) for which any of the gates is open at any token."""
    return torch.stack([is_open(gate.logits_X, gate.threshold_X).any(1).to(device) for gate in gates]).any(0)


def largest_value(gates: Sequence[GateLogits], scale: float | Sequence[float], device: torch.device) -> Tensor:
    """The largest value of the gates, each times the scale of the edits; NaN if any of them is."""
    found = []
    for gate in gates:
        factor = scale if isinstance(scale, float) else torch.tensor(scale, device=gate.logits_X.device)
        found.append(gate_value(gate.logits_X, gate.threshold_X, factor).to(device))
    return reduce(torch.maximum, found)
