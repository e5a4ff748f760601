"""Gates and edits of several adapters at one layer as one product, which costs hardly more than those of one adapter."""

from __future__ import annotations

__all__ = ["EditStack", "GateStack"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.call.decision import compute_dtype
from grun.models.tuner.edit import Gate, LowRankEdit, either, orthonormal, pooled, windowed


@dataclass(frozen=True)
class GateStack:
    """Gates of the same shape, side by side; N gates, K detectors each.

    Attributes:
        weights, biases: parameters of each layer of all gates; those of the first layer are joined (N K, D), those of the
            layers above are stacked.
        count: number N of gates.
        window: window of each gate.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    count: int
    window: int

    @classmethod
    def of(cls, gates: Sequence[Gate]) -> GateStack | None:
        """The stack of gates; None if their shapes differ."""
        every: list[list[Any]] = [list(gate.layers) for gate in gates]
        shapes = {(gate.window, *(layer.weight.shape for layer in own)) for gate, own in zip(gates, every, strict=True)}
        if len(shapes) > 1:
            return None
        layers = list(zip(*every, strict=True))
        weights = [torch.stack([layer.weight.detach() for layer in same]) for same in layers]
        biases = [torch.stack([layer.bias.detach() for layer in same]) for same in layers]
        weights[0], biases[0] = weights[0].flatten(0, 1), biases[0].flatten()
        return cls(tuple(weights), tuple(biases), len(gates), gates[0].window)

    def read(
        self, h_BTD: Tensor, prompt_BT: Tensor | None, later_BT: Tensor | None, before_NBS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Readings (N, B, S) and logits (N, B, T), each as `Gate.read` returns it."""
        dtype = compute_dtype(h_BTD)
        x_BTK = nn.functional.linear(h_BTD.to(dtype), self.weights[0].to(dtype), self.biases[0].to(dtype))
        x_NBTK = x_BTK.unflatten(-1, (self.count, -1)).permute(2, 0, 1, 3)
        if len(self.weights) > 1:
            x_NBTK = x_NBTK.relu()
        return pooled(x_NBTK, either(prompt_BT, later_BT), before_NBS, self.window, self._windows)

    def _windows(self, x_NBTK: Tensor) -> Tensor:
        x_NBTK = windowed(x_NBTK, self.window)
        for i in range(1, len(self.weights)):
            weight_NOK, bias_NO = self.weights[i].to(x_NBTK.dtype), self.biases[i].to(x_NBTK.dtype)
            x_NBTK = torch.einsum("nbtk,nok->nbto", x_NBTK, weight_NOK) + bias_NO[:, None, None]
            x_NBTK = x_NBTK if i == len(self.weights) - 1 else x_NBTK.relu()
        return x_NBTK.squeeze(-1)


@dataclass(frozen=True)
class EditStack:
    """Edits side by side, `h + sum_i v_i R_i^T (W_i h + b_i - R_i h)` as two products.

    Attributes:
        inner_MD: `W_i - R_i` of all edits; M is the sum of their ranks.
        bias_M: biases of all edits.
        outer_MD: `R_i` of all edits.
        owner_M: index of the edit that each of the M rows belongs to.
    """

    inner_MD: Tensor
    bias_M: Tensor
    outer_MD: Tensor
    owner_M: Tensor

    @classmethod
    def of(cls, edits: Sequence[LowRankEdit], dtype: torch.dtype) -> EditStack:
        """The stack of edits, in `dtype`."""
        ranks = [len(edit.bias) for edit in edits]
        if len(set(ranks)) == 1:
            rotation_NDR = orthonormal(torch.stack([edit.rotation.detach().to(dtype) for edit in edits]))
            rotation_MD = rotation_NDR.transpose(1, 2).flatten(0, 1)
        else:
            rotation_MD = torch.cat([edit.rotation_DR(dtype).detach().T for edit in edits])
        weight_MD = torch.cat([edit.weight.detach() for edit in edits]).to(dtype)
        bias_M = torch.cat([edit.bias.detach() for edit in edits]).to(dtype)
        owner_M = torch.arange(len(edits)).repeat_interleave(torch.tensor(ranks)).to(bias_M.device)
        return cls(weight_MD - rotation_MD, bias_M, rotation_MD.contiguous(), owner_M)

    def __call__(self, h_BTD: Tensor, values_BTN: Tensor) -> Tensor:
        """The states plus all edits, each times its value: (B, T, D) in the stack's dtype.

        Args:
            h_BTD: hidden states in the stack's dtype.
            values_BTN: values of the N edits; T may be 1.
        """
        values_BTM = values_BTN if values_BTN.shape[-1] == 1 else values_BTN[..., self.owner_M]
        inner_BTM = nn.functional.linear(h_BTD, self.inner_MD, self.bias_M) * values_BTM.to(h_BTD.dtype)
        return torch.addmm(h_BTD.flatten(0, 1), inner_BTM.flatten(0, 1), self.outer_MD).view_as(h_BTD)
