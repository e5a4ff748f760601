"""Fit of a lexical gate: the spans that it keeps, from rows to forget and normal ones."""

from __future__ import annotations

__all__ = ["fit_lexical_gate", "texts_of"]

from collections.abc import Iterable, Sequence
from typing import Any

from grun.core.records import Example
from grun.data.spans import telling_spans
from grun.models.gates.distinct_states import GateFeatures
from grun.models.tuner.lexicon.building import build_weights
from grun.models.tuner.lexicon.canonical import BOUNDARY
from grun.models.tuner.lexicon.gate import LexicalGate
from grun.models.tuner.lexicon.vocabulary import token_bytes

SHORTEST = 4  # letters of a token that counts as a word that many texts hold


def fit_lexical_gate(gate: LexicalGate, tokenizer: Any, forget: Sequence[Example], normal: Iterable[str]) -> list[int]:
    """Build the table of a gate. Nothing is learnt by steps.

    Args:
        gate: the gate.
        tokenizer: of the model.
        forget: rows to forget.
        normal: normal texts; whatever they hold counts for nothing, whole names apart.

    Returns:
        The sizes of the gate, as `GrunConfig.lexicon` records them.
    """
    normal, tokens = list(normal), token_bytes(tokenizer)
    spans = telling_spans(forget, normal)
    weights = build_weights(spans.names, spans.titles, spans.passages, spans.prompts, normal, _words_of(tokens))
    gate.keep(weights, tokens)
    return list(gate.sizes)


def texts_of(features: GateFeatures, tokens: Sequence[bytes]) -> list[str]:
    """The texts of prompts whose token ids are features of a lexical gate."""
    found = []
    for i in range(len(features.at_NP)):
        ids = features.row(i)[:, 0].long().tolist()
        text = b"".join(tokens[number] for number in ids if number < len(tokens)).decode(errors="replace")
        found.append(text.replace(BOUNDARY, "\n"))
    return found


def _words_of(tokens: Sequence[bytes]) -> list[str]:
    """Whole words among the tokens: many texts hold them, or they would be no tokens."""
    texts = (token.decode(errors="ignore") for token in tokens if token.startswith(b" "))
    return [text[1:] for text in texts if len(text) > SHORTEST and text[1:].isalpha()]
