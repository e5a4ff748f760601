"""States that gates read on prompts, each distinct one kept once."""

from __future__ import annotations

__all__ = ["DistinctStates", "GateFeatures", "concatenated", "joined"]

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.topic import TopicGate


@dataclass(frozen=True)
class GateFeatures:
    """Hidden states that one gate reads on N prompts of at most P tokens.

    At a low layer few states are distinct: in many models the input of the first layer is the embedding of the token alone. A
    detector reads one state, so each distinct state is kept, and read, once. Of a prompt that a gate for topics reads, its
    embedding is kept, as the only state; for a lexical gate token ids are the states (D is 1).

    Attributes:
        h_UD: the U distinct states (U, D), in the model's dtype.
        at_NP: int64, index into `h_UD` of every token.
        mask_NP: bool, true on real tokens.
    """

    h_UD: Tensor
    at_NP: Tensor
    mask_NP: Tensor

    @property
    def at_M(self) -> Tensor:
        """Indices of the states of all real tokens, row after row."""
        return self.at_NP[self.mask_NP]

    def row(self, i: int) -> Tensor:
        """The states (P, D) of the real tokens of one prompt."""
        return self.h_UD[self.at_NP[i][self.mask_NP[i]]]

    def at(self, numbers: Sequence[int]) -> GateFeatures:
        """The prompts with these numbers."""
        rows = torch.tensor(list(numbers), dtype=torch.long, device=self.at_NP.device)
        return GateFeatures(self.h_UD, self.at_NP[rows], self.mask_NP[rows])

    @property
    def first_ND(self) -> Tensor:
        """The first state (N, D) of every prompt: of prompts for a gate for topics, their embeddings."""
        return self.h_UD[self.at_NP[:, 0]]

    def ids(self) -> list[list[int]]:
        """The token ids of the prompts, of features for a lexical gate."""
        return [self.row(i)[:, 0].long().tolist() for i in range(len(self.at_NP))]

    def logits(self, gate: Any, x_UK: Tensor | None = None) -> Tensor:
        """Gate logits (N,) of the prompts, differentiable through the window of each that has the largest.

        `x_UK` is the output of `gate.detect` for the distinct states, if the caller has it already.
        """
        if isinstance(gate, TopicGate):
            return gate.logits(self.first_ND)
        if isinstance(gate, LexicalGate):
            return gate.logits(self.ids()).to(self.h_UD.device)
        x_UK = gate.detect(self.h_UD) if x_UK is None else x_UK
        nothing, before = len(x_UK), gate.window - 1
        x_UK = torch.cat([x_UK, x_UK.new_zeros(1, x_UK.shape[1])])
        at_NT = nn.functional.pad(self.at_NP.masked_fill(~self.mask_NP, nothing), (before, 0), value=nothing)
        token_NT, real_NT = (nn.functional.pad(self.mask_NP, (before, 0), value=value) for value in (False, True))
        with torch.no_grad():
            # Prompts one after the other, without padding: prompts of very different lengths would mostly be padding.
            logits_L = gate.windows(nn.functional.embedding(at_NT[real_NT], x_UK))
            logits_NP = torch.full(self.at_NP.shape, -math.inf, dtype=logits_L.dtype, device=logits_L.device)
            logits_NP[self.mask_NP] = logits_L[token_NT[real_NT][before:]]
            first_N1 = logits_NP.argmax(1, keepdim=True)
        window_NW = at_NT.gather(1, first_N1 + torch.arange(gate.window, device=at_NT.device))
        return gate.windows(nn.functional.embedding(window_NW, x_UK))[:, 0]


def joined(parts: Sequence[GateFeatures]) -> list[GateFeatures]:
    """The parts with all states in one `h_UD`, shared by all of them."""
    h_UD = torch.cat([part.h_UD for part in parts])
    starts = itertools.accumulate((len(part.h_UD) for part in parts), initial=0)
    return [GateFeatures(h_UD, part.at_NP + start, part.mask_NP) for part, start in zip(parts, starts, strict=False)]


def concatenated(parts: Sequence[GateFeatures]) -> GateFeatures:
    """The prompts of all parts, one after the other."""
    width, parts = max(part.at_NP.shape[1] for part in parts), joined(parts)

    def rows(name: str) -> Tensor:
        values = [getattr(part, name) for part in parts]
        return torch.cat([nn.functional.pad(value, (0, width - value.shape[1])) for value in values])

    return GateFeatures(parts[0].h_UD, rows("at_NP"), rows("mask_NP"))


class DistinctStates:
    """Distinct states in the order in which they were first seen, and the index of every token's state."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}
        self._new: list[Tensor] = []
        self._rows: list[Tensor] = []

    def add(self, h_PD: Tensor) -> None:
        """Add the states of a prompt's tokens."""
        numbers, new = [], []
        for i, state in enumerate(h_PD.contiguous().view(torch.uint8).cpu().numpy()):
            key = hashlib.blake2b(state, digest_size=16).digest()
            if key not in self._known:
                self._known[key] = len(self._known)
                new.append(i)
            numbers.append(self._known[key])
        self._new.append(h_PD[new])
        self._rows.append(torch.tensor(numbers))

    def features(self) -> GateFeatures:
        h_UD = torch.cat(self._new)
        at_NP = nn.utils.rnn.pad_sequence(self._rows, batch_first=True)
        lengths_N = torch.tensor([len(row) for row in self._rows])
        mask_NP = torch.arange(at_NP.shape[1]) < lengths_N[:, None]
        return GateFeatures(h_UD, at_NP.to(h_UD.device), mask_NP.to(h_UD.device))
