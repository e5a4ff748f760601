"""Decisions of several gates that open the same edits: the edits act where any of the gates is open."""

from __future__ import annotations

__all__ = ["GateLogits", "any_open", "beside", "largest_value"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from grun.models.tuner.edit import gate_value, is_open


@dataclass(frozen=True)
class GateLogits:
    """Logits of one gate (B,), or of one gate of each of N adapters (B, N), with thresholds that broadcast."""

    logits_X: Tensor
    threshold_X: Tensor


def beside(gates: Sequence[GateLogits]) -> GateLogits:
    """Gates of N adapters side by side, (B, N) with thresholds (N,)."""
    device = gates[0].threshold_X.device
    logits_BN = torch.stack([gate.logits_X.to(device) for gate in gates], dim=1)
    return GateLogits(logits_BN, torch.stack([gate.threshold_X.to(device) for gate in gates]))


def any_open(gates: Sequence[GateLogits], device: torch.device) -> Tensor:
    """Rows for which any of the gates is open."""
    return torch.stack([is_open(gate.logits_X, gate.threshold_X).to(device) for gate in gates]).any(0)


def largest_value(gates: Sequence[GateLogits], scale: float | Sequence[float], device: torch.device) -> Tensor:
    """The largest value of the gates, each times the scale of the edits; NaN if any of them is."""
    found = []
    for gate in gates:
        factor = scale if isinstance(scale, float) else torch.tensor(scale, device=gate.logits_X.device)
        found.append(gate_value(gate.logits_X, gate.threshold_X, factor).to(device))
    return reduce(torch.maximum, found)
