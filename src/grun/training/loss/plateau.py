"""The end of training: it stops once neither the validation score nor the forget loss gets better."""

from __future__ import annotations

__all__ = ["QUALITY", "ForgetLoss", "stopping_callbacks"]

import logging
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from grun.core.distributed import mean_over_processes

logger = logging.getLogger("grun")
QUALITY = "eval_quality"
LEAST = 0.02  # rise of the quality that counts as one
FEW = 8  # forget rows, below which a score of so few answers does not decide


class ForgetLoss(TrainerCallback, ExportableState):
    """The forget loss since the last validation, as a share of what it was at first; checkpoints hold it.

    Losses of ascent are negative and have no floor: they say nothing about the end, and their share is 0.

    Args:
        with_score: count the validation score; without it the loss decides alone, unless it is one of ascent.
        first: mean loss before the first validation; None if there was none yet.
        losses: those since the last validation.
    """

    def __init__(self, with_score: bool = True, first: float | None = None, losses: list[float] | None = None) -> None:
        self.with_score = with_score
        self.first = first
        self.losses = list(losses or ())

    def observe(self, loss: float) -> None:
        """Add the forget loss of one part of a step."""
        self.losses.append(loss)

    def quality(self, score: float) -> float:
        """The validation score, minus the share of the forget loss that is left.

        The score alone would stop too early where another answer is learnt: the true one is unlikely long before the other is
        likely. The loss alone would never stop ascent.

        Args:
            score: see `validation`; in [0, 1].
        """
        mean = mean_over_processes(sum(self.losses) / len(self.losses)) if self.losses else 0.0
        self.losses.clear()
        self.first = mean if self.first is None else self.first
        if self.first <= 0:
            return score
        return (score if self.with_score else 0.0) - max(mean, 0.0) / self.first

    def state(self) -> dict[str, Any]:
        """Content of a checkpoint."""
        content = {"with_score": self.with_score, "first": self.first, "losses": self.losses}
        return {"args": content, "attributes": {}}


def stopping_callbacks(patience: int, metric: str, forget_rows: int) -> list[TrainerCallback]:
    """Callbacks that stop after so many validations without a better state.

    Args:
        patience: number of validations.
        metric: of the best state; anything but `QUALITY` is taken as it is, and any rise of it counts.
        forget_rows: number of rows to forget.
    """
    if metric != QUALITY:
        return [ForgetLoss(), EarlyStoppingCallback(patience)]
    if forget_rows < FEW:
        logger.info(
            "%d rows are too few to validate on (%d are enough): training ends when the forget loss no longer falls.",
            forget_rows,
            FEW,
        )
    return [ForgetLoss(with_score=forget_rows >= FEW), EarlyStoppingCallback(patience, LEAST)]
