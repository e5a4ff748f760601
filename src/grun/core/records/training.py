"""Inputs of a training step, and its loss terms."""

from __future__ import annotations

__all__ = ["Batch", "LossTerms", "SideSignals", "Signals"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # records are read by commands that do not wait for torch
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Tokenised rows, padded to one width.

    Attributes:
        input_ids_BT: int64.
        attention_mask_BT: int64, 1 for real tokens.
        labels_BT: int64, -100 outside the answer; the answer includes its end-of-sequence token.
        prompt_lengths_B: int64, number of real prompt tokens; adapters act at the last of them.
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
    """Outputs of a model for one side (forget, retain, refusal, alternative) of a batch, on its N answer tokens, row by row.

    Attributes:
        mask_BT: bool, true on answer tokens.
        quantities: tensors (N, ...) by the names that objectives declare in `needs`; those of the base model (`ref_...`)
            carry no gradient. Read them through the properties.
        token_count: divisor of a mean over tokens. None: N. Where the batch is one part of several (gradient
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
    """Everything that an objective may read.

    Attributes:
        sides: by name: `forget` (prompts with their answers), `refusal` and `alternative` (the same prompts with a refusal,
            or with another, harmless answer) and `retain`; those that the objective declared in `needs`.
        steering_D: random direction of unit length, fixed for the run; None unless the objective reads hidden states.
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
