"""The two learnt parts of GRUN: a low-rank edit of hidden states, and a gate that switches it on for a prompt."""

from __future__ import annotations

__all__ = [
    "Gate",
    "LowRankEdit",
    "either",
    "orthonormal",
    "pooled",
    "windowed",
]

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.call.decision import compute_dtype, gate_value


def orthonormal(free_DR: Tensor) -> Tensor:
    """Orthonormal columns spanning those of a free (..., D, R) matrix: the Q of its QR factorisation with positive diagonal.

    Invariant to the scale of the columns, so no optimizer setting (weight decay in particular) can degrade it, unlike the
    householder map of `torch.nn.utils.parametrizations.orthogonal`. An orthonormal matrix maps to itself, up to rounding.
    """
    q_DR, r_RR = torch.linalg.qr(free_DR)
    negative_R = torch.diagonal(r_RR, dim1=-2, dim2=-1) < 0
    return q_DR * torch.where(negative_R, -1.0, 1.0).to(q_DR.dtype)[..., None, :]


def windowed(x_XTK: Tensor, window: int) -> Tensor:
    """The largest value of every `window` tokens in a row (..., T - window + 1, K)."""
    size = 1  # tokens whose largest value stands at the first of them
    while size < window:
        step = min(size, window - size)
        x_XTK = torch.maximum(x_XTK[..., :-step, :], x_XTK[..., step:, :])
        size += step
    return x_XTK


def pooled(
    x_XTK: Tensor, read_BT: Tensor, before_XS: Tensor | None, window: int, logits: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The reading (..., B, S) of one gate or of several (see `Gate.forward`), and the logits (..., B, T) up to every token.

    Args:
        x_XTK: detectors at every token (..., B, T, K).
        read_BT: bool, true on the tokens to read.
        before_XS: the reading of the part before this one; None at the beginning.
        window: tokens over which detectors are pooled.
        logits: function that gives the logit of every window (..., B, T) from detectors (..., B, T + window - 1, K).
    """
    x_XTK = x_XTK.masked_fill(~read_BT[..., None], 0.0)
    *rows, _, detectors = x_XTK.shape
    if before_XS is None:
        before_XS = x_XTK.new_zeros(*rows, 1 + (window - 1) * detectors)
        before_XS[..., 0] = -math.inf
    x_XTK = torch.cat([before_XS[..., 1:].reshape(*rows, window - 1, detectors).to(x_XTK), x_XTK], dim=-2)
    kept_XS = x_XTK[..., x_XTK.shape[-2] - (window - 1) :, :].flatten(-2)
    logit_XT = logits(x_XTK).masked_fill(~read_BT, -math.inf)
    logit_XT = torch.maximum(before_XS[..., :1].to(logit_XT), logit_XT)
    if torch.is_grad_enabled():  # the gradient of the maximum, which cummax does not share among ties
        return torch.cat([logit_XT.amax(-1, keepdim=True), kept_XS], dim=-1), logit_XT
    if logit_XT.shape[-1] > 1:
        logit_XT = logit_XT.cummax(-1).values
    return torch.cat([logit_XT[..., -1:], kept_XS], dim=-1), logit_XT


def either(prompt_BT: Tensor | None, later_BT: Tensor | None) -> Tensor:
    """The tokens of two masks, of which one may be missing."""
    if prompt_BT is None or later_BT is None:
        found = later_BT if prompt_BT is None else prompt_BT
        assert found is not None, "a gate reads something"
        return found
    return prompt_BT | later_BT


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
        self.rotation = nn.Parameter(rotation_DR.contiguous())  # sharding needs it, and QR returns columns
        self.weight = nn.Parameter(weight_RD)
        self.bias = nn.Parameter(bias_R)
        self.dropout = nn.Dropout(dropout)

    def rotation_DR(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """R^T: the orthonormal (D, R) matrix made from the free parameter, in `dtype` (float32 or float64)."""
        return orthonormal(self.rotation.to(dtype))

    def forward(self, h_BTD: Tensor, rotation_DR: Tensor | None = None) -> Tensor:
        """The edit (..., D) for hidden states (..., D), in `compute_dtype` of theirs.

        `rotation_DR` is the output of `rotation_DR()` for the same parameters, if the caller has it already.
        """
        dtype = compute_dtype(h_BTD)
        rotation_DR = self.rotation_DR(dtype) if rotation_DR is None else rotation_DR
        inner_BTR = h_BTD.to(dtype) @ (self.weight.to(dtype).T - rotation_DR) + self.bias.to(dtype)
        edit: Tensor = self.dropout(inner_BTR @ rotation_DR.T)
        return edit


class Gate(nn.Module):
    """A soft gate `g = sigmoid(f)` on the prompt tokens that it reads, exactly 0 where `f` is not above a threshold.

    The first layer is a set of detectors that read one token each. With a window, the output of a detector lasts for `window`
    tokens, so the layers above see tokens that stand close together, such as the pieces of a name, each of which a tokenizer
    shares among many names. The logit of a prompt is the largest over its tokens, so later tokens cannot lower it. A window
    of 1 is a plain network per token with the maximum over tokens (multiple-instance learning).

    Args:
        hidden_size: D.
        hidden: sizes K, ... of the hidden layers of `f` (ReLU between them); none for a linear gate.
        window: tokens over which detectors are pooled; 1 for a linear gate.

    Attributes:
        threshold: scalar float32 buffer in logits; minus infinity until the gate is calibrated.
    """

    threshold: Tensor

    def __init__(self, hidden_size: int, hidden: Sequence[int] = (), window: int = 1) -> None:
        super().__init__()
        sizes = [hidden_size, *hidden, 1]
        pairs = zip(sizes, sizes[1:], strict=False)
        self.layers = nn.ModuleList(nn.Linear(a, b, dtype=torch.float32) for a, b in pairs)
        self.window = window
        self.register_buffer("threshold", torch.tensor(-math.inf, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Gate:
        """Move, but never round: `model.to(torch.bfloat16)` would shift the threshold and the logits compared with it."""

        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)

        return super()._apply(precise, recurse)

    def forward(self, h_BTD: Tensor, prompt_BT: Tensor, before_BS: Tensor | None = None) -> Tensor:
        """Read a part of each prompt.

        Args:
            h_BTD: hidden states of any floating dtype.
            prompt_BT: bool, true on the tokens to read.
            before_BS: the reading of the part before this one; None at the beginning.

        Returns:
            The reading so far (B, S), in `compute_dtype` of the states. Its first column is the logit, minus infinity before
            the first token was read; the others are the detectors at the last `window - 1` tokens.
        """
        return pooled(self.detect(h_BTD), prompt_BT, before_BS, self.window, self.windows)[0]

    def read(
        self, h_BTD: Tensor, prompt_BT: Tensor | None, later_BT: Tensor | None, before_BS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read a part of each prompt, and tokens after it.

        Args:
            h_BTD: hidden states of any floating dtype.
            prompt_BT: bool, true on the tokens of prompts; None if there are none in this part.
            later_BT: bool, true on the tokens after prompts; None if they are not read.
            before_BS: the reading of the part before this one; None at the beginning.

        Returns:
            The reading so far (B, S), as `forward` gives it, and the logits (B, T) up to every token, for calls without
            gradients.
        """
        return pooled(self.detect(h_BTD), either(prompt_BT, later_BT), before_BS, self.window, self.windows)

    def detect(self, h_BTD: Tensor) -> Tensor:
        """The K detectors at each state: (..., K) for states (..., D), in `compute_dtype` of the states."""
        return self._layer(0, h_BTD.to(compute_dtype(h_BTD)))

    def windows(self, x_BTK: Tensor) -> Tensor:
        """The logit of every window (B, T - window + 1), from the detectors at the tokens (B, T, K)."""
        x_BTK = windowed(x_BTK, self.window)
        for i in range(1, len(self.layers)):
            x_BTK = self._layer(i, x_BTK)
        return x_BTK.squeeze(-1)

    def _layer(self, i: int, x: Tensor) -> Tensor:
        """The i-th linear layer in the dtype of its input, with a ReLU unless it is the last."""
        layer: Any = self.layers[i]
        x = nn.functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
        return x if i == len(self.layers) - 1 else torch.relu(x)

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape (see `gate_value`)."""
        return gate_value(logits, self.threshold)
