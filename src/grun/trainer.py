"""The trainer: transformers' own, asking the objective what it needs and adding the gate's cross-entropy."""

from __future__ import annotations

__all__ = ["PairedRows", "SideRows", "UnlearnTrainer", "Weights"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer

from grun.batches import Encoded, collate
from grun.errors import TrainingDiverged
from grun.records import Batch, LossTerms, SideSignals, Signals
from grun.signals import side_signals

SideRows = Mapping[str, Sequence[Encoded]]
ObjectiveCall = Callable[[Signals], LossTerms]


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms: `L = forget * L_forget + retain * L_retain + gate * L_gate` (arXiv 2502.17823, eq. 5)."""

    forget: float
    retain: float
    gate: float


@dataclass(frozen=True)
class PairedRows(Dataset):  # type: ignore[type-arg]
    """Training items in their final order: for each, one encoded row per side.

    Attributes:
        sides: encoded rows by side.
        order: for each item, the row index per side.
        ref_logps: base-model log-probabilities (answer tokens,) of each row, for the sides that need them.
    """

    sides: SideRows
    order: Sequence[Mapping[str, int]]
    ref_logps: Mapping[str, Sequence[Tensor]]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, item: int) -> dict[str, tuple[Encoded, Tensor | None]]:
        picked = self.order[item]
        return {
            side: (rows[picked[side]], self.ref_logps[side][picked[side]] if side in self.ref_logps else None)
            for side, rows in self.sides.items()
        }


@dataclass(frozen=True)
class JoinSides:
    """Collator: the rows of all sides in one batch, so that a step is one forward pass."""

    pad_token_id: int

    def __call__(self, items: Sequence[Mapping[str, tuple[Encoded, Tensor | None]]]) -> dict[str, Any]:
        sides = list(items[0])
        batch = collate([item[side][0] for side in sides for item in items], self.pad_token_id)
        references = {
            side: torch.cat([item[side][1] for item in items])  # type: ignore[misc]
            for side in sides
            if items[0][side][1] is not None
        }
        return {
            "input_ids": batch.input_ids_BT,
            "attention_mask": batch.attention_mask_BT,
            "labels": batch.labels_BT,
            "prompt_lengths": batch.prompt_lengths_B,
            "sides": sides,
            "references": references,
        }


class UnlearnTrainer(Trainer):
    """`transformers.Trainer` for an unlearning objective.

    Args:
        objective: objective with its settings bound.
        weights: weights of the loss terms.
        validate: called at every evaluation; returns metrics (without the `eval_` prefix), among them `score`.
        pad_token_id: fills rows up to the width of their batch.
        **kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        *,
        objective: ObjectiveCall,
        weights: Weights,
        validate: Callable[[], dict[str, float]],
        pad_token_id: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_collator=JoinSides(pad_token_id), **kwargs)
        self.objective: ObjectiveCall = objective
        self.weights = weights
        self.validate = validate
        self._terms: dict[str, float] = {}
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        """Items come in the order that they were paired in, which is already seeded."""
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """Weighted sum of the objective's terms and the gate's cross-entropy.

        Raises:
            TrainingDiverged: if it is not finite, before any weight changes.
        """
        batch = Batch(*(inputs[k] for k in ("input_ids", "attention_mask", "labels", "prompt_lengths")))
        terms = self.objective(_split(side_signals(model, batch), inputs["sides"], inputs["references"]))
        loss = self.weights.forget * terms.forget
        if terms.retain is not None:
            loss = loss + self.weights.retain * terms.retain
        gate_loss = self._gate_loss(model, inputs["sides"]) if self.weights.gate else None
        if gate_loss is not None:
            loss = loss + self.weights.gate * gate_loss
        self._terms = {
            name: float(value.detach())
            for name, value in (("forget", terms.forget), ("retain", terms.retain), ("gate", gate_loss))
            if value is not None
        }
        if not bool(torch.isfinite(loss)):
            raise TrainingDiverged(f"the loss is {float(loss.detach())} at step {self.state.global_step + 1}")
        return loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One step of gradients.

        Raises:
            TrainingDiverged: if a gradient is not finite, before any weight changes.
        """
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not bool(torch.isfinite(torch.stack([g.abs().max() for g in gradients])).all()):
            raise TrainingDiverged(f"a gradient is not finite at step {self.state.global_step + 1}")
        return loss

    def _gate_loss(self, model: nn.Module, sides: Sequence[str]) -> Tensor | None:
        """Binary cross-entropy of every gate, 1 for forget prompts (refusals answer these too), 0 for retain prompts."""
        gates = getattr(self.accelerator.unwrap_model(model).base_model, "last_gates", None)
        if not gates:
            return None
        logits_BG = torch.cat([g.logits_BG for g in gates.values()], dim=1)
        is_forget_S = torch.tensor([side != "retain" for side in sides], device=logits_BG.device)
        target_B = is_forget_S.repeat_interleave(len(logits_BG) // len(sides)).float()
        return nn.functional.binary_cross_entropy_with_logits(logits_BG, target_B[:, None].expand_as(logits_BG))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the single loss terms beside the total."""
        if "loss" in logs:
            logs = {**logs, **{f"loss_{k}": v for k, v in self._terms.items()}}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation metrics with the prefix `eval_`; the best state is chosen by `eval_score`."""
        metrics = {f"eval_{name}": value for name, value in self.validate().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _split(joined: SideSignals, sides: Sequence[str], references: Mapping[str, Tensor]) -> Signals:
    """Signals per side of a batch that holds the same number of rows of each."""
    parts: dict[str, SideSignals] = {}
    rows = len(joined.logps_BT) // len(sides)
    for i, side in enumerate(sides):
        mask_BT = joined.mask_BT[i * rows : (i + 1) * rows]
        ref_BT = None
        if side in references:
            ref_BT = joined.logps_BT.new_zeros(mask_BT.shape).masked_scatter(mask_BT, references[side])
        parts[side] = SideSignals(joined.logps_BT[i * rows : (i + 1) * rows], mask_BT, ref_BT)
    return Signals(**parts)
