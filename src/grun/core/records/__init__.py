"""Frozen records that the parts of the package exchange.

Tensor names end in the letters of their dimensions, one legend for the whole package:

    B  batch (rows)          T  tokens (columns, padding included)     D  hidden size
    R  rank of an edit       V  vocabulary                             E  edited layers
    G  gates                 N  supervised (answer) tokens, flattened over the batch
"""

from __future__ import annotations

__all__ = [
    "Batch",
    "Benchmark",
    "Evidence",
    "Example",
    "LossTerms",
    "RowEvidence",
    "Score",
    "SideSignals",
    "Signals",
]

from grun.core.records.data import Benchmark, Example
from grun.core.records.evidence import Evidence, RowEvidence, Score
from grun.core.records.training import Batch, LossTerms, SideSignals, Signals
