"""Overlap of the greedy answer with the true one, by the rouge-score package with stemming, as in TOFU."""

from __future__ import annotations

__all__ = ["rouge_1_recall", "rouge_l_f1", "rouge_l_recall"]

import re
from functools import cache

from rouge_score.rouge_scorer import RougeScorer

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
        values.append(float(getattr(_scorer(kind).score(gold, row.generated)[kind], side)))
    return mean_score(values)


@cache
def _scorer(kind: str) -> RougeScorer:
    return RougeScorer([kind], use_stemmer=True)
