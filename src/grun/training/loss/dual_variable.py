"""The weight of the retain loss as the dual variable of a constraint (arXiv 2506.05314, section 3)."""

from __future__ import annotations

__all__ = ["DualVariable", "dual_variable", "is_constrained"]

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from grun.core.config.jobs import UnlearnConfig
from grun.core.distributed import mean_over_processes
from grun.training.loss.terms import Recipe
from grun.training.objectives import objectives

SLACK = 1.1  # bound on the retain loss where none was given, relative to the base model's


class DualVariable(TrainerCallback, ExportableState):
    """`weight <- max(0, weight + step_size * (retain loss - bound))` after every step; checkpoints hold it.

    Args:
        weight: weight at the beginning.
        bound: largest retain loss that is acceptable, in the units of the retain loss (nats per token for `ce` and `kl`).
        step_size: step size of the update.
        warmup: steps at the beginning during which the weight does not change.
    """

    def __init__(self, weight: float, bound: float, step_size: float = 1.0, warmup: int = 0) -> None:
        self.weight = weight
        self.bound = bound
        self.step_size = step_size
        self.warmup = warmup
        self._observed: list[float] = []

    def observe(self, retain_loss: float) -> None:
        """Add the retain loss of one part of a step."""
        self._observed.append(retain_loss)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        retain = mean_over_processes(sum(self._observed) / len(self._observed))
        self._observed.clear()
        if state.global_step > self.warmup:
            self.weight = max(0.0, self.weight + self.step_size * (retain - self.bound))

    def state(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        fixed = {"bound": self.bound, "step_size": self.step_size, "warmup": self.warmup}
        return {"args": {"weight": self.weight, **fixed}, "attributes": {}}


def is_constrained(config: UnlearnConfig) -> bool:
    """True if the retain loss of a job is a constraint."""
    return config.retain_bound is not None or bool(objectives.get(config.objective).info.get("constrained", False))


def dual_variable(
    config: UnlearnConfig, recipe: Recipe, steps_per_pass: float, base_loss: Callable[[], float]
) -> DualVariable | None:
    """The dual variable of a job, where its retain loss is a constraint.

    Args:
        config: of the job.
        recipe: the loss that is minimised.
        steps_per_pass: steps in which every row to forget is seen once.
        base_loss: computes the retain loss of the base model; only called if no bound was given.
    """
    if not is_constrained(config):
        return None
    bound = config.retain_bound if config.retain_bound is not None else SLACK * base_loss()
    return DualVariable(recipe.weights.retain, bound, config.dual_step, math.ceil(config.dual_warmup * steps_per_pass))
