"""Rows of an unlearning run: encoded once, batched by length, scored by the base model, and paired for training."""

from __future__ import annotations

__all__ = ["RowEncoder", "looked_at", "paired_rows", "validation"]

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
from grun.config import TrainConfig
from grun.gate_features import GateFeatures, gate_features
from grun.records import Batch, Example
from grun.request_config import CalibrateConfig
from grun.signals import longest_row, side_signals
from grun.templates import resolve_template
from grun.trainer import PairedRows

logger = logging.getLogger("grun")
VALIDATION_ROWS = 200
VALIDATION_METRICS = ("forget_probability", "forget_probability_before", "retain_ratio", "score")


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

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: TrainConfig | CalibrateConfig
    ) -> RowEncoder:
        """The encoder for a model that the settings of a job ask for."""
        template = resolve_template(config.template, tokenizer)
        return cls(tokenizer, template, longest_row(model, config.max_length), config.batch_size, model.device)

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

    @property
    def pad(self) -> int:
        """The token that fills rows up."""
        return pad_token_id(self.tokenizer)

    def groups(self, rows: Sequence[Encoded]) -> list[list[int]]:
        """Numbers of rows in batches by length."""
        return length_batches([len(row.input_ids) for row in rows], 4 * self.batch_size)

    def batches(self, rows: Sequence[Encoded]) -> Iterator[tuple[list[int], Batch]]:
        """Batches by length, each with the numbers of its rows."""
        for index in self.groups(rows):
            yield index, self._batch([rows[i] for i in index])

    def probability(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Mean over rows of the answer probability `exp(mean log-probability)`."""
        found: list[Tensor] = []
        for _, batch in self.batches(rows):
            side = side_signals(model, batch, with_grad=False)
            found.append((-side.nll_B / side.lengths_B).exp())
        return float(torch.cat(found).mean())

    def mean_nll(self, model: nn.Module, rows: Sequence[Encoded]) -> float:
        """Cross-entropy of the answers, in nats per token."""
        found = [side_signals(model, batch, with_grad=False).logps_N for _, batch in self.batches(rows)]
        return float(-torch.cat(found).mean())

    def features(self, model: nn.Module, rows: Sequence[Encoded], *, alone: bool = False) -> list[GateFeatures]:
        """What the adapter's gates read, row by row in the order given; `alone`: with every row in a batch of its own."""
        size = 1 if alone else 4 * self.batch_size
        return gate_features(model, (self._batch(rows[i : i + size]) for i in range(0, len(rows), size)))

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        return collate(rows, self.pad).to(self.device)


def paired_rows(
    rows: RowEncoder,
    encoded: Mapping[str, Sequence[Encoded]],
    forget: Sequence[Example],
    sides: Sequence[str],
    items: int,
    seed: int,
    answers: Mapping[str, Callable[[Example], Sequence[str]]],
) -> PairedRows:
    """All training items in order: every forget row once per pass, each beside a retain row drawn at random.

    Args:
        rows: makes encoded rows.
        encoded: rows of the sides `forget` and `retain`.
        forget: the examples of the forget rows.
        sides: those that a batch holds.
        items: number of training items.
        seed: of the order and of what is drawn.
        answers: by side, the answers that a forget example may be paired with instead of its own; one is drawn for every
            row and pass.
    """
    order: list[dict[str, int]] = []
    drawn = {side: _DrawnRows(rows, forget, choices, side, seed) for side, choices in answers.items() if side in sides}
    epoch = 0
    while len(order) < items:
        for f, r in paired_order(len(encoded["forget"]), len(encoded["retain"]), seed, epoch):
            item = {"forget": f, "retain": r} | {side: other.draw(f) for side, other in drawn.items()}
            order.append({side: item[side] for side in sides})
        epoch += 1
    everything = {**encoded, **{side: other.encoded for side, other in drawn.items()}}
    return PairedRows({side: everything[side] for side in sides}, order[:items], {})


class _DrawnRows:
    """Forget prompts with answers drawn at random; every pair is encoded once."""

    def __init__(
        self,
        rows: RowEncoder,
        forget: Sequence[Example],
        choices: Callable[[Example], Sequence[str]],
        side: str,
        seed: int,
    ) -> None:
        self.encoded: list[Encoded] = []
        self._rows, self._forget, self._choices = rows, forget, choices
        self._known: dict[tuple[int, str], int] = {}
        self._random = random.Random(f"{side}s {seed}")

    def draw(self, row: int) -> int:
        """Number of the encoded row of a forget row with an answer drawn for it."""
        key = (row, self._random.choice(self._choices(self._forget[row])))
        if key not in self._known:
            self._known[key] = len(self.encoded)
            self.encoded += self._rows.encode([replace(self._forget[row], answer=key[1])])
        return self._known[key]


def validation(
    base_probability: Callable[[Sequence[Encoded]], float],
    probability: Callable[[nn.Module, Sequence[Encoded]], float],
    forget: Sequence[Encoded],
    normal: Sequence[Encoded],
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that judges a model by its answer probabilities on forget rows and on normal rows.

    `score` is the normal rows' probability relative to the base model's (at most 1), times one minus the forget rows'.

    Args:
        base_probability: mean answer probability of rows under the base model.
        probability: the same under the model to judge.
        forget, normal: rows; the first ones are looked at.
    """
    forget, normal = looked_at(forget), looked_at(normal)
    forget_before, normal_before = base_probability(forget), base_probability(normal)

    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        forget_now, normal_now = probability(model, forget), probability(model, normal)
        model.train(was_training)
        kept = normal_now / max(normal_before, 1e-12)
        found = (forget_now, forget_before, kept, min(kept, 1.0) * (1.0 - forget_now))
        return dict(zip(VALIDATION_METRICS, found, strict=True))

    return validate


def looked_at(rows: Sequence[Encoded]) -> Sequence[Encoded]:
    """The rows that validation looks at."""
    return rows[:VALIDATION_ROWS]
