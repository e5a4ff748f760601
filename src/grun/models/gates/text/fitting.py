"""Fit of a lexical gate: the spans that it keeps, from rows to forget and normal ones."""

from __future__ import annotations

__all__ = ["fit_lexical_gate", "texts_of"]

from collections.abc import Iterable, Sequence

from grun.core.records import Example
from grun.models.gates.text.spans import telling_spans
from grun.models.tuner.readers.building import build_weights
from grun.models.tuner.readers.canonical import BOUNDARY
from grun.models.tuner.readers.lexical import LexicalGate

SHORTEST = 4  # letters of a token that counts as a word that many texts hold


def fit_lexical_gate(
    gate: LexicalGate, tokens: Sequence[bytes], forget: Sequence[Example], normal: Iterable[str]
) -> list[int]:
    """Build the table of a gate. Nothing is learnt by steps.

    Args:
        gate: the gate.
        tokens: of the model's tokenizer (see `token_bytes`).
        forget: rows to forget.
        normal: normal texts; whatever they hold counts for nothing, whole names apart.

    Returns:
        The sizes of the gate, as `GrunConfig.lexicon` records them.
    """
    normal = list(normal)
    spans = telling_spans(forget, normal)
    about = [text for row in forget for text in (row.prompt, row.answer)]
    weights = build_weights(spans.names, spans.titles, spans.texts, normal, _words_of(tokens), spans.prompts, about)
    gate.keep(weights, tokens)
    return list(gate.sizes)


def texts_of(rows: Iterable[Sequence[int]], tokens: Sequence[bytes]) -> list[str]:
    """The texts of rows of token ids."""
    whole = (b"".join(tokens[number] for number in ids if number < len(tokens)) for ids in rows)
    return [text.decode(errors="replace").replace(BOUNDARY, "\n") for text in whole]


def _words_of(tokens: Sequence[bytes]) -> list[str]:
    """Whole words among the tokens: many texts hold them, or they would be no tokens."""
    texts = (token.decode(errors="ignore") for token in tokens if token.startswith(b" "))
    return [text[1:] for text in texts if len(text) > SHORTEST and text[1:].isalpha()]
