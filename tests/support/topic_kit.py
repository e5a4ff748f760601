"""What the tests of gates for topics share: models with such a gate whose decisions differ between prompts."""

from __future__ import annotations

__all__ = [
    "HIDDEN",
    "TOPICS",
    "attach_topics",
    "few_shipped_prompts",
    "fill",
    "part_open",
    "random_head",
    "random_units",
    "set_thresholds",
    "topic_gates",
]

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grun.models.gates import all_gates
from grun.models.gates.topics import background
from grun.models.gates.topics import head as topic_head
from grun.models.tuner.readers.topic import TopicGate, TopicHead
from support.adapter_kit import Padded, attach
from support.few_prompts import STEPS, few_prompts

TOPICS: dict[str, Any] = {"gate_layer": 0, "topic_layer": 1, "topic_width": 8, "topic_nearest": 2}
HIDDEN = 32  # of the tiny models


def topic_gates(model: Any) -> dict[str, TopicGate]:
    """The gates for topics by the names of their parts."""
    held = [(name, gate) for layer in model.base_model.runtime.layers for name, gate in layer.gates.items()]
    return {name: gate for name, gate in held if isinstance(gate, TopicGate)}


def random_head(seed: int = 0, hidden: int = HIDDEN, width: int = 8) -> TopicHead:
    """A head whose attention differs between tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((hidden,), (width, hidden), (width,))
    attention, projection, offset = (torch.randn(shape, generator=generator) for shape in shapes)
    return TopicHead(0.3 * attention, projection, offset)


def random_units(count: int, width: int = 8, seed: int = 0) -> Tensor:
    """Random unit vectors."""
    return nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@torch.no_grad()
def fill(gate: TopicGate, seed: int = 0, head: int | None = None, kept: Sequence[int] = (5, 7)) -> TopicGate:
    """Give a gate a random head (of a seed of its own) and random prompts to compare with."""
    width, hidden = gate.projection.shape
    gate.set_head(random_head(seed if head is None else head, hidden, width))
    gate.keep(random_units(kept[0], width, 10 * seed + 1), random_units(kept[1], width, 10 * seed + 2))
    gate.scale.fill_(3.0)
    gate.bias.fill_(0.2)
    return gate


def attach_topics(model: Any = "llama", seed: int = 2, **options: Any) -> Any:
    """A model with a randomised adapter (see `attach`) that recognises topics too."""
    adapted = attach(model, seed, **{**TOPICS, **options})
    for gate in topic_gates(adapted).values():
        fill(gate, seed)
    for config in adapted.peft_config["default"].parts.values():
        config.topic_kept = [5, 7]
    return adapted


def set_thresholds(model: Any, value: float) -> None:
    """Give all gates of all adapters one threshold."""
    for name, buffer in model.named_buffers():
        if name.endswith("threshold"):
            buffer.fill_(value)


@torch.no_grad()
def part_open(model: Any, batch: Padded, names: int, topics: int) -> tuple[list[bool], list[bool]]:
    """Set the two thresholds of a model with one adapter so that so many rows of a batch open each of its gates.

    Returns:
        Whether each row opens the gate for names, and whether it opens the gate for topics.
    """
    set_thresholds(model, -math.inf)
    model(**batch.inputs)
    logits_BG = model.base_model.last_gates["default"].logits_BG
    held = [layer.gates["default"] for layer in model.base_model.runtime.layers if "default" in layer.gates]
    opened = []
    for gate, logits_B, count in zip(held, logits_BG.unbind(1), (names, topics), strict=True):
        ordered = [logits_B.max() + 2.0, *logits_B.sort(descending=True).values, logits_B.min() - 2.0]
        gate.threshold.copy_((ordered[count] + ordered[count + 1]) / 2)
        opened.append((logits_B > gate.threshold).tolist())
    return opened[0], opened[1]


def few_shipped_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if few prompts shipped, with a head that is learnt from them in few steps, and used however little it recognises."""
    for module in (background, all_gates):
        monkeypatch.setattr(module, "shipped_prompts", few_prompts)
    monkeypatch.setattr(topic_head, "STEPS", STEPS)
    monkeypatch.setattr(all_gates, "LEAST_RECALL", 0.0)
