"""The reader of names and passages: a gate that compares the text of a prompt with hashed spans of what is to be forgotten."""

from __future__ import annotations

__all__ = ["WHOLE_NUMBERS", "LexicalGate"]

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grun.models.tuner.call.decision import gate_value
from grun.models.tuner.readers.canonical import marked, split_words
from grun.models.tuner.readers.table import SpanTable

WHOLE_NUMBERS = (".keys", ".token_ends", ".token_bytes")  # ends of the names of tensors that hold no weights
TAIL = 64  # tokens before a part that its words may depend on
SHARPNESS = 8.0  # logits per unit of evidence
OPEN_LOGIT = 4.0  # at the evidence that opens the gate


class LexicalGate(nn.Module):
    """A gate that opens for text that holds names or passages to forget, in whatever characters.

    It reads token ids, not hidden states. The tokens' bytes become canonical text (case, accents, look-alike and invisible
    characters make no difference), and every word, joined words, and pieces of four words are looked up in a table of hashed
    spans. The evidence of a text is the largest sum of weights of distinct spans that stand close together; nothing in a text
    lowers it. The logit is `8 (evidence - 1) + 4`. Everything is fitted before edits are trained, so all tensors are buffers.
    They hold no name as text; somebody who guesses a name can confirm it.

    Args:
        spans: number of spans; zero before the fit.
        vocabulary: number of tokens, and of bytes of all of them.

    Attributes:
        threshold: scalar float32 buffer in logits; minus infinity until the gate is calibrated.
    """

    threshold: Tensor
    keys: Tensor
    weights: Tensor
    token_bytes: Tensor
    token_ends: Tensor

    def __init__(self, spans: int = 0, vocabulary: Sequence[int] = (0, 0)) -> None:
        super().__init__()
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
        """The reading (B, 1 + 64), float32, of a part of each prompt; the arguments are those of `read`."""
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
            The reading so far (B, 1 + 64), float32: the logit, minus infinity before the first token, and the last token ids,
            minus one where there were none; and the logits (B, T) up to every token.
        """
        device = ids_BT.device
        masks = [None if mask is None else mask.tolist() for mask in (prompt_BT, later_BT)]
        before = None if before_BS is None else before_BS.tolist()
        readings, logits = [], []
        for b, ids in enumerate(ids_BT.tolist()):
            prompt, later = (None if mask is None else mask[b] for mask in masks)
            columns = [t for t in range(len(ids)) if (prompt and prompt[t]) or (later and later[t])]
            logit, tail = (
                (-math.inf, []) if before is None else (before[b][0], [int(i) for i in before[b][1:] if i >= 0])
            )
            ends_at = max((k for k, t in enumerate(columns) if prompt and prompt[t]), default=None)
            new = [ids[t] for t in columns]
            steps = self._logits(tail, new, ends_at)
            row, k = [], 0
            for t in range(len(ids)):
                if k < len(columns) and columns[k] == t:
                    logit, k = max(logit, steps[k]), k + 1
                row.append(logit)
            tail = [*tail, *new][-TAIL:]
            readings.append([logit, *[-1.0] * (TAIL - len(tail)), *tail])
            logits.append(row)
        found = [torch.tensor(values, dtype=torch.float32, device=device) for values in (readings, logits)]
        return found[0], found[1]

    def _logits(self, tail: list[int], new: list[int], ends_at: int | None) -> list[float]:
        """Logits at each new token: that of the evidence of the words that end with it.

        Args:
            tail: tokens before the new ones.
            new: the new tokens.
            ends_at: number of the new token that ends a prompt, and thereby its last word.
        """
        table, tokens = self._table()
        cut = None if ends_at is None else ends_at + 1
        evidence = [0.0] * len(new)
        if cut is not None:
            _add(evidence, table, _pieces(tokens, [*tail, *new[:cut]]), len(tail), whole=True)
            if cut == len(new):
                return [SHARPNESS * (value - 1.0) + OPEN_LOGIT for value in evidence]
        _add(evidence, table, _pieces(tokens, [*tail, *new]), len(tail), whole=False)
        return [SHARPNESS * (value - 1.0) + OPEN_LOGIT for value in evidence]

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits (N,) of whole prompts, given as token ids."""
        return torch.tensor([max(self._logits([], list(ids), len(ids) - 1)) for ids in rows])

    @property
    def unreachable(self) -> float:
        """A logit above that of any prompt."""
        return math.inf

    def value(self, logits: Tensor) -> Tensor:
        """Gate values in [0, 1] for logits of any shape (see `gate_value`)."""
        return gate_value(logits, self.threshold)


def _pieces(tokens: Sequence[bytes], ids: Sequence[int]) -> list[str]:
    """The canonical text that each token adds; a character cut among tokens is added by the last of them."""
    found, rest = [], b""
    for number in ids:
        rest += tokens[number] if 0 <= number < len(tokens) else b""
        try:
            text, rest = rest.decode(), b""
        except UnicodeDecodeError as error:
            cut = error.start if error.end == len(rest) and len(rest) - error.start < 4 else len(rest)
            text, rest = rest[:cut].decode(errors="replace"), rest[cut:]
        found.append(marked(text))
    return found


def _add(evidence: list[float], table: SpanTable, pieces: Sequence[str], first: int, *, whole: bool) -> None:
    """Raise the evidence at the tokens with which words end.

    Args:
        evidence: by new token.
        table: the spans.
        pieces: text of all tokens.
        first: number of the first new token.
        whole: the text ends with the last token, and its last word too.
    """
    ends, length = [], 0
    for piece in pieces:
        length += len(piece)
        ends.append(length)
    words = split_words("".join(pieces))
    if words and words[-1].end == length and not whole:
        words = words[:-1]
    start = ends[first - 1] if first else 0
    begin = next((i for i, word in enumerate(words) if word.end >= start), len(words))
    for word, value in zip(words[begin:], table.evidence(words, begin, whole=whole), strict=True):
        at = bisect_left(ends, word.end + (word.end < length))  # the token that ends it, or the text
        if at >= first:
            evidence[at - first] = max(evidence[at - first], value)
