"""The two learnt parts of GRUN: a low-rank edit of a hidden state and a gate that decides whether to apply it."""

from __future__ import annotations

__all__ = ["Gate", "LowRankEdit", "compute_dtype", "orthonormal"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def compute_dtype(h: Tensor) -> torch.dtype:
    """The dtype that gates and edits compute in: float32, or that of the hidden states where it is wider."""
    return torch.promote_types(torch.float32, h.dtype)


def orthonormal(free_DR: Tensor) -> Tensor:
    """Orthonormal columns spanning those of a free (D, R) matrix: the Q of its QR factorisation with positive diagonal.

    Invariant to the scale of the columns, so no optimizer setting (weight decay in particular) can degrade it, unlike the
    householder map of `torch.nn.utils.parametrizations.orthogonal`. An orthonormal matrix maps to itself, up to rounding.
    """
    q_DR, r_RR = torch.linalg.qr(free_DR)
    return q_DR * torch.where(torch.diagonal(r_RR) < 0, -1.0, 1.0).to(q_DR.dtype)


class LowRankEdit(nn.Module):
    """LoReFT edit `phi(h) = R^T (W h + b - R h)` with orthonormal rows of R (Wu et al., arXiv 2404.03592, eq. 2).

    Args:
        hidden_size: D.
        rank: R.
        dropout: probability of zeroing entries of the edit in training.
        identity: start with `W = R` and `b = 0`, so that a fresh edit is zero; otherwise W and b start at random, as in the
            reference implementation of GRUN.
    """

    def __init__(self, hidden_size: int, rank: int, dropout: float = 0.0, identity: bool = True) -> None:
        super().__init__()
        rotation_DR = orthonormal(torch.randn(hidden_size, rank, dtype=torch.float32))
        # Orthonormalised once more, as every forward pass does: only then is W - R zero to the bit.
        weight_RD, bias_R = orthonormal(rotation_DR).T.contiguous(), rotation_DR.new_zeros(rank)
        if not identity:
            bound = 1.0 / math.sqrt(hidden_size)
            weight_RD.uniform_(-bound, bound)
            bias_R.uniform_(-bound, bound)
        self.rotation = nn.Parameter(rotation_DR)
        self.weight = nn.Parameter(weight_RD)
        self.bias = nn.Parameter(bias_R)
        self.dropout = nn.Dropout(dropout)

    def rotation_DR(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """R^T: the orthonormal (D, R) matrix made from the free parameter, in `dtype` (float32 or float64)."""
        return orthonormal(self.rotation.to(dtype))

    def forward(self, h_BTD: Tensor, rotation_DR: Tensor | None = None) -> Tensor:
        """The edit (..., D) for hidden states (..., D), in `compute_dtype` of theirs.

        `rotation_DR` is what `rotation_DR()` returned for the same parameters, where a caller has it already.
        """
        dtype = compute_dtype(h_BTD)
        rotation_DR = self.rotation_DR(dtype) if rotation_DR is None else rotation_DR
        inner_BTR = h_BTD.to(dtype) @ (self.weight.to(dtype).T - rotation_DR) + self.bias.to(dtype)
        edit: Tensor = self.dropout(inner_BTR @ rotation_DR.T)
        return edit


class Gate(nn.Module):
    """A soft gate `g(h) = sigmoid(f(h))`, exactly 0 where `f(h)` is not above a threshold.

    Args:
        hidden_size: D.
        hidden: sizes of the hidden layers of `f` (ReLU between them); none for a linear gate.

    Attributes:
        threshold: scalar float32 buffer in logits; minus infinity until the gate is calibrated.
    """

    threshold: Tensor

    def __init__(self, hidden_size: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        sizes = [hidden_size, *hidden, 1]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float32) for a, b in pairs)
        self.register_buffer("threshold", torch.tensor(-math.inf, dtype=torch.float32))

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Logits (...) for hidden states (..., D), in `compute_dtype` of theirs."""
        dtype = compute_dtype(h_BTD)
        x = h_BTD.to(dtype)
        for i, layer in enumerate(self.layers):
            x = nn.functional.linear(x, layer.weight.to(dtype), layer.bias.to(dtype))
            if i < len(self.layers) - 1:
                x = torch.relu(x)
        return x.squeeze(-1)

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape. NaN stays NaN: a broken gate must not pass for a closed one."""
        return torch.where(logits <= self.threshold, 0.0, torch.sigmoid(logits))
