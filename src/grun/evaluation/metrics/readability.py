"""Readability of answers: whole sentences, and no stammering."""

from __future__ import annotations

__all__ = ["diversity", "whole_sentences"]

import math
import re
import unicodedata
from collections.abc import Callable, Sequence

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing

# Words, cut at apostrophes so that "don't't't" is a repetition; letters of scripts without spaces; single signs.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
PIECE = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
ENDS = ".!?…。！？｡।॥؟۔"  # Latin and Cyrillic, Chinese and Japanese, Devanagari, Arabic and Urdu
CLOSING = "\"'”’»«“)]）」』*_"
LENGTHS = (2, 3, 4)  # of repeated runs of pieces
STAMMERS = 0.5  # diversity below which nobody would read on


@metrics.register(
    "diversity",
    label="diversity",
    range=(0.0, 1.0),
    forget="higher",
    normal="higher",
    table=False,
    needs=("generated",),
)
def diversity(evidence: Evidence) -> Score:
    """Product over n = 2, 3, 4 of the share of different n-grams in each greedy answer (Su et al. 2022, arXiv 2202.06417).

    1 if nothing is repeated. The pieces of the n-grams are words cut at apostrophes, punctuation marks, and single letters
    of scripts without spaces, all in lower case. An answer of fewer than n pieces repeats no n-gram.

    Blind spot: short answers repeat nothing.
    """
    return _of_answers(evidence, lambda answer: _diversity(_pieces(answer)))


@metrics.register(
    "whole_sentences",
    label="whole sentences",
    range=(0.0, 1.0),
    forget="higher",
    normal="higher",
    needs=("generated",),
)
def whole_sentences(evidence: Evidence) -> Score:
    """Share of greedy answers that a person can read: they end as a sentence does, and do not stammer.

    An answer counts if its last sign is one of `.!?…`, `。！？`, `।` and `؟` (closing quotes and brackets may follow), if it
    has at least two pieces that are no signs, and if its `diversity` is at least one half.

    Blind spot: sense. An answer cut off at the longest length does not count, and a short one without a full stop neither.
    """
    return _of_answers(evidence, _is_whole)


def _of_answers(evidence: Evidence, value: Callable[[str], float]) -> Score:
    if any(row.generated is None for row in evidence.rows):
        return missing("no answers were generated", len(evidence.rows))
    return mean_score([value(row.generated or "") for row in evidence.rows])


def _is_whole(answer: str) -> float:
    pieces = _pieces(answer)
    ends = answer.rstrip().rstrip(CLOSING)[-1:] in tuple(ENDS)
    words = sum(piece[0].isalnum() for piece in pieces)
    return float(ends and words > 1 and _diversity(pieces) >= STAMMERS)


def _pieces(answer: str) -> list[str]:
    """The answer in pieces; marks on letters (accents, vowel signs) are left out, since they are no letters to `re`."""
    letters = unicodedata.normalize("NFC", answer.lower())
    return PIECE.findall("".join(letter for letter in letters if not unicodedata.category(letter).startswith("M")))


def _diversity(pieces: Sequence[str]) -> float:
    return math.prod(_different([tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1)]) for n in LENGTHS)


def _different(grams: Sequence[tuple[str, ...]]) -> float:
    return len(set(grams)) / len(grams) if grams else 1.0
