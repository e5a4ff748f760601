"""Fluency of answers: a model that talks gibberish has not just forgotten."""

from __future__ import annotations

__all__ = ["distinct_bigrams", "perplexity_under_base", "word_entropy"]

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from grun.core.records import Evidence, Score
from grun.evaluation.metrics import mean_score, metrics, missing


def _perplexity(sums_N2: NDArray[np.float64]) -> float:
    """Perplexity from the sum of the log-probabilities of each answer and the number of its tokens."""
    logps, tokens = sums_N2.sum(0)
    return float(np.exp(-logps / tokens))


@metrics.register(
    "distinct_bigrams",
    label="distinct bigrams",
    range=(0.0, 1.0),
    forget="higher",
    normal="higher",
    table=False,
    needs=("generated",),
)
def distinct_bigrams(evidence: Evidence) -> Score:
    """Share of different pairs of neighbouring words in each greedy answer (distinct-2, Li et al. 2016, arXiv 1510.03055).

    Low values are repetition. An answer of fewer than two words repeats nothing and counts as 1.

    Blind spot: short answers repeat nothing.
    """
    return _of_words(evidence, lambda words: _distinct(list(zip(words, words[1:], strict=False))))


@metrics.register(
    "word_entropy",
    label="word entropy",
    range=(0.0, math.inf),
    forget="higher",
    normal="higher",
    table=False,
    needs=("generated",),
)
def word_entropy(evidence: Evidence) -> Score:
    """Entropy of the words of each greedy answer, in bits, then the mean over rows (Zhang et al. 2018, arXiv 1809.05972).

    0 for an answer that repeats one word; long answers have more.

    Blind spot: it grows with the length of the answer.
    """
    return _of_words(evidence, _entropy)


@metrics.register(
    "perplexity_under_base",
    label="perplexity under base",
    range=(1.0, math.inf),
    forget="lower",
    normal="lower",
    needs=("generated", "fluency"),
    statistic=_perplexity,
)
def perplexity_under_base(evidence: Evidence) -> Score:
    """Perplexity of the greedy answers under the model before unlearning: `exp(mean nll)` over all their tokens.

    High values mean answers that the model would not have given. Answers without a token are left out.

    Blind spot: a fluent wrong answer and a fluent leak look the same.
    """
    n = len(evidence.rows)
    if any(row.generated_base_logps is None for row in evidence.rows) or not n:
        return missing("the answers were not scored under the base model", n)
    sums = tuple((math.fsum(logps), len(logps)) for row in evidence.rows if (logps := row.generated_base_logps))
    if not sums:
        return missing("every answer is empty", n)
    if not all(math.isfinite(logp) for logp, _ in sums):
        return missing("an answer has no finite probability", n)
    return Score(_perplexity(np.asarray(sums)), n, groups=(sums,))


def _of_words(evidence: Evidence, value: Callable[[Sequence[str]], float]) -> Score:
    if any(row.generated is None for row in evidence.rows):
        return missing("no answers were generated", len(evidence.rows))
    return mean_score([value((row.generated or "").lower().split()) for row in evidence.rows])


def _distinct(items: Sequence[object]) -> float:
    return len(set(items)) / len(items) if items else 1.0


def _entropy(words: Sequence[str]) -> float:
    shares = [count / len(words) for count in Counter(words).values()]
    return max(0.0, -math.fsum(share * math.log2(share) for share in shares))
