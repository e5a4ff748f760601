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
from dataclasses import dataclass, field, replace
from typing import Any

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
        alternative_answers: harmless answers that may be given instead, for objectives that teach one (AltPO).
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
    alternative_answers: tuple[str, ...] = ()
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
        holdout: name of a split of rows like the forget rows that no model is trained on (for membership inference).
        utility: names of the splits that stand for what the model must still be good for, each with whether its answer
            probability is normalised over the perturbed answers.
    """

    name: str
    splits: Mapping[str, tuple[Example, ...]]
    forget: str
    retain: str
    full: tuple[str, ...]
    evaluation: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    holdout: str | None = None
    utility: Mapping[str, bool] = field(default_factory=dict)


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


def _quantity(name: str, what: str) -> Any:
    def read(self: SideSignals) -> Tensor:
        if name not in self.quantities:
            raise ValueError(f"'{name}' was not asked for: declare '<side>.{name}' in `needs`")
        return self.quantities[name]

    return property(read, doc=what)


@dataclass(frozen=True)
class SideSignals:
    """What a model says about one side (forget, retain, refusal, alternative) of a batch, on its N answer tokens, row by row.

    Attributes:
        mask_BT: bool, true on answer tokens.
        quantities: tensors (N, ...) by the names that objectives declare in `needs`; those of the base model (`ref_...`)
            carry no gradient. Read them through the properties.
        token_count: what a mean over tokens divides by. None: N. Where the batch is one part of several (gradient
            accumulation, several processes), the average N of the parts, so that the average of the parts' means is the
            mean over all tokens.

    Raises:
        ValueError: when a quantity is read that the objective did not declare.
    """

    mask_BT: Tensor
    quantities: Mapping[str, Tensor]
    token_count: float | None = None

    targets_N = _quantity("targets", "int64, the answer tokens.")
    logps_N = _quantity("logps", "Log-probability of each answer token given what precedes it, in nats.")
    ref_logps_N = _quantity("ref_logps", "The same from the base model.")
    logits_NV = _quantity("logits", "Logits that predict each answer token.")
    ref_logits_NV = _quantity("ref_logits", "The same from the base model.")
    hidden_ND = _quantity("hidden", "Output of the observed decoder layer at each answer token.")
    ref_hidden_ND = _quantity("ref_hidden", "The same from the base model.")

    @property
    def logps_BT(self) -> Tensor:
        """`logps_N` in the columns of their tokens, 0 elsewhere."""
        return self._spread(self.logps_N)

    @property
    def nll_B(self) -> Tensor:
        """Negative log-likelihood of each answer: the sum over its tokens, in nats."""
        return -self.logps_BT.sum(1)

    @property
    def ref_nll_B(self) -> Tensor:
        """The same under the base model."""
        return -self._spread(self.ref_logps_N).sum(1)

    @property
    def lengths_B(self) -> Tensor:
        """Number of answer tokens of each row, the end of the sequence included."""
        return self.mask_BT.sum(1)

    @property
    def mean_nll(self) -> Tensor:
        """Cross-entropy: the mean over all answer tokens of the side, in nats per token."""
        return self.mean(-self.logps_N)

    def mean(self, values_N: Tensor) -> Tensor:
        """Mean of one value per answer token over all answer tokens of the side."""
        return values_N.sum() / (len(values_N) if self.token_count is None else self.token_count)

    def mean_after_first(self, values_N: Tensor) -> Tensor:
        """The same without the first token of each answer; 0 if no answer has a second one."""
        is_first_N = (self.mask_BT.cumsum(1) == 1)[self.mask_BT]
        count = (len(values_N) if self.token_count is None else self.token_count) - len(self.mask_BT)
        return values_N.masked_fill(is_first_N, 0.0).sum() / max(count, 1)

    def _spread(self, values_N: Tensor) -> Tensor:
        return values_N.new_zeros(self.mask_BT.shape).masked_scatter(self.mask_BT, values_N)


@dataclass(frozen=True)
class Signals:
    """All that an objective may look at.

    Attributes:
        sides: by name: `forget` (prompts with their answers), `refusal` and `alternative` (the same prompts with a refusal,
            or with another, harmless answer) and `retain`; those that the objective declared in `needs`.
        steering_D: random direction of unit length, fixed for the run; None unless the objective looks at hidden states.
    """

    sides: Mapping[str, SideSignals]
    steering_D: Tensor | None = None

    @property
    def forget(self) -> SideSignals:
        """Forget prompts with their answers."""
        return self.sides["forget"]

    @property
    def refusal(self) -> SideSignals:
        """Forget prompts with a refusal as answer."""
        return self.sides["refusal"]

    @property
    def alternative(self) -> SideSignals:
        """Forget prompts with another answer."""
        return self.sides["alternative"]

    @property
    def retain(self) -> SideSignals:
        """Retain prompts with their answers."""
        return self.sides["retain"]


@dataclass(frozen=True)
class LossTerms:
    """The scalars that are minimised, weighted and summed by the trainer; terms that a run does not have are None."""

    forget: Tensor
    retain: Tensor | None = None
    gate: Tensor | None = None


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
        token_is_argmax: whether each answer token is the likeliest one given the true tokens before it.
        token_z: log-probability of each answer token in standard deviations above its mean under the model's distribution.
        paraphrased_logps: as `token_logps`, of the paraphrased answer; empty if the row has none.
        perturbed_logps: the same of each perturbed answer.
        generated_base_logps: the same of the greedy answer under the base model, its end left out; None if not asked for.
        gradient_norm: mean over the model's parameters of the norm of the gradient of the answer's mean nll; None likewise.
    """

    example: Example
    token_logps: tuple[float, ...]
    generated: str | None = None
    gate_logits: tuple[float, ...] | None = None
    gate_values: tuple[float, ...] | None = None
    truncated: bool = False
    token_is_argmax: tuple[bool, ...] = ()
    token_z: tuple[float, ...] = ()
    paraphrased_logps: tuple[float, ...] = ()
    perturbed_logps: tuple[tuple[float, ...], ...] = ()
    generated_base_logps: tuple[float, ...] | None = None
    gradient_norm: float | None = None


@dataclass(frozen=True)
class Evidence:
    """All rows of one split for one model, and what metrics that compare need.

    Attributes:
        forget: rows of the forget split; None if this split itself is to be forgotten.
        forget_paraphrased: the same in other phrasings; None likewise, or where there are none.
        holdout: rows like the forget rows that the model never saw; None unless this split is to be forgotten.
        retain_log: the rows of this split under a model trained on retain data only; None if there is no such log.
        holdout_retain_log: the hold-out rows under that model; None likewise.
    """

    split: str
    rows: tuple[RowEvidence, ...]
    forget: tuple[RowEvidence, ...] | None = None
    forget_paraphrased: tuple[RowEvidence, ...] | None = None
    holdout: tuple[RowEvidence, ...] | None = None
    retain_log: tuple[RowEvidence, ...] | None = None
    holdout_retain_log: tuple[RowEvidence, ...] | None = None


@dataclass(frozen=True)
class Score:
    """A metric's value with what is needed to read it.

    Attributes:
        value: the aggregate, or None when it cannot be computed; then `reason` says why.
        n: number of rows behind it.
        per_row: one value per row, in row order; empty for metrics that have none.
        per_gate: one value per gate of the adapter, in layer order; empty for metrics that do not look at gates.
        groups: what the value was computed from, a number (or several) per row, where that is not `per_row`: groups of rows
            that were drawn apart from each other, such as forget rows and hold-out rows.
        reason: why `value` is None.
    """

    value: float | None
    n: int
    per_row: tuple[float, ...] = ()
    reason: str | None = None
    per_gate: tuple[float, ...] = ()
    groups: tuple[tuple[Any, ...], ...] = ()
