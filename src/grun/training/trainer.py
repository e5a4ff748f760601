"""The trainer: `transformers.Trainer` for a recipe, which stops at losses and gradients that are not finite."""

from __future__ import annotations

__all__ = ["JoinSides", "UnlearnTrainer"]

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from grun.core.distributed import all_true, gathered
from grun.core.errors import TrainingDiverged
from grun.core.records import LossTerms
from grun.models.encoding.encode import Encoded
from grun.models.forward import gates_of_last_call
from grun.training.forward_engines.engine import ForwardEngine
from grun.training.interruption import ResumableTrainer
from grun.training.loss.dual_variable import DualVariable
from grun.training.loss.plateau import QUALITY, ForgetLoss
from grun.training.loss.terms import Recipe, loss_terms, split_sides


@dataclass(frozen=True)
class JoinSides:
    """Collator: the rows of all sides in one batch, so that a step is one forward pass.

    Attributes:
        engine: makes the batch.
        wanted: by side, the quantities that the losses read; None for all that the engine is asked for, of every side.
    """

    engine: ForwardEngine
    wanted: Mapping[str, Collection[str]] | None = None

    def __call__(self, items: Sequence[Mapping[str, tuple[Encoded, dict[str, Tensor]]]]) -> dict[str, Any]:
        sides = list(items[0])
        rows = [item[side][0] for side in sides for item in items]
        return {
            **self.engine.batch(rows, None if self.wanted is None else [self.wanted[s] for s in sides for _ in items]),
            "sides": sides,
            "wanted": self.wanted,
            "references": {
                side: {name: torch.cat([item[side][1][name] for item in items]) for name in items[0][side][1]}
                for side in sides
            },
            "token_counts": {
                side: float(sum(len(item[side][0].input_ids) - item[side][0].prompt_length for item in items))
                for side in sides
            },
        }


class EngineCounts(TrainerCallback, ExportableState):
    """What the engine has counted in training; checkpoints hold it."""

    def __init__(self, counted: dict[str, int] | None = None) -> None:
        self.counted = {} if counted is None else counted

    def state(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        return {"args": {"counted": dict(self.counted)}, "attributes": {}}


class UnlearnTrainer(ResumableTrainer):
    """`transformers.Trainer` for a recipe of unlearning.

    Args:
        recipe: the loss that is minimised.
        validate: called with the model at every evaluation; returns metrics (without the `eval_` prefix), among them `score`.
        engine: makes batches of rows and runs them through the model.
        **kwargs: passed on to `transformers.Trainer`. A `DualVariable` among the callbacks sets the weight of the retain loss.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        validate: Callable[[nn.Module], dict[str, float]],
        engine: ForwardEngine,
        **kwargs: Any,
    ) -> None:
        wanted = {side: sorted(recipe.wanted_of(side)) for side in recipe.sides}
        self._counted: dict[str, int] = getattr(engine, "counted", {})
        callbacks = [EngineCounts(self._counted), *(kwargs.pop("callbacks", None) or ())]
        super().__init__(data_collator=JoinSides(engine, wanted), callbacks=callbacks, **kwargs)
        self.engine = engine
        self.recipe = recipe
        self.validate = validate
        self.model_accepts_loss_kwargs = False
        self._terms: dict[str, float] = {}

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Take up what the engine had counted at the checkpoint."""
        found = super()._init_training_state(*args, **kwargs)
        if (restored := self.callback(EngineCounts)) is not None:
            self._counted.update(restored.counted)
            restored.counted = self._counted
        return found

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        """Keep the order of the items: it was drawn with the seed of the run."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Batches of one step, each with token counts averaged over all batches and processes of the step.

        The average of the batches' means is then the mean over all tokens of the step (see `SideSignals.token_count`).
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        everywhere = [counts for part in gathered([batch["token_counts"] for batch in batches]) for counts in part]
        for batch in batches:
            batch["token_counts"] = {
                side: sum(counts[side] for counts in everywhere) / len(everywhere) for side in batch["sides"]
            }
        return batches, None

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """Weighted sum of the recipe's terms.

        Raises:
            TrainingDiverged: if the loss is not finite; no weight has changed then.
        """
        joined = self.engine.signals(model, inputs, self.recipe.wanted())
        sides = split_sides(joined, inputs["sides"], inputs["references"], inputs["token_counts"], inputs["wanted"])
        gates = gates_of_last_call(model) if self.recipe.weights.gate else None
        loss = self._weighted(loss_terms(self.recipe, sides, None if gates is None else gates[0]))
        if not all_true(bool(torch.isfinite(loss))):
            raise TrainingDiverged(f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}")
        return loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step of gradients.

        Raises:
            TrainingDiverged: if a gradient is not finite; no weight has changed then. Under float16 the gradient scaler
                skips such steps instead.
        """
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        gradients = [_local(p.grad) for p in model.parameters() if p.grad is not None]
        finite = [g.isfinite().all() for g in gradients]
        if self.accelerator.scaler is None and not all_true(not finite or bool(torch.stack(finite).all())):
            raise TrainingDiverged(f"a gradient is not finite at step {self.state.global_step + 1}")
        return loss

    def _weighted(self, terms: LossTerms) -> Tensor:
        weights, dual = self.recipe.weights, self.callback(DualVariable)
        retain_weight = weights.retain if dual is None else dual.weight
        loss = weights.forget * terms.forget
        if terms.retain is not None:
            loss = loss + retain_weight * terms.retain
        loss = weights.warmed(self.state.global_step) * loss
        if terms.gate is not None:
            loss = loss + weights.gate * terms.gate
        self._terms = {name: float(value.detach()) for name, value in vars(terms).items() if value is not None}
        if (window := self.callback(ForgetLoss)) is not None:
            window.observe(self._terms["forget"])
        if dual is not None:
            dual.observe(self._terms["retain"])
            self._terms["retain_weight"] = retain_weight
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the single loss terms beside the total."""
        if "loss" in logs:
            logs = {**logs, **{f"loss_{k}": v for k, v in self._terms.items()}}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics with the prefix `eval_`; `eval_quality`, or else `eval_score`, chooses the best state."""
        metrics = {f"eval_{name}": value for name, value in self.validate(self.model_wrapped).items()}
        if (window := self.callback(ForgetLoss)) is not None:
            metrics[QUALITY] = window.quality(metrics["eval_score"])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _local(gradient: Tensor) -> Tensor:
    """The part of a gradient that this process holds, if it is sharded; else the gradient."""
    part: Tensor = gradient.to_local() if hasattr(gradient, "to_local") else gradient
    return part
