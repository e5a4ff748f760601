"""Forgotten and unknown questions, told apart by the answers that they get."""

from __future__ import annotations

__all__ = ["told_apart"]

import math
import zlib
from collections.abc import Sequence

import numpy as np

from grun.core.records import RowEvidence
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.asking import asked
from grun.evaluation.attacks.separation import Features, Matrix

LENGTHS = (1, 2, 3, 4)  # characters of an n-gram
BUCKETS = 2048  # that n-grams are counted in, by their hash


def _features(rows: Sequence[RowEvidence], logps: Sequence[Sequence[float]] | None) -> Features:
    """Numbers of the answers to rows, by their kind.

    Args:
        rows: with their answers.
        logps: of the tokens of each answer under the model that gave it; None if they are not known.
    """
    answers = [row.generated or "" for row in rows]
    found = {
        "length": np.array([[math.log1p(len(answer)), math.log1p(len(answer.split()))] for answer in answers]),
        "n-grams": np.stack([_ngrams(answer) for answer in answers]),
    }
    if logps is not None:
        found["log-probability"] = np.stack([_of_logps(own or (0.0,)) for own in logps])
    return found


@attacks.register(
    "told_apart",
    source="arXiv 2309.17410",
    measures="recognition",
    access="prompt",
    needs=("unknown",),
    features=_features,
)
def told_apart(material: AttackMaterial) -> list[Probe]:
    """Tell answers to what was forgotten from answers to what no model was taught.

    A classifier learns from half of the rows and judges the other half, and the other way round; all rows of a subject are in
    one half. It knows of an answer its length, its character n-grams, and its log-probability under the model that gives
    it, where that is at hand. The figure is the area under the ROC curve: 0.5 where nothing tells them apart.
    """
    return [Probe(asked(row), i) for i, row in enumerate(material.unknown)]


def _ngrams(answer: str) -> Matrix:
    text, counts = f" {answer.casefold()} ", np.zeros(BUCKETS)
    for length in LENGTHS:
        for start in range(len(text) - length + 1):
            counts[zlib.crc32(text[start : start + length].encode("utf-8", "replace")) % BUCKETS] += 1
    counts = np.log1p(counts)
    return np.asarray(counts / np.linalg.norm(counts))


def _of_logps(logps: Sequence[float]) -> Matrix:
    return np.array([math.fsum(logps) / len(logps), min(logps)])
