"""The vocabulary head, computed on answer tokens only: with a large vocabulary it is most of a training step."""

from __future__ import annotations

__all__ = ["answer_logps", "applies_nothing_after_head", "head_of", "packed_head"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ENTRIES = 2**23  # logits of one chunk: 32 MiB in float32


def head_of(base: Any) -> nn.Module | None:
    """The module that computes logits from hidden states; None if the model does not name one.

    Args:
        base: a causal language model without wrappers (see `grun.models.forward.language_model`).
    """
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


@contextmanager
def packed_head(head: nn.Module | None, mask_BC: Tensor, *, skip: bool = False) -> Iterator[list[Tensor]]:
    """Context in which the head of a model runs on some tokens only, so that its logits have the shape (1, N, V).

    Args:
        head: of the model that is called with C columns inside the context; None to leave its logits as they are.
        mask_BC: bool, true on the N tokens to predict from.
        skip: run the head on no token; the logits then have the shape (B, 0, V).

    Yields:
        A list that a forward call fills with the hidden states (N, D) of these tokens. It stays empty where the model does
        not call its head on the states of all columns; logits are then those of every column.
    """
    states: list[Tensor] = []
    if head is None:
        yield states
        return

    def pack(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        h_BCD = args[0]
        if h_BCD.shape[:2] != mask_BC.shape:
            return None
        states.append(h_BCD[mask_BC.to(h_BCD.device)])
        return (h_BCD[:, :0] if skip else states[0][None], *args[1:])

    handle = head.register_forward_pre_hook(pack)
    try:
        yield states
    finally:
        handle.remove()


@torch.no_grad()
def applies_nothing_after_head(base: Any) -> bool:
    """True if the logits of a model are the output of a frozen linear head and nothing else, so `answer_logps` holds.

    One token is run through the model to see it: some architectures scale or cap the output of the head.

    Args:
        base: a causal language model without wrappers; no edit may be active.
    """
    head = head_of(base)
    if type(head) is not nn.Linear or any(p.requires_grad for p in head.parameters()):
        return False
    outputs: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        ids_11 = torch.zeros(1, 1, dtype=torch.long, device=head.weight.device)
        logits = base(input_ids=ids_11, attention_mask=torch.ones_like(ids_11), use_cache=False).logits
    finally:
        handle.remove()
    return len(outputs) == 1 and torch.equal(outputs[0].float(), logits.float())


def answer_logps(head: nn.Linear, h_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability (N,) of a target at each state, in float32, with a gradient for the states.

    Logits exist for a chunk of tokens at a time, and nothing of their size is kept for the backward pass. A log-probability
    depends on its own state alone: its gradient is the weight of the target minus the mean weight under the prediction, and
    is computed at once.

    Args:
        head: frozen.
        h_ND: input of the head, in its dtype.
        targets_N: int64.
    """
    found: Tensor = _AnswerLogps.apply(h_ND, head, targets_N)
    return found


class _AnswerLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_ND: Tensor, head: nn.Linear, targets_N: Tensor) -> Tensor:
        slope_ND = torch.empty_like(h_ND) if ctx.needs_input_grad[0] else None
        logps_N = torch.empty(len(h_ND), dtype=torch.float32, device=h_ND.device)
        size = max(1, ENTRIES // head.weight.shape[0])
        for start in range(0, len(h_ND), size):
            here = slice(start, start + size)
            z_NV, target_N1 = head(h_ND[here]), targets_N[here, None]
            z_NV = z_NV.to(torch.promote_types(torch.float32, z_NV.dtype))
            chosen_N1, total_N1 = z_NV.gather(1, target_N1), z_NV.logsumexp(1, keepdim=True)
            logps_N[here] = (chosen_N1 - total_N1).squeeze(1).float()
            if slope_ND is not None:  # from the difference, which is small where the model is sure of a target
                slope_NV = z_NV.sub_(total_N1).exp_().neg_().scatter_add_(1, target_N1, torch.ones_like(total_N1))
                slope_ND[here] = slope_NV.to(head.weight.dtype) @ head.weight
        ctx.save_for_backward(slope_ND)
        return logps_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, None, None]:
        (slope_ND,) = ctx.saved_tensors
        return grad_N[:, None].to(slope_ND.dtype) * slope_ND, None, None
