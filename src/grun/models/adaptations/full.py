"""Full fine-tuning, as a way of adapting a model."""

from __future__ import annotations

__all__ = ["full"]

from typing import Any

from torch import nn

from grun.core.config.jobs import UnlearnConfig
from grun.models.adaptations import STOPS_WHEN_DONE, UNTIL_DONE, adaptations

PRESET: dict[str, Any] = {
    "learning_rate": 2e-4,
    "steps": 200,
    "fit_gate_first": False,
    "calibrate": False,
    "gate_weight": 0.0,
    "evaluate_every": 25,
    UNTIL_DONE: STOPS_WHEN_DONE,
}


@adaptations.register("full", whole_model=True, settings=(), presets={"default": PRESET})
def full(model: nn.Module, config: UnlearnConfig) -> nn.Module:
    """Every weight of the model is trained."""
    return model.requires_grad_(True)
