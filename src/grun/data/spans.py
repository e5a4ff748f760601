"""Spans that tell rows to forget from normal ones: names of their subjects, titles, and pieces of passages."""

from __future__ import annotations

__all__ = ["Spans", "telling_spans"]

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from grun.core.records import Example

CAPITALISED = re.compile(
    r"[^\W\d_a-z][\w'’.-]*(?:[ -](?:(?:de|da|di|du|del|der|den|van|von|bin|ibn|al|el|la|le|of|the|and|in|for|to|a)[ -])*[^\W\d_a-z][\w'’.-]*)*"
)
NAME_SHARE = 0.2  # of the rows of a subject, at least, hold its name
FEWEST = 2  # rows that do


@dataclass
class Spans:
    """What tells rows to forget.

    Attributes:
        names: names of subjects, as they are written.
        titles: other spans of several capitalised words, as they are written.
        passages: running texts whose pieces tell them.
        prompts: questions.
    """

    names: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def telling_spans(forget: Sequence[Example], normal: Iterable[str]) -> Spans:
    """Spans of rows to forget that normal texts lack.

    The name of a subject is the span of capitalised words that most of its prompts share; without subjects, every span
    that several prompts share counts as one.

    Args:
        forget: rows to forget.
        normal: normal prompts and answers.
    """
    normal = list(normal)
    known = {span.casefold() for text in normal for span in _capitalised(text)}
    plain = {word for text in normal for word in re.findall(r"[^\W\d_]+", text)}
    groups: defaultdict[str | None, list[Example]] = defaultdict(list)
    for row in forget:
        groups[row.subject].append(row)
    spans = Spans(
        passages=[f"{row.prompt} {row.answer}" for row in forget if row.raw_text],
        prompts=[row.prompt for row in forget if not row.raw_text],
    )
    for subject, rows in groups.items():
        counts = Counter(
            span for row in rows for span in set(_capitalised(row.prompt)) if _is_telling(span, known, plain)
        )
        needed = max(FEWEST, NAME_SHARE * len(rows)) if len(forget) > 1 else 1
        names = [span for span, count in counts.most_common() if count >= needed]
        if subject is not None and subject in counts:
            names = [subject, *names]
        spans.names += names[:1] if subject is not None and len(groups) > 1 else names
    texts = [text for row in forget for text in (row.prompt, row.answer)]
    several = (span for text in texts for span in _capitalised(text) if len(span.split()) > 1)
    spans.titles = [span for span in dict.fromkeys(several) if span.casefold() not in known and span not in spans.names]
    return spans


def _capitalised(text: str) -> Iterator[str]:
    """Spans of capitalised words, without a capital that only begins a sentence."""
    for found in CAPITALISED.finditer(text):
        span = found.group().rstrip("'’.-").removesuffix("'s").removesuffix("’s")
        words = span.split()
        starts = not text[: found.start()].strip() or text[: found.start()].rstrip()[-1:] in ".?!:\n"
        if starts and words and words[0].casefold() in OPENERS:
            words = words[1:]
        while words and words[0].islower():
            words = words[1:]
        if words:
            yield " ".join(words)


def _is_telling(span: str, known: set[str], plain: set[str]) -> bool:
    return span.casefold() not in known and any(word.casefold() not in plain for word in re.findall(r"[^\W\d_]+", span))


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
        "did",
        "do",
        "does",
        "for",
        "from",
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
        "may",
        "might",
        "my",
        "of",
        "on",
        "or",
        "our",
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
        "describe",
        "discuss",
        "explain",
        "give",
        "list",
        "name",
        "please",
        "during",
        "after",
        "before",
    ]
)
