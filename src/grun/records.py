"""The frozen records that cross borders between the parts of the package.

Tensor names end in the letters of their dimensions, one legend for the whole package:

    B  batch (rows)          T  tokens (columns, padding included)     D  hidden size
    R  rank of an edit       V  vocabulary                             E  edited layers
    G  gates                 N  supervised (answer) tokens, flattened over the batch
"""

from __future__ import annotations

__all__ = [
    "Batch",
    "Benchmark",
    "Evidence",
    "Example",
    "LossTerms",
    "RowEvidence",
    "Score",
    "SideSignals",
    "Signals",
]

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One thing to forget or to keep: a prompt and the answer that a model gives to it.

    Attributes:
        prompt: the question as a person would ask it, without any template. Never empty.
        answer: the expected answer, without leading space or end-of-sequence token. Never empty.
        subject: whom or what the row is about (an author, a person). Rows of one subject are withheld together.
        turns: earlier `(role, content)` turns of a conversation that precede the prompt.
        paraphrased_prompts: other phrasings of the prompt, never used in training.
        paraphrased_answer: the answer in other words (TOFU).
        perturbed_answers: wrong answers of the same form (TOFU).
        raw_text: the row is running text cut in two, not a question: no template is applied.
        source: where the row came from, for messages ("forget.jsonl, row 12").
    """

    prompt: str
    answer: str
    subject: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    paraphrased_prompts: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    raw_text: bool = False
    source: str = ""

    def rephrased(self, which: int = 0) -> Example:
        """The same row asked with its `which`-th paraphrased prompt.

        Raises:
            IndexError: if the row has no such paraphrase.
        """
        return replace(self, prompt=self.paraphrased_prompts[which], paraphrased_prompts=())


@dataclass(frozen=True)
class Benchmark:
    """Named splits of examples and the role each plays.

    Attributes:
        name: registered name.
        splits: all splits by name.
        forget, retain: names of the splits that an unlearning run is given.
        full: names of the splits that a target model is trained on (forget and retain among them).
        evaluation: names of the splits to report on, in order.
        unseen: names of the normal splits that unlearning must never be given (for held-out figures).
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    forget: str
    retain: str
    full: tuple[str, ...]
    evaluation: tuple[str, ...]
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Tokenised rows, padded to one width.

    Attributes:
        input_ids_BT: int64.
        attention_mask_BT: int64, 1 for real tokens.
        labels_BT: int64, -100 outside the answer; the answer includes its end-of-sequence token.
        prompt_lengths_B: int64, number of real prompt tokens; the last of them is where adapters act.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels_BT: Tensor
    prompt_lengths_B: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(
            *(t.to(device) for t in (self.input_ids_BT, self.attention_mask_BT, self.labels_BT, self.prompt_lengths_B))
        )

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a model's forward call (no labels: losses are computed from log-probabilities)."""
        return {"input_ids": self.input_ids_BT, "attention_mask": self.attention_mask_BT}


@dataclass(frozen=True)
class SideSignals:
    """What a model says about one side (forget, retain, refusal) of a batch, on answer tokens only.

    Attributes:
        logps_BT: float32 log-probability of each answer token given what precedes it; 0 where `mask_BT` is false.
        mask_BT: bool, true on answer tokens.
        ref_logps_BT: the same from the base model (adapters off), without gradient; None unless asked for.
    """

    logps_BT: Tensor
    mask_BT: Tensor
    ref_logps_BT: Tensor | None = None

    @property
    def nll_B(self) -> Tensor:
        """Negative log-likelihood of each answer: the sum over its tokens, in nats."""
        return -self.logps_BT.sum(1)

    @property
    def ref_nll_B(self) -> Tensor:
        """The same under the base model.

        Raises:
            ValueError: if the objective did not declare that it needs reference log-probabilities.
        """
        if self.ref_logps_BT is None:
            raise ValueError("reference log-probabilities were not asked for: declare '<side>.ref_logps' in `needs`")
        return -self.ref_logps_BT.sum(1)

    @property
    def mean_nll(self) -> Tensor:
        """Cross-entropy: the mean over all answer tokens of the side, in nats per token."""
        return -self.logps_BT.sum() / self.mask_BT.sum()


@dataclass(frozen=True)
class Signals:
    """All that an objective may look at; sides that it did not ask for are None."""

    forget: SideSignals | None = None
    retain: SideSignals | None = None
    refusal: SideSignals | None = None


@dataclass(frozen=True)
class LossTerms:
    """What an objective returns: scalars to be minimised, weighted and summed by the trainer."""

    forget: Tensor
    retain: Tensor | None = None


@dataclass(frozen=True)
class RowEvidence:
    """What was measured once for one row; every metric reads this.

    Attributes:
        example: the row.
        token_logps: natural-log probability of each answer token, end-of-sequence token included.
        generated: greedy answer, decoded, special tokens removed; None if nothing was generated.
        gate_logits: gate logits, one per gate of the adapter, in layer order; None without a gated adapter.
        gate_values: gate values after threshold, likewise.
        truncated: the row did not fit into the model's context and lost the end of its answer.
    """

    example: Example
    token_logps: tuple[float, ...]
    generated: str | None = None
    gate_logits: tuple[float, ...] | None = None
    gate_values: tuple[float, ...] | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Evidence:
    """All rows of one split for one model, and what metrics that compare need.

    Attributes:
        forget: rows of the forget split; None if this split itself is to be forgotten.
        forget_paraphrased: the same in other phrasings; None likewise, or where there are none.
    """

    split: str
    rows: tuple[RowEvidence, ...]
    forget: tuple[RowEvidence, ...] | None = None
    forget_paraphrased: tuple[RowEvidence, ...] | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value with what is needed to read it.

    Attributes:
        value: the aggregate, or None when it cannot be computed; then `reason` says why.
        n: number of rows behind it.
        per_row: one value per row, in row order; empty for metrics that have none.
        per_gate: one value per gate of the adapter, in layer order; empty for metrics that do not look at gates.
        reason: why `value` is None.
    """

    value: float | None
    n: int
    per_row: tuple[float, ...] = ()
    reason: str | None = None
    per_gate: tuple[float, ...] = ()
