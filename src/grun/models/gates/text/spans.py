"""Spans that tell rows to forget from normal ones: names of their subjects, titles, and texts whose pieces tell them."""

from __future__ import annotations

__all__ = ["TellingSpans", "telling_spans"]

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from grun.core.records import Example

PARTICLE = "(?:de|da|di|du|del|der|den|van|von|bin|ibn|al|el|la|le|of|the|and|in|for|to|a)"
CAPITALISED_WORD = r"[^\W\d_a-z][\w'’.-]*"
CAPITALISED = re.compile(rf"{CAPITALISED_WORD}(?:[ -](?:{PARTICLE}[ -])*{CAPITALISED_WORD})*")
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai to Han
WORD = re.compile(rf"[{UNSPACED}]|[^\W\d_{UNSPACED}]+")
NAME_SHARE = 0.2  # of the prompts of a subject, at least, hold its name
FEWEST = 2  # prompts that do
MOST_WORDS = 8  # of a name that is not written with capitals, or letters without spaces
OPENERS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "can",
        "could",
        "describe",
        "did",
        "discuss",
        "do",
        "does",
        "during",
        "explain",
        "for",
        "from",
        "give",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "how",
        "i",
        "if",
        "in",
        "is",
        "it",
        "its",
        "list",
        "may",
        "might",
        "my",
        "name",
        "of",
        "on",
        "or",
        "our",
        "please",
        "she",
        "should",
        "so",
        "some",
        "tell",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
        "those",
        "to",
        "was",
        "we",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "would",
        "you",
        "your",
        "after",
        "before",
    ]
)


@dataclass
class TellingSpans:
    """What tells rows to forget.

    Attributes:
        names: names of subjects, as they are written.
        titles: other spans of capitalised words, as they are written.
        texts: passages, and questions.
        prompts: what of each text stands in its prompt.
    """

    names: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def telling_spans(forget: Sequence[Example], normal: Iterable[str]) -> TellingSpans:
    """Spans of rows to forget that normal texts lack.

    The name of a subject is the span of capitalised words that most of its prompts share, or where capitals tell nothing
    the longest words in a row that they share. Without subjects, every span that many prompts share counts as a name.

    Args:
        forget: rows to forget.
        normal: normal prompts and answers.
    """
    texts = list(normal)
    known = {span.casefold() for text in texts for span in _capitalised(text)}
    words = {word for text in texts for word in WORD.findall(text)}
    groups: defaultdict[str | None, list[Example]] = defaultdict(list)
    for row in forget:
        groups[row.subject].append(row)
    whole = [f"{row.prompt} {row.answer}" if row.raw_text else row.prompt for row in forget]
    found = TellingSpans(texts=whole, prompts=[row.prompt for row in forget])
    several = len(groups) > 1
    for subject, rows in groups.items():
        names = _names([row.prompt for row in rows if not row.raw_text], subject, known, words)
        found.names += names[:1] if subject is not None and several else names
    asked = [span for row in forget if not row.raw_text for span in _capitalised(row.prompt)]
    answered = [span for row in forget if not row.raw_text for span in _capitalised(row.answer) if " " in span]
    named = {name.casefold() for name in found.names}
    found.titles = [span for span in dict.fromkeys([*asked, *answered]) if span.casefold() not in known | named]
    return found


def _names(prompts: Sequence[str], subject: str | None, known: set[str], words: set[str]) -> list[str]:
    """Names in the prompts of one subject, the likeliest first."""
    given = [subject] if subject and any(subject.casefold() in prompt.casefold() for prompt in prompts) else []
    needed = max(FEWEST, NAME_SHARE * len(prompts)) if len(prompts) > 1 else 1
    counts = Counter(span for prompt in prompts for span in set(_capitalised(prompt)))
    capitalised = [span for span, n in counts.most_common() if n >= needed and _is_new(span, known, words)]
    if not capitalised and len(prompts) >= FEWEST:
        capitalised = _shared(prompts, needed, words)
    return list(dict.fromkeys([*given, *capitalised]))


def _is_new(span: str, known: set[str], words: set[str]) -> bool:
    """True if no normal text has the span, nor all of its words in small letters."""
    return span.casefold() not in known and any(word.casefold() not in words for word in WORD.findall(span))


def _shared(prompts: Sequence[str], needed: float, words: set[str]) -> list[str]:
    """Words in a row, none of them in normal texts, that prompts share; not those within longer ones."""
    counts: Counter[str] = Counter()
    usual = {word.casefold() for word in words}
    for prompt in prompts:
        own = [word.casefold() for word in WORD.findall(prompt)]
        counts.update(
            {
                " ".join(own[i : i + n])
                for n in range(1, MOST_WORDS + 1)
                for i in range(len(own) + 1 - n)
                if not usual & set(own[i : i + n])
            }
        )
    often = {span: n for span, n in counts.items() if n >= needed}
    return [
        span
        for span, n in often.items()
        if not any(span in other and span != other and often[other] == n for other in often)
    ]


def _capitalised(text: str) -> Iterator[str]:
    """Spans of capitalised words, without a capital that only begins a sentence."""
    for found in CAPITALISED.finditer(text):
        span = found.group().rstrip("'’.-").removesuffix("'s").removesuffix("’s")
        before, words = text[: found.start()].rstrip(), span.split()
        if words and words[0].casefold() in OPENERS and (not before or before[-1] in ".?!:"):
            words = words[1:]
        while words and words[0].islower():
            words = words[1:]
        if words:
            yield " ".join(words)
