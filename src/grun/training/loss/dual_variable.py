"""The weight of the retain loss as the dual variable of a constraint (arXiv 2506.05314, section 3)."""

from __future__ import annotations

__all__ = ["DualVariable"]

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from grun.core.distributed import mean_over_processes


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
