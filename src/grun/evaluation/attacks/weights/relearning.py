"""A few steps of training, and what comes back that was not trained on."""

from __future__ import annotations

__all__ = ["relearning"]

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, attacks
from grun.evaluation.attacks.opened import NotPossible, Opened, Trial, as_asked
from grun.models.forward import evaluating, language_model, side_signals, unwrapped
from grun.models.tuner.base_model import decoder_layers

RANK, FACTOR, LEARNING_RATE, BATCH = 8, 2.0, 1e-3, 8
LORA, ADAPTER = "LoRA", "adapter"


@attacks.register(
    "relearning",
    source="arXiv 2402.16835; arXiv 2406.13356",
    measures="leak",
    access="weights",
    needs=("several",),
    on_request=True,
    references=("retain_only",),
    uses=("unrelated",),
)
def relearning(material: AttackMaterial, opened: Opened, *, steps: tuple[int, ...] = (20, 60)) -> Iterator[Trial]:
    """Train 20 and 60 steps, and ask for what was not trained on (Lynch et al., Hu et al.).

    Every second row to forget is asked. Trained are, each from the start, the other rows to forget, as many ordinary rows of
    the same form (`--retain`), and as many that have nothing to do with them. A LoRA on top of the model is trained, and
    of a model with an adapter also the adapter's own parameters. A model of `--retain-only` gets the same LoRA: what it gives
    away has been learnt, not remembered.
    """
    held = range(1, len(material.forget), 2)
    for way in (LORA, ADAPTER) if opened.has_adapter else (LORA,):
        for name, rows in _trained_on(material).items():
            with _trainable(opened, way) as parameters:
                training = _Training(opened, parameters, rows)
                for count in steps:
                    training.until(count)
                    yield Trial(as_asked(material, held, f"{way}, {name}, {count} steps"))


def _trained_on(material: AttackMaterial) -> Mapping[str, Sequence[Example]]:
    """The rows to train on, by their kind: at most as many of each as there are forgotten ones."""
    forgotten = material.forget[::2]
    neighbours = material.ordinary if material.ordinary != material.unrelated else ()
    found = {"forgotten rows": forgotten, "neighbours": neighbours, "unrelated rows": material.unrelated}
    return {name: rows[: len(forgotten)] for name, rows in found.items() if rows}


class _Training:
    """Training of some parameters on the answers to rows.

    Args:
        opened: the model.
        parameters: that are trained.
        rows: the rows.
    """

    def __init__(self, opened: Opened, parameters: Sequence[nn.Parameter], rows: Sequence[Example]) -> None:
        self._opened, self._rows = opened, opened.encoder.encode(rows)
        self._optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
        self._draw, self._order, self._done = random.Random(len(rows)), list[int](), 0

    def until(self, count: int) -> None:
        """Train until so many steps are done."""
        model, encoder = self._opened.model, self._opened.encoder
        with evaluating(model), torch.enable_grad():
            while self._done < count:
                batch = encoder.batch([self._rows[i] for i in self._next()])
                self._optimizer.zero_grad()
                side_signals(model, batch).mean_nll.backward()
                self._optimizer.step()
                self._done += 1

    def _next(self) -> list[int]:
        """Numbers of the rows of the next batch; every row has its turn before one comes again."""
        if not self._order:
            self._order = list(range(len(self._rows)))
            self._draw.shuffle(self._order)
        batch, self._order = self._order[:BATCH], self._order[BATCH:]
        return batch


@contextmanager
def _trainable(opened: Opened, way: str) -> Iterator[list[nn.Parameter]]:
    """Parameters to train; everything else is frozen, and all is as before in the end."""
    model = opened.model
    own = _of_adapter(model) if way == ADAPTER and opened.adapters else []
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    before = [parameter.detach().clone() for parameter in own]
    with ExitStack() as added:
        try:
            for parameter, _ in needed:
                parameter.requires_grad = False
            for parameter in own:
                parameter.requires_grad = True
            yield own or _low_rank(model, added)
        finally:
            with torch.no_grad():
                for parameter, value in zip(own, before, strict=True):
                    parameter.copy_(value)
            for parameter, was in needed:
                parameter.requires_grad, parameter.grad = was, None


def _prefix(model: nn.Module) -> str:
    """What the names of an adapter's modules hold; those of prompts are in one module."""
    return getattr(getattr(unwrapped(model), "base_model", None), "prefix", None) or "prompt_encoder"


def _of_adapter(model: nn.Module) -> list[nn.Parameter]:
    prefix = _prefix(model)
    return [p for name, p in unwrapped(model).named_parameters() if prefix in name and p.is_floating_point()]


def _low_rank(model: nn.Module, added: ExitStack) -> list[nn.Parameter]:
    """Low-rank updates on all linear layers of the decoder, beside whatever adapter is there.

    Args:
        model: the model.
        added: takes them away again when it is closed.

    Raises:
        NotPossible: if there are no linear layers.
    """
    found: list[nn.Parameter] = []
    draw = torch.Generator().manual_seed(0)
    for name, module in decoder_layers(language_model(model))[1].named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or _prefix(model) in name:
            continue
        sizes: Any = (
            (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)
        )
        a_DR = torch.randn(sizes[0], RANK, generator=draw) / sizes[0] ** 0.5
        device = next(module.parameters()).device
        pair = nn.Parameter(a_DR.to(device)), nn.Parameter(torch.zeros(RANK, sizes[1], device=device))
        added.callback(module.register_forward_hook(partial(_add, pair)).remove)
        found += pair
    if not found:
        raise NotPossible("its decoder has no linear layers that could be trained")
    return found


def _add(pair: tuple[nn.Parameter, nn.Parameter], _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output of a linear layer with its low-rank update."""
    down_DR, up_RO = pair
    return output + (FACTOR * (inputs[0].to(down_DR.dtype) @ down_DR @ up_RO)).to(output.dtype)
