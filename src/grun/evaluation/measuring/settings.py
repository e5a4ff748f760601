"""The model to measure, and the settings of a measurement."""

from __future__ import annotations

__all__ = ["EVERYTHING", "MeasureSettings", "Subject"]

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedTokenizerBase

from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.models.encoding.templates import Template
from grun.models.scoring import TOKENS_PER_BATCH

EVERYTHING = frozenset({"token_logps", "generated", "gates", "paraphrased", "perturbed"})


@dataclass(frozen=True)
class Subject:
    """A model to measure, for instance the one before unlearning or the one after it.

    Attributes:
        model: a causal language model, with or without adapters.
        tokenizer: the model's tokenizer.
        label: name of the subject, shown beside the progress bar.
        adapters: False measures the base model of a PEFT model.
        base: the model before unlearning, for `fluency`; None: `model` with adapters off.
        store: evidence on disk, read before anything is measured and written after every split; None keeps nothing.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    label: str = "evaluate"
    adapters: bool = True
    base: nn.Module | None = None
    store: EvidenceStore | None = None


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of a measurement, the same for every subject.

    Attributes:
        template: the prompt template.
        needs: quantities that metrics read (see `grun.evaluation.metrics`); nothing else is computed.
        tokens_per_batch: most tokens of a forward pass, padding included.
        max_new_tokens: longest greedy answer, in tokens; 0 generates none.
        answer_tokens: the same for splits with a limit of their own.
        max_length: longest row, in tokens; the end of a longer answer is cut off for log-probabilities.
    """

    template: Template
    needs: frozenset[str] = EVERYTHING
    tokens_per_batch: int = TOKENS_PER_BATCH
    max_new_tokens: int = 200
    answer_tokens: Mapping[str, int] = field(default_factory=dict)
    max_length: int | None = None
