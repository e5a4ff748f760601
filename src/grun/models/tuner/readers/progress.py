"""How far a gate that reads text has come, and what it has found: read token by token, in parts of any size."""

from __future__ import annotations

__all__ = ["TAIL", "WIDTH", "Progress"]

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from grun.models.tuner.readers.canonical import Word, marked, split_words
from grun.models.tuner.readers.scope import Segment, Turn, segments, stands_alone
from grun.models.tuner.readers.table import SpanTable

TAIL = 64  # tokens before a part that its words may depend on
WIDTH = 5 + TAIL  # numbers of a reading
SHARPNESS = 8.0  # logits per unit of evidence
OPEN_LOGIT = 4.0  # at the evidence that opens the gate


@dataclass
class Progress:
    """What a gate has read of one text.

    Attributes:
        logit: of what was read so far; minus infinity before the first token.
        asked: evidence of what is asked about.
        mentioned: evidence of what is only mentioned.
        unsettled: evidence in a segment that has not ended.
        turn: whose turn it is.
        tail: the last token ids.
    """

    logit: float = -math.inf
    asked: float = 0.0
    mentioned: float = 0.0
    unsettled: float = 0.0
    turn: Turn = Turn.UNKNOWN
    tail: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Progress:
        """Progress from the numbers of a reading."""
        logit, asked, mentioned, unsettled, turn = numbers[: WIDTH - TAIL]
        tail = [int(number) for number in numbers[WIDTH - TAIL :] if number >= 0]
        return cls(logit, asked, mentioned, unsettled, Turn(int(turn)), tail)

    @property
    def numbers(self) -> list[float]:
        """The numbers of a reading, minus one for tokens that are missing."""
        missing = [-1.0] * (TAIL - len(self.tail))
        return [self.logit, self.asked, self.mentioned, self.unsettled, float(self.turn), *missing, *self.tail]

    def read(
        self, table: SpanTable, tokens: Sequence[bytes], new: Sequence[int], prompt: int, *, mentions: bool
    ) -> list[float]:
        """Read tokens, of which the first are a prompt's.

        Args:
            table: the spans.
            tokens: bytes by token id.
            new: token ids.
            prompt: number of tokens of the prompt; its last word ends with it.
            mentions: whatever is mentioned counts as asked about.

        Returns:
            The logit up to each token.
        """
        logits = []
        if prompt:
            text = _Text.of(tokens, self.tail, new[:prompt])
            found = text.evidence(table, whole=True)
            self._settle(text, found)
            logits = self._running(text.by_token(found))
            self.logit = logits[-1] = _logit(self._in_scope(text, table, mentions))
        if prompt < len(new):
            self.asked, self.unsettled = max(self.asked, self.unsettled), 0.0
            text = _Text.of(tokens, [*self.tail, *new[:prompt]], new[prompt:])
            found = text.evidence(table, whole=False)
            self._settle(text, [])
            self.asked = max([self.asked, *(total for _, total, _ in found)])
            logits += self._running(text.by_token(found))
            self.logit = logits[-1]
        self.tail = [*self.tail, *new][-TAIL:]
        return logits

    def _running(self, evidence: Sequence[float]) -> list[float]:
        largest, found = self.logit, []
        for value in evidence:
            largest = max(largest, _logit(value))
            found.append(largest)
        return found

    def _settle(self, text: _Text, found: Sequence[tuple[Word, float, float]]) -> None:
        """Take over the evidence in segments that have ended."""
        settled = max((one.end for one in segments(text.text[: text.start]) if one.ended), default=0)
        carried, self.unsettled = self.unsettled, 0.0
        for segment in segments(text.text):
            if segment.end <= settled:
                continue
            own = [(total, pieces) for word, total, pieces in found if segment.start < word.end <= segment.end]
            value = max([carried, *(total for total, _ in own)])
            self.asked = max([self.asked, *(pieces for _, pieces in own)])
            carried = 0.0
            if not segment.ended:
                self.unsettled = value
                return
            self._begin(segment.turn)
            if self.turn != Turn.ASSISTANT and (segment.asks or text.is_cut(segment)):
                self.asked = max(self.asked, value)
            else:
                self.mentioned = max(self.mentioned, value)

    def _begin(self, turn: Turn) -> None:
        """Begin a turn: what was asked about before an answer is only mentioned."""
        if turn == Turn.USER and self.turn == Turn.ASSISTANT:
            self.mentioned, self.asked = max(self.mentioned, self.asked), 0.0
        self.turn = turn or self.turn

    def _in_scope(self, text: _Text, table: SpanTable, mentions: bool) -> float:
        """Evidence that counts at the end of a prompt."""
        asked = max(self.asked, self.unsettled)
        if mentions or self.mentioned <= asked:
            return max(asked, self.mentioned)
        last = next((one for one in reversed(list(segments(text.text))) if not one.is_label), None)
        alone = last is not None and not text.is_cut(last) and stands_alone(last, table.knows)
        return asked if alone and last is not None and not any(table.evidence(last.words)) else self.mentioned


@dataclass(frozen=True)
class _Text:
    """Text of tokens.

    Attributes:
        text: canonical text.
        ends: number of characters up to each token.
        first: number of the first new token.
    """

    text: str
    ends: list[int]
    first: int

    @classmethod
    def of(cls, tokens: Sequence[bytes], tail: Sequence[int], new: Sequence[int]) -> _Text:
        pieces, ends, length = _pieces(tokens, [*tail[-TAIL:], *new]), [], 0
        for piece in pieces:
            length += len(piece)
            ends.append(length)
        return cls("".join(pieces), ends, len(tail[-TAIL:]))

    @property
    def start(self) -> int:
        """Number of characters before the new tokens."""
        return self.ends[self.first - 1] if self.first else 0

    def is_cut(self, segment: Segment) -> bool:
        """True if a segment may have begun before the text."""
        return segment.start == 0 and self.first == TAIL

    def evidence(self, table: SpanTable, *, whole: bool) -> list[tuple[Word, float, float]]:
        """Words that end with the new tokens, with their evidence, and that of pieces.

        Args:
            table: the spans.
            whole: the last word ends with the text.
        """
        words = split_words(self.text)
        if words and words[-1].end == len(self.text) and not whole:
            words = words[:-1]
        begin = next((i for i, word in enumerate(words) if word.end >= self.start), len(words))
        values = table.evidence_by_kind(words, begin, whole=whole)
        return [(word, *value) for word, value in zip(words[begin:], values, strict=True) if any(value)]

    def by_token(self, evidence: Sequence[tuple[Word, float, float]]) -> list[float]:
        """The evidence of words, as of `evidence`, at the new tokens with which they end."""
        found = [0.0] * (len(self.ends) - self.first)
        for word, value, _ in evidence:
            at = bisect_left(self.ends, word.end + (word.end < len(self.text)))  # the token that ends it, or the text
            if at >= self.first:
                found[at - self.first] = max(found[at - self.first], value)
        return found


def _logit(evidence: float) -> float:
    return SHARPNESS * (evidence - 1.0) + OPEN_LOGIT


@lru_cache(maxsize=1 << 16)
def _marked_token(text: str) -> str:
    """`marked`, kept for every token: in decoding the same ones are read again at each step."""
    return marked(text)


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
        found.append(_marked_token(text))
    return found
