"""How well gates recognise prompts that they were not fitted on."""

from __future__ import annotations

__all__ = ["Judged", "Recognition"]

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grun.models.gates.calibration import OpenShare, share_open
from grun.models.gates.fitting import GateFit

logger = logging.getLogger("grun")
GOOD_RECALL = 0.9
KINDS = {
    "forget": "rows to forget",
    "normal": "normal ones",
    "topics": "other topics that ship",
    "neighbours": "neighbouring topics",
}
NEAREST = 5  # prompts next to the threshold, on each side, that the report names


@dataclass(frozen=True)
class Judged:
    """Prompts with the logits of all gates, as if the prompts of their own groups had not been fitted on.

    Attributes:
        texts: prompts that ship, and origins of rows ("forget.jsonl, row 12").
        logits_NG: float32, on the CPU.
    """

    texts: tuple[str, ...]
    logits_NG: Tensor

    @classmethod
    def of(cls, parts: Sequence[Judged]) -> Judged:
        """The prompts of all parts, one after the other."""
        texts = tuple(text for part in parts for text in part.texts)
        return cls(texts, torch.cat([part.logits_NG for part in parts]))

    def open(self, threshold_G: Tensor) -> OpenShare:
        """The share that opens any gate."""
        return share_open(self.logits_NG, threshold_G)

    def nearest(self, threshold_G: Tensor) -> list[dict[str, Any]]:
        """The prompts nearest to the thresholds on both sides, with the margin of the gate that is furthest above its own."""
        margin_N = (self.logits_NG - threshold_G).amax(1)
        found = []
        for side_N in (margin_N > 0, margin_N <= 0):
            numbers_N = side_N.nonzero().squeeze(1)
            chosen = numbers_N[margin_N[numbers_N].abs().argsort()[:NEAREST]].tolist()
            found += [{"prompt": self.texts[i], "margin": round(float(margin_N[i]), 3)} for i in chosen]
        return found


@dataclass(frozen=True)
class Recognition:
    """The fit of the gates, and the shares of withheld prompts that open any of them.

    Attributes:
        fits: of the gates for names.
        opened: prompts that open a gate, by kind: `forget` (rows to forget, as far as gates can be judged on withheld ones),
            `normal`, `topics` (shipped ones about other topics) and `neighbours`; empty before thresholds are set.
        left_out: topics of shipped prompts that share telling words with the rows to forget.
        nearest: prompts nearest to the thresholds, by kind.
        topics_shut: the gate for topics recognises too few withheld rows to forget (`opened`), and was shut for good.
        open_rows: numbers of the job's rows that open a gate, by kind; these were fitted on, apart from `validation`.
    """

    fits: list[GateFit]
    opened: dict[str, OpenShare] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    nearest: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    topics_shut: bool = False
    open_rows: dict[str, list[int]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as it is written to `metrics.json`."""
        opened = {kind: share.as_json() for kind, share in self.opened.items()}
        shut = {"topics_shut": True} if self.topics_shut else {}
        return {"opened": opened, "left_out": self.left_out, "nearest": self.nearest, **shut}

    def say(self) -> None:
        """Log what opens the gates, with a warning where they generalise badly."""
        for kind, share in self.opened.items():
            low, high = share.interval
            logger.info(
                "Withheld prompts that count as to be forgotten, %s: %d of %d (95 %% interval %.3f to %.3f).",
                KINDS[kind],
                share.open,
                share.prompts,
                low,
                high,
            )
        forget = self.opened.get("forget")
        if forget is not None and self.topics_shut:
            logger.warning(
                "The gate for topics recognises %.0f %% of withheld rows to forget, so it stays shut: only names and "
                "wordings like those given will be recognised. The rows are about too many topics, or the model does not "
                "know their topic well.",
                100 * forget.share,
            )
        elif forget is not None and forget.share < GOOD_RECALL:
            logger.warning(
                "The gates recognise %.0f %% of withheld rows to forget, expected %.0f %% or more: questions in other words "
                "may pass them. Give more and more varied rows to forget, or a larger --false-positive-rate.",
                100 * forget.share,
                100 * GOOD_RECALL,
            )
