"""Overlap of the greedy answer with the true one, by the rouge-score package with stemming, as in TOFU."""

from __future__ import annotations

__all__ = ["rouge_1_recall", "rouge_l_f1", "rouge_l_recall"]

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache

from rouge_score.scoring import fmeasure
from rouge_score.tokenize import tokenize
from rouge_score.tokenizers import DefaultTokenizer

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


@metrics.register(
    "rouge_l_recall", label="ROUGE-L recall", range=(0.0, 1.0), forget="lower", normal="higher", needs=("generated",)
)
def rouge_l_recall(evidence: Evidence) -> Score:
    """Share of the true answer's words in the longest common subsequence with the greedy answer (Lin 2004).

    By the rouge-score package, with stemming.

    Blind spot: words of the question that both repeat count as well, and a wrong fact in the same sentence loses one
    word only.
    """
    return _overlap(evidence, "rougeL")


@metrics.register(
    "rouge_1_recall",
    label="ROUGE-1 recall",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    needs=("generated",),
)
def rouge_1_recall(evidence: Evidence) -> Score:
    """Share of the true answer's words that the greedy answer contains, in any order (Lin 2004).

    By the rouge-score package, with stemming.

    Blind spot: that of `rouge_l_recall`.
    """
    return _overlap(evidence, "rouge1")


@metrics.register(
    "rouge_l_f1",
    label="ROUGE-L F1",
    range=(0.0, 1.0),
    forget="lower",
    normal="higher",
    table=False,
    needs=("generated",),
)
def rouge_l_f1(evidence: Evidence) -> Score:
    """Harmonic mean of recall and precision of the longest common subsequence, as in MUSE (arXiv 2407.06460).

    The true answer is cut to the longest greedy answer: a continuation of 128 tokens cannot contain more.

    Blind spot: precision makes long answers look worse, right ones too.
    """
    return _overlap(evidence, "rougeL", "fmeasure")


def _overlap(evidence: Evidence, kind: str, side: str = "recall") -> Score:
    values = []
    for i, row in enumerate(evidence.rows):
        if row.generated is None:
            return missing("no answers were generated", len(evidence.rows))
        if not re.search(r"[a-z0-9]", row.example.answer.lower()):
            # rouge-score drops all other characters; the recall of nothing would be reported as 0
            reason = f"the answer of row {i + 1} has no Latin letter or digit, and ROUGE looks at nothing else"
            return missing(reason, len(evidence.rows))
        gold = row.gold_start or row.example.answer if side == "fmeasure" else row.example.answer
        values.append(_score(kind, side, _words(gold), _words(row.generated)))
    return mean_score(values)


def _score(kind: str, side: str, gold: Sequence[str], said: Sequence[str]) -> float:
    """Recall or F1 of two lists of stems, as the rouge-score package computes them."""
    if not gold or not said:
        return 0.0
    common = (Counter(gold) & Counter(said)).total() if kind == "rouge1" else _longest_common(gold, said)
    precision, recall = common / len(said), common / len(gold)
    return recall if side == "recall" else float(fmeasure(precision, recall))


def _longest_common(gold: Sequence[str], said: Sequence[str]) -> int:
    """Length of the longest common subsequence; the package's own table would take minutes for a text of megabytes.

    Bits of one number stand for the words of the shorter list (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").
    """
    short, long = sorted((gold, said), key=len)
    places: dict[str, int] = {}
    for i, word in enumerate(short):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(short)) - 1
    state = everything
    for word in long:
        common = state & places.get(word, 0)
        state = ((state + common) | (state - common)) & everything
    return len(short) - state.bit_count()


@lru_cache(maxsize=256)  # every metric looks at the same answers
def _words(text: str) -> tuple[str, ...]:
    """Stems of the words of a text, as the rouge-score package makes them."""
    return tuple(stem for word in tokenize(text, None) if (stem := _stem(word)))


@lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    return " ".join(_tokenizer().tokenize(word))


@cache
def _tokenizer() -> DefaultTokenizer:
    return DefaultTokenizer(use_stemmer=True)
