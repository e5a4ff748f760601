"""Rows of an unlearning run: encoded once, batched by length, scored by the base model, and paired for training."""

from __future__ import annotations

__all__ = ["RowEncoder", "paired_rows", "validation"]

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grun.batches import (
    Encoded,
    Template,
    collate,
    encode,
    length_batches,
    pad_token_id,
    paired_order,
    truncation_report,
)
from grun.gate_fitting import GateFeatures, gate_features
from grun.records import Batch, Example
from grun.refusals import REFUSALS
from grun.signals import reference_logps, side_signals
from grun.trainer import PairedRows

logger = logging.getLogger("grun")
VALIDATION_ROWS = 200


@dataclass(frozen=True)
class RowEncoder:
    """Encodes examples for one tokenizer and template, and batches encoded rows on one device.

    Attributes:
        batch_size: rows of a training batch and side; passes without gradients take four times as many.
    """

    tokenizer: PreTrainedTokenizerBase
    template: Template
    max_length: int | None
    batch_size: int
    device: torch.device

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encoded rows; truncated ones are counted in a warning.

        Raises:
            UserError: if a prompt alone is longer than the longest row.
        """
        rows = [encode(example, self.tokenizer, self.template, self.max_length) for example in examples]
        report = truncation_report(rows)
        if report:
            logger.warning(report)
        return rows

    def batches(self, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
        """Batches by length, each with the numbers of its rows."""
        for index in length_batches([len(row.input_ids) for row in rows], 4 * self.batch_size):
            yield index, self._batch([rows[i] for i in index])

    def reference(self, model: nn.Module, rows: Sequence[Encoded]) -> list[Tensor]:
        """Base-model log-probabilities (answer tokens,) of each row, float32 on the CPU."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for index, batch in self.batches(rows):
            side = reference_logps(model, batch)
            for row, logps_T, mask_T in zip(index, side.logps_BT.cpu(), side.mask_BT.cpu(), strict=True):
                found[row] = logps_T[mask_T]
        return found

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability `exp(mean log-probability)`."""
        found: list[Tensor] = []
        for _, batch in self.batches(rows):
            side = side_signals(model, batch, with_grad=False)
            found.append((side.logps_BT.sum(1) / side.mask_BT.sum(1)).exp())
        return float(torch.cat(found).mean())

    def features(self, model: nn.Module, rows: Sequence[Encoded]) -> list[GateFeatures]:
        """What the adapter's gates read, row by row in the order given."""
        size = 4 * self.batch_size
        return gate_features(model, (self._batch(rows[i : i + size]) for i in range(0, len(rows), size)))

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        return collate(rows, pad_token_id(self.tokenizer)).to(self.device)


def paired_rows(
    rows: RowEncoder,
    encoded: Mapping[str, Sequence[Encoded]],
    forget: Sequence[Example],
    sides: Sequence[str],
    steps: int,
    seed: int,
) -> PairedRows:
    """All training items in order: every forget row once per pass, each beside a retain row drawn at random.

    Where the objective has a `refusal` side, the forget prompt is paired with a refusal sentence drawn at random.
    """
    wanted = steps * rows.batch_size
    order: list[dict[str, int]] = []
    refusals: list[Encoded] = []
    drawn: dict[tuple[int, str], int] = {}
    draw = random.Random(f"refusals {seed}")
    epoch = 0
    while len(order) < wanted:
        for f, r in paired_order(len(encoded["forget"]), len(encoded["retain"]), seed, epoch):
            item = {"forget": f, "retain": r}
            if "refusal" in sides:
                key = (f, draw.choice(REFUSALS))
                if key not in drawn:
                    drawn[key] = len(refusals)
                    refusals += rows.encode([replace(forget[f], answer=key[1])])
                item["refusal"] = drawn[key]
            order.append({side: item[side] for side in sides})
        epoch += 1
    everything = {**encoded, "refusal": refusals}
    return PairedRows({side: everything[side] for side in sides}, order[:wanted], {})


def validation(
    rows: RowEncoder, base: nn.Module, forget: Sequence[Encoded], normal: Sequence[Encoded]
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that judges a model by its answer probabilities on forget rows and on normal rows.

    `score` is the normal rows' probability relative to the base model's (at most 1), times one minus the forget rows'.
    """
    forget, normal = forget[:VALIDATION_ROWS], normal[:VALIDATION_ROWS]
    forget_before, normal_before = rows.probability(base, forget), rows.probability(base, normal)

    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        forget_now, normal_now = rows.probability(model, forget), rows.probability(model, normal)
        model.train(was_training)
        kept = normal_now / max(normal_before, 1e-12)
        return {
            "forget_probability": forget_now,
            "forget_probability_before": forget_before,
            "retain_ratio": kept,
            "score": min(kept, 1.0) * (1.0 - forget_now),
        }

    return validate
