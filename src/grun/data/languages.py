"""The language of a question, among those that grun ships refusals in."""

from __future__ import annotations

__all__ = ["ENGLISH", "OTHERS", "Languages"]

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

ENGLISH = "en"
# Neighbours of the languages with refusals: without them, their questions would pass for one of these.
OTHERS = ("ca", "cs", "da", "el", "fa", "fi", "he", "hu", "id", "ko", "no", "ro", "sv", "th", "tr", "uk", "vi")
SURE = 0.5  # probability from which on a language is believed
COMMON = 4.0  # weight of a language that all questions are in, on top of the weight of one that none is in


class Languages:
    """Languages of the questions of one request, by naive Bayes over byte n-grams (py3langid; Lui and Baldwin 2012).

    A short question ("Hogwarts houses?") says little about its language. The other questions of the request help: the
    probability of a language is weighted with `1 + 4 s` (English: `2 + 4 s`), where `s` is its mean probability over all
    questions. A language is believed if its weighted probability is at least one half.

    Args:
        questions: all questions of the request.
        known: ISO 639-1 codes of the languages to tell apart, beside `OTHERS`.
    """

    def __init__(self, questions: Sequence[str], known: Collection[str]) -> None:
        self._known = frozenset(known)
        self._asked = tuple(sorted(self._known | set(OTHERS)))
        found = [self._probabilities(question) for question in questions]
        self._weights = {
            name: (2.0 if name == ENGLISH else 1.0) + COMMON * sum(one[name] for one in found) / max(len(found), 1)
            for name in self._asked
        }

    def of(self, question: str) -> str:
        """Code of the question's language; English if none is likely enough, or the likeliest is not a known one."""
        weighted = {name: p * self._weights[name] for name, p in self._probabilities(question).items()}
        best = max(weighted, key=lambda name: weighted[name])
        sure = best in self._known and weighted[best] >= SURE * sum(weighted.values())
        return best if sure else ENGLISH

    def _probabilities(self, question: str) -> Mapping[str, float]:
        return dict(_identifier(self._asked).rank(question))


@cache
def _identifier(languages: tuple[str, ...]) -> Any:
    """The detector for these languages; its model takes half a second to load, which only refusals have to wait for."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    found.set_languages(languages)
    return found
