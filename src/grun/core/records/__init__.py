"""Frozen records that the parts of the package exchange.

Tensor names end in the letters of their dimensions, one legend for the whole package. A digit is a dimension of that size.

    A  answer tokens of a row, padding included
    B  batch (rows)
    C  columns of a batch that are computed, of its T
    D  hidden size
    E  prompts that a gate for topics keeps
    F  features of a row by which two kinds of rows are told apart
    G  gates
    H  heads of the attention to keys and values
    K  features of a token or row: detectors of a gate, entries of a key or value, values that a metric combines
    L  keys, then values, of the layers above the first edited one
    M  ranks of several edits together; real tokens of several prompts, one after the other
    N  supervised (answer) tokens, flattened over the batch; in gates, prompts; in metrics, rows; in the tuner, adapters
    O  outputs of a linear layer
    P  prompt tokens, padding included; before a cached prefix ends, without the last one
    R  rank of an edit
    S  reading of a gate: its logit, then the detectors on the last tokens of its window
    T  tokens (columns), padding included
    U  distinct states
    V  vocabulary
    W  tokens of a window
    X  any number of leading dimensions
    Y  answers that are read together, each after a copy of its prompt's cache
"""

from __future__ import annotations

__all__ = [
    "Batch",
    "Begun",
    "Benchmark",
    "Evidence",
    "Example",
    "LossTerms",
    "RowEvidence",
    "Score",
    "SideSignals",
    "Signals",
]

from grun.core.records.data import Begun, Benchmark, Example
from grun.core.records.evidence import Evidence, RowEvidence, Score
from grun.core.records.training import Batch, LossTerms, SideSignals, Signals
