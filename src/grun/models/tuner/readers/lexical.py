"""The reader of names and passages: a gate that compares the text of a prompt with hashed spans of what is to be forgotten."""

from __future__ import annotations

__all__ = ["WHOLE_NUMBERS", "LexicalGate"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.call.decision import gate_value
from grun.models.tuner.readers.progress import Progress
from grun.models.tuner.readers.table import SpanTable

WHOLE_NUMBERS = (".keys", ".token_ends", ".token_bytes")  # ends of the names of tensors that hold no weights


class LexicalGate(nn.Module):
    """A gate that opens for text that holds names or passages to forget, in whatever characters.

    It reads token ids, not hidden states. The tokens' bytes become canonical text (case, accents, look-alike and invisible
    characters make no difference), and every word, joined words, and pieces of four words are looked up in a table of hashed
    spans. The evidence of a text is the largest sum of weights of distinct spans that stand close together. Nothing in a text
    lowers it, but for a name that is only mentioned: beside a question about something else it does not count. The logit is
    `8 (evidence - 1) + 4`. Everything is fitted before edits are trained, so all tensors are buffers. They hold no name as
    text; somebody who guesses a name can confirm it.

    Args:
        spans: number of spans; zero before the fit.
        vocabulary: number of tokens, and of bytes of all of them.
        scope: `asked` opens for what is asked about (see `grun.models.tuner.readers.scope`), `mentioned` for every mention.

    Attributes:
        threshold: scalar float32 buffer in logits; minus infinity until the gate is calibrated.
    """

    threshold: Tensor
    keys: Tensor
    weights: Tensor
    token_bytes: Tensor
    token_ends: Tensor

    def __init__(self, spans: int = 0, vocabulary: Sequence[int] = (0, 0), scope: str = "asked") -> None:
        super().__init__()
        self.scope = scope
        self.register_buffer("keys", torch.zeros(spans, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(spans, dtype=torch.float32))
        self.register_buffer("token_ends", torch.zeros(vocabulary[0], dtype=torch.int32))
        self.register_buffer("token_bytes", torch.zeros(vocabulary[1], dtype=torch.uint8))
        self.register_buffer("threshold", torch.tensor(-math.inf, dtype=torch.float32))
        self._known: tuple[Any, SpanTable, list[bytes]] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LexicalGate:
        """Move, but never round."""

        def precise(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)

        self._known = None
        return super()._apply(precise, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known = None
        super()._load_from_state_dict(*args, **kwargs)

    def keep(self, weights: Mapping[int, float], tokens: Sequence[bytes]) -> None:
        """Keep spans, by their hashes, and the tokens of the model's tokenizer."""
        device, keys = self.threshold.device, sorted(weights)
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device)
        self.weights = torch.tensor([weights[key] for key in keys], dtype=torch.float32, device=device)
        ends = torch.tensor([len(token) for token in tokens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        self.token_ends = ends.to(device)
        self.token_bytes = torch.tensor(list(b"".join(tokens)), dtype=torch.uint8, device=device)
        self._known = None

    def make_room(self, spans: int, tokens: int, token_bytes: int) -> None:
        """Take the sizes of another gate, before its tensors are loaded."""
        for name, size in (("keys", spans), ("weights", spans), ("token_ends", tokens), ("token_bytes", token_bytes)):
            setattr(self, name, getattr(self, name).new_zeros(size))
        self._known = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of spans, of tokens and of their bytes."""
        return len(self.keys), len(self.token_ends), len(self.token_bytes)

    def _table(self) -> tuple[SpanTable, list[bytes]]:
        """The spans and the tokens, in a form that is fast to look up."""
        if self._known is None or self._known[0] is not self.keys:
            table = SpanTable(dict(zip(self.keys.tolist(), self.weights.tolist(), strict=True)))
            whole, ends = bytes(self.token_bytes.tolist()), self.token_ends.tolist()
            tokens = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            self._known = (self.keys, table, tokens)
        return self._known[1], self._known[2]

    def forward(self, ids_BT: Tensor, prompt_BT: Tensor, before_BS: Tensor | None = None) -> Tensor:
        """The reading (B, 5 + 64), float32, of a part of each prompt; the arguments are those of `read`."""
        return self.read(ids_BT, prompt_BT, None, before_BS)[0]

    @torch.no_grad()
    def read(
        self, ids_BT: Tensor, prompt_BT: Tensor | None, later_BT: Tensor | None, before_BS: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read a part of each prompt, and tokens after it.

        A word counts once it has ended: with the next word, or with the prompt.

        Args:
            ids_BT: int64 token ids.
            prompt_BT, later_BT, before_BS: as of `Gate.read`.

        Returns:
            The reading so far (B, 5 + 64), float32: the logit, minus infinity before the first token, the other numbers of
            `Progress`, and the last token ids, minus one where there were none; and the logits (B, T) up to every token.
        """
        device = ids_BT.device
        masks = [None if mask is None else mask.tolist() for mask in (prompt_BT, later_BT)]
        before = None if before_BS is None else before_BS.tolist()
        table, tokens = self._table()
        readings, logits = [], []
        for b, ids in enumerate(ids_BT.tolist()):
            prompt, later = ([False] * len(ids) if mask is None else mask[b] for mask in masks)
            columns = [t for t in range(len(ids)) if prompt[t] or later[t]]
            progress = Progress() if before is None else Progress.of(before[b])
            logit = progress.logit
            new = [ids[t] for t in columns]
            steps = progress.read(table, tokens, new, sum(prompt), mentions=self.scope == "mentioned")
            at = dict(zip(columns, steps, strict=True))
            logits.append([logit := at.get(t, logit) for t in range(len(ids))])
            readings.append(progress.numbers)
        found = [torch.tensor(values, dtype=torch.float32, device=device) for values in (readings, logits)]
        return found[0], found[1]

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits (N,) of whole prompts, given as token ids."""
        table, tokens = self._table()
        mentions = self.scope == "mentioned"
        return torch.tensor([Progress().read(table, tokens, ids, len(ids), mentions=mentions)[-1] for ids in rows])

    @property
    def unreachable(self) -> float:
        """A logit above that of any prompt."""
        return math.inf

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape (see `gate_value`)."""
        return gate_value(logits, self.threshold)
