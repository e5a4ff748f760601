"""Prompt positions: first and last prompt token of each row, from masks, labels or lengths.

The last prompt token is not "the last column": rows are padded on the right in training and on the left in generation, and
with cached keys/values a call sees only the last part of a row. All positions are *absolute* columns: column 0 is the first
token in the cache, padding included.
"""

from __future__ import annotations

__all__ = [
    "NO_BOUNDARY",
    "PromptSpan",
    "check_not_packed",
    "from_attention_mask",
    "from_labels",
    "from_prompt_lengths",
    "full_mask",
    "inferred_mask",
    "last_prompt_states",
    "mask_from_padding",
    "real_tokens",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.core.errors import UserError

IGNORED = -100
NO_BOUNDARY = (
    "GRUN cannot know where the prompts end in this forward call. Pass prompt_lengths=tensor of shape (batch,), the number "
    "of real prompt tokens of each row, or labels that are -100 on the prompt; or call generate(), which knows."
)


@dataclass(frozen=True)
class PromptSpan:
    """Prompt positions of a batch.

    Attributes:
        start_B: int64, absolute column of the first prompt token of each row.
        end_B: int64, absolute column of the last prompt token of each row.
        mask_BT: bool, true on real tokens; between `start_B` and `end_B` there may be padding (turns of a conversation).
    """

    start_B: Tensor
    end_B: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> PromptSpan:
        """The span on `device`."""
        return PromptSpan(self.start_B.to(device), self.end_B.to(device), self.mask_BT.to(device))

    def is_prompt(self, first: int, width: int) -> Tensor:
        """A bool mask (B, width) of the prompt tokens among the columns from `first` on."""
        columns_T = torch.arange(first, first + width, device=self.end_B.device)
        within_BT = (columns_T >= self.start_B[:, None]) & (columns_T <= self.end_B[:, None])
        real_BT = self.mask_BT[:, first : first + width]
        return within_BT & nn.functional.pad(real_BT, (0, width - real_BT.shape[1]))

    def repeated(self, rows: int) -> PromptSpan:
        """The span for a batch in which every row was repeated (beams, several return sequences).

        Raises:
            ValueError: if `rows` is not a multiple of the batch size.
        """
        copies, rest = divmod(rows, len(self.start_B))
        if rest:
            raise ValueError(f"{rows} rows cannot be copies of {len(self.start_B)} prompts")
        if copies == 1:
            return self
        return PromptSpan(*(t.repeat_interleave(copies, dim=0) for t in (self.start_B, self.end_B, self.mask_BT)))


def full_mask(attention_mask: Tensor | None, rows: int, new: int, past: int, device: torch.device) -> Tensor:
    """A bool mask (B, past + new) of real tokens, from a 2D attention mask of all columns, of the new ones, or None.

    Raises:
        UserError: if the mask is not two-dimensional or its width fits neither.
    """
    if attention_mask is None:
        return torch.ones(rows, past + new, dtype=torch.bool, device=device)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        raise UserError(
            "prompt positions need a two-dimensional attention_mask (batch, tokens), got "
            f"{tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__}."
        )
    mask = attention_mask.bool()
    if mask.shape[1] == past + new:
        return mask
    if mask.shape[1] == new:
        return torch.cat([mask.new_ones(rows, past), mask], dim=1)
    raise UserError(
        f"attention_mask has {mask.shape[1]} columns, expected {new} (new tokens) or {past + new} (all tokens)."
    )


def check_not_packed(given: Mapping[str, Any], span: PromptSpan, past: int) -> None:
    """Check that every row of a call is one sequence.

    Args:
        given: arguments of the call.
        span: prompt positions of the call.
        past: number of columns in the cache before the call.

    Raises:
        UserError: if several sequences stand in one row, by their lengths or by position ids that begin again.
    """
    packed = any(given.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens", "seq_idx"))
    position_BT = given.get("position_ids")
    if isinstance(position_BT, Tensor) and position_BT.ndim == 2:
        real_BT = real_tokens(None, span, position_BT, past).to(position_BT.device)
        falls_BT = position_BT[:, 1:] <= position_BT[:, :-1]
        packed = packed or bool((falls_BT & real_BT[:, 1:] & real_BT[:, :-1]).any())
    if packed:
        raise UserError(
            "GRUN reads one sequence per row, but this call packs several into one (position_ids that begin again, or "
            "cu_seq_lens): pad the sequences and pass an attention_mask instead."
        )


def real_tokens(attention_mask: Any, span: PromptSpan | None, inputs: Tensor, past: int) -> Tensor:
    """Bool mask (B, new) of the real tokens of a call; generated tokens, which masks of prompts lack, are real.

    Args:
        attention_mask: of the call; only a two-dimensional one says which tokens are padding.
        span: prompt positions of the call; None in decoding.
        inputs: token ids (B, new) of the call, or embeddings (B, new, D).
        past: number of columns in the cache before it.
    """
    rows, new = inputs.shape[:2]
    mask_BT = None if span is None else span.mask_BT
    if mask_BT is None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        mask_BT = attention_mask.bool()
    if mask_BT is None:
        return torch.ones(rows, new, dtype=torch.bool)
    real_BT = mask_BT[:, past : past + new] if mask_BT.shape[1] != new or span is not None else mask_BT
    return nn.functional.pad(real_BT, (0, new - real_BT.shape[1]), value=True)


def mask_from_padding(inputs: Tensor, pad: int | None, ends: int | Sequence[int] | None) -> Tensor:
    """The mask (B, T), int64, that `generate` would infer: pad tokens are padding, unless they also end sequences.

    Args:
        inputs: token ids (B, T), or embeddings (B, T, D), which have no padding.
        pad: the pad token; None if there is none.
        ends: tokens that end a sequence.
    """
    ending = ends if isinstance(ends, Sequence) else [ends]
    if pad is None or int(pad) in {int(end) for end in ending if end is not None} or inputs.is_floating_point():
        return torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
    return inputs.ne(int(pad)).long()


def inferred_mask(inputs: Tensor, given: Mapping[str, Any], config: Any) -> Tensor:
    """The mask (B, T), int64, that `generate` would infer for its inputs from its arguments and generation settings."""
    pad, ends = (given.get(key, getattr(config, key, None)) for key in ("pad_token_id", "eos_token_id"))
    return mask_from_padding(inputs, pad, ends)


def from_attention_mask(mask_BT: Tensor) -> PromptSpan:
    """Prompt positions if every real token belongs to the prompt, as in the prefill of generation."""
    mask_BT = mask_BT.bool()
    return PromptSpan(_first(mask_BT), _last(mask_BT), mask_BT)


def from_prompt_lengths(prompt_lengths_B: Tensor, mask_BT: Tensor) -> PromptSpan:
    """Prompt positions if the first `prompt_lengths_B` real tokens of each row are its prompt.

    Raises:
        UserError: if there is not one length per row, or one is below 1 or above the number of real tokens of its row.
    """
    lengths_B = torch.as_tensor(prompt_lengths_B).to(mask_BT.device)
    if lengths_B.shape != mask_BT.shape[:1]:
        raise UserError(
            f"prompt_lengths has shape {tuple(lengths_B.shape)}, expected ({mask_BT.shape[0]},), one per row."
        )
    real_B = mask_BT.sum(1)
    if bool(((lengths_B < 1) | (lengths_B > real_B)).any()):
        row = int(((lengths_B < 1) | (lengths_B > real_B)).nonzero()[0])
        raise UserError(
            f"prompt_lengths[{row}] is {int(lengths_B[row])}, expected 1 to {int(real_B[row])}, the real tokens of that row."
        )
    end_B = (mask_BT.cumsum(1) >= lengths_B[:, None]).int().argmax(1)
    return PromptSpan(_first(mask_BT), end_B, mask_BT)


def from_labels(labels_BT: Tensor, mask_BT: Tensor) -> PromptSpan:
    """Prompt positions from labels: the prompt is all real tokens before the first label other than -100.

    Raises:
        UserError: if a row has no label, or its first token is labelled (then it has no prompt).
    """
    supervised_BT = (labels_BT != IGNORED).to(mask_BT.device)
    prompt_BT = mask_BT & (supervised_BT.cumsum(1) == 0)
    wrong_B = ~supervised_BT.any(1) | ~prompt_BT.any(1)
    if bool(wrong_B.any()):
        row = int(wrong_B.nonzero()[0])
        found = "no label" if not bool(supervised_BT[row].any()) else "its very first token labelled"
        raise UserError(
            f"row {row} of the batch has {found}, so the end of its prompt is unknown: set labels to -100 on the prompt, "
            "or pass prompt_lengths."
        )
    return PromptSpan(_first(mask_BT), _last(prompt_BT), mask_BT)


def _first(mask_BT: Tensor) -> Tensor:
    """Column of the first true entry of each row (0 for a row without one)."""
    return mask_BT.int().argmax(1)


def _last(mask_BT: Tensor) -> Tensor:
    """Column of the last true entry of each row (the last column for a row without one)."""
    return mask_BT.shape[1] - 1 - _first(mask_BT.flip(1))


def last_prompt_states(h_BTD: Tensor, span: PromptSpan, past: int) -> tuple[Tensor, Tensor]:
    """Hidden states (B, 1, D) at the last prompt token, and a bool mask (B, 1) of the rows where it lies in this call."""
    width = h_BTD.shape[1]
    end_B = span.end_B - past
    at_B = end_B.clamp(0, width - 1).to(h_BTD.device)
    h_B1D = h_BTD[torch.arange(len(at_B), device=h_BTD.device), at_B][:, None]
    return h_B1D, ((end_B >= 0) & (end_B < width))[:, None]
