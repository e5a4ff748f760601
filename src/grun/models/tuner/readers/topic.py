"""The reader of topics: a gate that compares a prompt's pooled states with those of prompts to forget and of normal ones."""

from __future__ import annotations

__all__ = ["TopicGate", "TopicHead", "TopicStack", "embedding"]

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.call.decision import compute_dtype, gate_value

SUMMARY = 2  # columns before the weighted sum in what was read: the largest attention logit, and the sum of weights


@dataclass(frozen=True)
class TopicHead:
    """A linear map of hidden states into a space in which texts on one topic lie close together, with attention pooling.

    Attributes:
        attention_D: weights of the attention logit of a state.
        projection_KD: the map, without an offset of its own.
        offset_K: offset of the map.
    """

    attention_D: Tensor
    projection_KD: Tensor
    offset_K: Tensor

    @property
    def digest(self) -> str:
        """A short hash of the values: embeddings of different heads cannot be compared."""
        values = [value.detach().float().cpu().contiguous().numpy().tobytes() for value in vars(self).values()]
        return hashlib.blake2b(b"".join(values), digest_size=8).hexdigest()

    def states(self, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Attention logits (..., T) and projected states (..., T, K) of hidden states of any scale."""
        h_BTD = h_BTD.to(compute_dtype(h_BTD))
        # Attention sinks have a hundred times the norm of other tokens.
        h_BTD = h_BTD * h_BTD.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        projected_BTK = nn.functional.linear(h_BTD, self.projection_KD.to(h_BTD), self.offset_K.to(h_BTD))
        return h_BTD @ self.attention_D.to(h_BTD), projected_BTK

    def summary(self, h_BTD: Tensor, prompt_BT: Tensor, before_BS: Tensor | None = None) -> Tensor:
        """The prompts read so far (B, 2 + K): largest attention logit, sum of weights, weighted sum of projected states.

        Args:
            h_BTD: hidden states of any floating dtype.
            prompt_BT: bool, true on the tokens to read.
            before_BS: the summary of the part before this one; None at the beginning.
        """
        attention_BT, projected_BTK = self.states(h_BTD)
        attention_BT = attention_BT.masked_fill(~prompt_BT, -math.inf)
        if before_BS is None:
            before_BS = projected_BTK.new_zeros(len(h_BTD), SUMMARY + projected_BTK.shape[-1])
            before_BS[:, 0] = -math.inf
        before_BS = before_BS.to(projected_BTK)
        largest_B = torch.maximum(before_BS[:, 0], attention_BT.amax(1))
        anchor_B = torch.where(largest_B.isfinite(), largest_B, 0.0)
        weight_BT = (attention_BT - anchor_B[:, None]).exp()
        # Padding may hold anything, NaN too, and 0 * NaN is NaN.
        projected_BTK = projected_BTK.masked_fill(~prompt_BT[..., None], 0.0)
        sums_BS = torch.cat([weight_BT.sum(1, keepdim=True), (weight_BT[..., None] * projected_BTK).sum(1)], dim=1)
        kept_B = (before_BS[:, 0] - anchor_B).exp()
        return torch.cat([largest_B[:, None], kept_B[:, None] * before_BS[:, 1:] + sums_BS], dim=1)


def embedding(summary_BS: Tensor) -> Tensor:
    """Unit vectors (B, K) of prompts from their summaries; zero where nothing was read."""
    return nn.functional.normalize(summary_BS[:, SUMMARY:], dim=-1)


class TopicGate(nn.Module):
    """A gate that opens for prompts that are closer to prompts to forget than to any normal prompts.

    A prompt's embedding is the attention-weighted mean of its projected states (`TopicHead`), as a unit vector. Its logit is
    `scale * (s_f - s_n) + bias`, where `s_f` and `s_n` are the mean cosine similarities with the k nearest of the prompts to
    forget and of the normal prompts that the gate keeps. Everything is fitted before edits are trained, so all tensors are
    buffers.

    Args:
        hidden_size: D.
        width: K, size of the embedding.
        kept: numbers of prompts to forget and of normal prompts that the gate keeps; zero before the fit.
        nearest: k.

    Attributes:
        threshold: scalar float32 buffer in logits; minus infinity until the gate is calibrated.
    """

    threshold: Tensor
    attention: Tensor
    projection: Tensor
    offset: Tensor
    forget: Tensor
    normal: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, hidden_size: int, width: int, kept: Sequence[int] = (0, 0), nearest: int = 3) -> None:
        super().__init__()
        self.nearest = nearest
        shapes: dict[str, tuple[int, ...]] = {
            "attention": (hidden_size,),
            "projection": (width, hidden_size),
            "offset": (width,),
            "forget": (kept[0], width),
            "normal": (kept[1], width),
            "scale": (),
            "bias": (),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("threshold", torch.tensor(-math.inf, dtype=torch.float32))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TopicGate:
        """Move, but never round: `model.to(torch.bfloat16)` would shift the threshold and the logits compared with it."""

        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)

        return super()._apply(precise, recurse)

    @property
    def head(self) -> TopicHead:
        """The map from hidden states to embeddings."""
        return TopicHead(self.attention, self.projection, self.offset)

    def set_head(self, head: TopicHead) -> None:
        """Take over a map that was learnt for this base model and layer."""
        for name, value in zip(("attention", "projection", "offset"), vars(head).values(), strict=True):
            getattr(self, name).copy_(value)

    def keep(self, forget_EK: Tensor, normal_NK: Tensor) -> None:
        """Keep prompts to compare with, as unit vectors."""
        self.forget, self.normal = (kept.to(self.offset).contiguous() for kept in (forget_EK, normal_NK))

    def forward(self, h_BTD: Tensor, prompt_BT: Tensor, before_BS: Tensor | None = None) -> Tensor:
        """Read a part of each prompt; the arguments are those of `Gate.forward`.

        Returns:
            The reading so far (B, 3 + K), in `compute_dtype` of the states: the logit of the prompt read so far, minus
            infinity before the first token, and the summary of `TopicHead.summary`.
        """
        summary_BS = self.head.summary(h_BTD, prompt_BT, None if before_BS is None else before_BS[:, 1:])
        return self.reading(summary_BS)

    def read(
        self, h_BTD: Tensor, prompt_BT: Tensor | None, later_BT: Tensor | None, before_BS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read a part of each prompt, and tokens after it; the arguments are those of `Gate.read`.

        Tokens after a prompt count only once they belong to the next prompt of the conversation.

        Returns:
            The reading so far (B, 3 + K), and the logits of the prompts (B, 1).
        """
        reading_BS = before_BS if prompt_BT is None else self(h_BTD, prompt_BT, before_BS)
        assert reading_BS is not None, "a prompt comes first"
        if later_BT is not None:
            summary_BS = self.head.summary(h_BTD, later_BT, reading_BS[:, 1:])
            reading_BS = torch.cat([reading_BS[:, :1].to(summary_BS), summary_BS], dim=1)
        return reading_BS, reading_BS[:, :1]

    def reading(self, summary_BS: Tensor) -> Tensor:
        """The reading (B, 3 + K) of prompts with these summaries."""
        logit_B = self.logits(embedding(summary_BS)).masked_fill(summary_BS[:, 1] == 0, -math.inf)
        return torch.cat([logit_B[:, None], summary_BS], dim=1)

    def logits(self, embedding_NK: Tensor) -> Tensor:
        """Logits (N,) of prompts with these embeddings."""
        forget_N, normal_N = (self._closeness(embedding_NK, kept) for kept in (self.forget, self.normal))
        return self.scale * (forget_N - normal_N) + self.bias

    def _closeness(self, embedding_NK: Tensor, kept_EK: Tensor) -> Tensor:
        """Mean cosine similarity (N,) with the nearest of the kept prompts; 0 if there are none."""
        if not len(kept_EK):
            return embedding_NK.new_zeros(len(embedding_NK))
        similarity_NE = embedding_NK @ kept_EK.to(embedding_NK).T
        return similarity_NE.topk(min(self.nearest, len(kept_EK)), dim=1).values.mean(1)

    @property
    def unreachable(self) -> float:
        """A logit above that of any prompt: cosine similarities differ by 2 at most."""
        return 3.0 * float(self.scale) + float(self.bias)

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape (see `gate_value`)."""
        return gate_value(logits, self.threshold)


@dataclass(frozen=True)
class TopicStack:
    """Topic gates with the same head: prompts are embedded once, and compared with what each gate keeps.

    Attributes:
        gates: the gates.
    """

    gates: tuple[TopicGate, ...]

    @classmethod
    def of(cls, gates: Sequence[Any]) -> TopicStack | None:
        """The stack of gates; None if they are of other kinds or have different heads."""
        if not all(isinstance(gate, TopicGate) for gate in gates):
            return None
        first = vars(gates[0].head)
        same = all(torch.equal(value, first[name]) for gate in gates[1:] for name, value in vars(gate.head).items())
        return cls(tuple(gates)) if same else None

    def read(
        self, h_BTD: Tensor, prompt_BT: Tensor | None, later_BT: Tensor | None, before_NBS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Readings (N, B, 3 + K) and logits (N, B, 1), each as `TopicGate.read` returns it."""
        head, summary_BS = self.gates[0].head, None if before_NBS is None else before_NBS[0, :, 1:]
        if prompt_BT is not None:
            summary_BS = head.summary(h_BTD, prompt_BT, summary_BS)
            before_NBS = torch.stack([gate.reading(summary_BS) for gate in self.gates])
        assert before_NBS is not None, "a prompt comes first"
        if later_BT is not None:
            summary_BS = head.summary(h_BTD, later_BT, summary_BS)
            summary_NBS = summary_BS.expand(len(self.gates), *summary_BS.shape)
            before_NBS = torch.cat([before_NBS[..., :1].to(summary_BS), summary_NBS], dim=-1)
        return before_NBS, before_NBS[..., :1]
