"""Rows encoded once for one model, batched by length, and scored."""

from __future__ import annotations

__all__ = ["RowEncoder"]

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grun.core.config.jobs import TrainConfig
from grun.core.config.requests import CalibrateConfig
from grun.core.records import Batch, Example
from grun.models.encoding.batching import collate, length_batches, pad_token_id
from grun.models.encoding.encode import Encoded, encode, truncation_report
from grun.models.encoding.templates import Template, resolve_template
from grun.models.forward import longest_row, side_signals

logger = logging.getLogger("grun")


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
            yield index, self.batch([rows[i] for i in index])

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

    def batch(self, rows: Sequence[Encoded]) -> Batch:
        """Rows as one batch on the device."""
        return collate(rows, self.pad).to(self.device)
