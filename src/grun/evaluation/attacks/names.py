"""Names of subjects, found in prompts: what rows are about, as people write it."""

from __future__ import annotations

__all__ = ["RUN", "STARTERS", "holds", "names_of", "replaced"]

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from grun.core.records import Example

# Words that begin sentences and are written with a capital for that alone; lower-case letters.
STARTERS = frozenset(
    re.findall(
        r"\w+",
        """
        a about according after although an and any are as ask at because before briefly by can choose complete
        compare could define describe did discuss do does during each every explain find finish for from give given
        had has have how i if in into is it its list may might name of on one or please provide say share should
        since so state summarize summarise tell that the their then there these they this those through to under
        until was were what whats when where which while who whom whose why will with without would write wer wie wo
        wann warum welche welcher welches nenne ist hat hatte der die das ein eine qui que quel quelle où quand
        pourquoi comment est il elle le la les un une quién qué cuál dónde cuándo cómo por es el los las
        """,
    )
)
LINKS = "de|da|di|del|della|der|den|van|von|zu|bin|ibn|bint|al|el|le|la|du|dos|of|the|and|y"
WORD = r"(?:(?:[A-Z]\.)+|[^\W\d_a-zß-öø-ÿ]\w*(?:['’-](?!s\b)\w+)*)"
RUN = re.compile(rf"(?<![\w'’-]){WORD}(?:[ ](?:(?:{LINKS})[ ])*{WORD})*")
SENTENCE_END = re.compile(r"(?:[.!?:]\s+|\n\s*)[\"“']?$")
BEFORE = 8  # characters before a run that tell whether it begins a sentence


def names_of(rows: Sequence[Example]) -> tuple[str, ...]:
    """For each row the name of its subject; empty where none is found.

    A question with choices has none: its subject is a field of knowledge, and its capitals are those of the choices. The
    subject of any other row is the name if a prompt of that subject holds it. Otherwise it is the run of capitalised words
    that most prompts of the subject hold, and for a row without a subject that one of its runs which most rows hold.
    """
    everywhere = Counter(run for row in rows for run in set(_runs(row.prompt)))
    by_subject: dict[str, list[Example]] = defaultdict(list)
    for row in rows:
        if row.subject is not None:
            by_subject[row.subject].append(row)
    known = {subject: _name(own, subject, everywhere) for subject, own in by_subject.items()}
    own = (_name([row], "", everywhere) if row.subject is None else known[row.subject] for row in rows)
    return tuple("" if row.choices else name for row, name in zip(rows, own, strict=True))


def holds(prompt: str, name: str) -> bool:
    """True if a prompt holds a name as a whole word."""
    return bool(name) and _pattern(name).search(prompt) is not None


def replaced(prompt: str, name: str, other: str) -> str:
    """A prompt with something else in the place of a name."""
    return _pattern(name).sub(lambda _: other, prompt)


def _pattern(name: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, name.split()))
    return re.compile(rf"(?<!\w){words}(?!\w)")


def _name(rows: Sequence[Example], subject: str, everywhere: Counter[str]) -> str:
    for row in rows if subject.strip() else ():
        found = re.search(_pattern(subject).pattern, row.prompt, re.IGNORECASE)
        found = found or re.search(re.escape(subject.strip()), row.prompt) if not subject.isascii() else found
        if found:
            return " ".join(found[0].split())
    counts = Counter(run for row in rows for run in set(_runs(row.prompt)))
    return max(counts, key=lambda run: (counts[run], everywhere[run], run.count(" "), len(run)), default="")


def _runs(prompt: str) -> Iterator[str]:
    """Runs of capitalised words, those that only begin a sentence left out."""
    for found in RUN.finditer(prompt):
        words = found[0].split(" ")
        before = prompt[max(0, found.start() - BEFORE) : found.start()]
        if not before.strip(" \"“'") or SENTENCE_END.search(before):
            while words and words[0].rstrip(".,").casefold() in STARTERS:
                words = words[1:]
        while words and (words[0] in LINKS.split("|") or words[0] == "I"):
            words = words[1:]
        name = " ".join(words).rstrip(".") if len(words) == 1 else " ".join(words)
        parts = [name, *re.split(rf"[ ](?:(?:{LINKS})[ ])+", name)[1:]]  # of "birthplace of Ada", "Ada" as well
        yield from dict.fromkeys(part for part in parts if sum(map(str.isalpha, part)) > 1)
