"""A table of hashed spans from the names, titles and passages that tell what is to be forgotten."""

from __future__ import annotations

__all__ = ["build_weights"]

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from grun.models.tuner.readers.canonical import alike, canonical, marked, split_words
from grun.models.tuner.readers.table import FUZZY, SHINGLE, close_forms, hashed, spans_at

NAME = 2.0  # evidence of a whole name; a gate opens at 1
WORD = 1.0  # of one word of a name
HINT = 0.5  # of a short title or a rare word with a capital, and of a first, short or common word of a name
PIECE = 0.17  # of a piece of a text: six of them, ten words in a row, open a gate
FEWEST_PIECES = 2  # that open a gate where prompts are shorter than ten words
SHORT_WORD = 4  # letters of a word that tells a name by itself, at least
LONG_TITLE = 3  # words of a title that opens a gate by itself, at least


def build_weights(
    names: Sequence[str],
    titles: Sequence[str],
    texts: Sequence[str],
    normal: Iterable[str],
    known: Iterable[str] = (),
    prompts: Sequence[str] | None = None,
    about: Iterable[str] = (),
) -> dict[int, float]:
    """Weights of hashed spans.

    Whatever a normal text holds counts for nothing, whole names apart.

    Args:
        names: names, as they are written.
        titles: other telling spans.
        texts: passages and questions, whose pieces count. Pieces that several of them share are usual turns, and do not.
        normal: normal texts.
        known: words that many texts hold. None of them is taken for another word's misspelling; one in small letters is but
            a hint where it stands in a name.
        prompts: what of each text stands in its prompt. A gate opens within it, if it has six words or more. By default
            the whole text.
        about: questions and answers to forget. A question of their words alone does not stand by itself.
    """
    held = {key for text in normal for key, _ in _all_spans(text)}
    known = list(known)
    usual, others = {canonical(word) for word in known if word.islower()}, {canonical(word) for word in known}
    found: dict[int, float] = {}

    def add(key: int, weight: float) -> None:
        if key not in held:
            found[key] = max(weight, found.get(key, 0.0))

    for word in {word for text in about for word in _words(text)}:
        found[hashed("about", word)] = 0.0
    for piece, weight in _own_pieces(texts, prompts or texts):
        add(hashed("piece", piece), weight)
    for title in filter(_words, titles):
        parts = _words(title)
        if len(parts) > 1 or parts[0] not in others:
            add(hashed("span", "".join(parts)), WORD if len(parts) >= LONG_TITLE else HINT)
    for name in filter(_words, names):
        parts = name.split()
        for part in dict.fromkeys([*_words(name), *("".join(_words(part)) for part in parts)]):
            is_last = part in ("".join(_words(parts[-1])), _words(parts[-1])[-1])
            tells = is_last and len(part) >= SHORT_WORD and part not in usual
            weight = WORD if tells else HINT
            add(hashed("span", part), weight)
            add(hashed("alone", part), WORD)
            if len(part) > SHORT_WORD:
                add(hashed("leet", alike(part)), weight)
            if len(part) >= FUZZY and hashed("span", part) not in held:
                for key, form in close_forms(part).items():
                    if form == part or form not in others:
                        add(key, weight)
        whole = "".join(_words(name))
        found[hashed("span", whole)] = found[hashed("leet", alike(whole))] = NAME
    return found


def _own_pieces(texts: Sequence[str], prompts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Pieces of texts, each without those that others share, unless it shares most of its own: it is given twice then."""
    pieces = [_pieces(text) for text in texts]
    counts = Counter(piece for own in pieces for piece in own)
    for own, prompt in zip(pieces, prompts, strict=True):
        alone = {piece for piece in own if counts[piece] == 1}
        kept = alone if 2 * len(alone) >= len(own) else own
        weight = max(PIECE, 1 / max(len(kept & _pieces(prompt)), FEWEST_PIECES))
        yield from ((piece, weight) for piece in sorted(kept))


def _pieces(text: str) -> set[str]:
    words = _words(text)
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) + 1 - SHINGLE)}


def _words(text: str) -> list[str]:
    return [word.text for word in split_words(canonical(text))]


def _all_spans(text: str) -> Iterator[tuple[int, str]]:
    words = split_words(marked(text))
    for i in range(len(words)):
        yield from spans_at(words, i, i == len(words) - 1)
