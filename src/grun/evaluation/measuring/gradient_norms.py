"""Gradient norms of single rows, for membership inference."""

from __future__ import annotations

__all__ = ["gradient_norms"]

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from grun.models.encoding.batching import collate
from grun.models.encoding.encode import Encoded
from grun.models.forward import side_signals


def gradient_norms(model: nn.Module, rows: Sequence[Encoded], pad_token_id: int, order: float = 2.0) -> list[float]:
    """Gradient norm of each row: the norm of the gradient of its mean nll, averaged over the model's parameters.

    Rows are read one at a time. All floating parameters count, frozen ones as well, except those that the answer does not
    depend on.

    Args:
        model: a causal language model in evaluation mode.
        rows: tokenised rows.
        pad_token_id: padding token of the tokenizer.
        order: order of the norm.
    """
    device = next(model.parameters()).device
    norms = []
    with _everything_trainable(model) as parameters:
        for row in rows:
            loss = side_signals(model, collate([row], pad_token_id).to(device)).mean_nll
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            each = [g.float().norm(order) for g in found if g is not None]
            norms.append(float(torch.stack(each).mean()))
    return norms


@contextmanager
def _everything_trainable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.requires_grad for p in parameters]
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad = True
            yield parameters
    finally:
        for parameter, was in zip(parameters, before, strict=True):
            parameter.requires_grad = was
