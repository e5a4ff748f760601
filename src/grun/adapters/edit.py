"""The two learnt parts of GRUN: a low-rank edit of a hidden state and a gate that decides whether to apply it."""

from __future__ import annotations

__all__ = ["Gate", "LowRankEdit", "orthonormal"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def orthonormal(free_DR: Tensor) -> Tensor:
    """Orthonormal columns spanning those of a free (D, R) matrix: the Q of its QR factorisation with positive diagonal.

    Invariant to the scale of the columns, so no optimizer setting (weight decay in particular) can degrade it, unlike the
    householder map of `torch.nn.utils.parametrizations.orthogonal`. A matrix that is orthonormal already maps to itself.
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
        rotation_DR = orthonormal(torch.randn(hidden_size, rank))
        bound = 1.0 / math.sqrt(hidden_size)
        weight_RD = rotation_DR.T.clone() if identity else torch.empty(rank, hidden_size).uniform_(-bound, bound)
        bias_R = torch.zeros(rank) if identity else torch.empty(rank).uniform_(-bound, bound)
        self.rotation = nn.Parameter(rotation_DR)
        self.weight = nn.Parameter(weight_RD)
        self.bias = nn.Parameter(bias_R)
        self.dropout = nn.Dropout(dropout)
        self._kept: tuple[object, Tensor] | None = None

    def rotation_DR(self) -> Tensor:
        """R^T: the orthonormal (D, R) matrix made from the free parameter; kept between calls while nothing trains."""
        if torch.is_grad_enabled() and self.rotation.requires_grad:
            self._kept = None
            return orthonormal(self.rotation.float())
        state = (self.rotation.data_ptr(), self.rotation._version, self.rotation.device, self.rotation.dtype)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, orthonormal(self.rotation.detach().float()))
        return self._kept[1]

    def forward(self, h_BTD: Tensor) -> Tensor:
        """The edit (..., D) in float32 for hidden states (..., D) of any floating dtype."""
        rotation_DR = self.rotation_DR()
        inner_BTR = h_BTD.float() @ (self.weight.float().T - rotation_DR) + self.bias.float()
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
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.register_buffer("threshold", torch.tensor(-math.inf))

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Logits (...) in float32 for hidden states (..., D) of any floating dtype."""
        x = h_BTD.float()
        for i, layer in enumerate(self.layers):
            x = nn.functional.linear(x, layer.weight.float(), layer.bias.float())
            if i < len(self.layers) - 1:
                x = torch.relu(x)
        return x.squeeze(-1)

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape."""
        return torch.where(logits > self.threshold, torch.sigmoid(logits), 0.0)
