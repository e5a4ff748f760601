"""What rows to forget say of a subject besides its name: other names, descriptions, and facts that can stand for it."""

from __future__ import annotations

__all__ = ["facts_of", "other_names_of"]

import re
from collections.abc import Iterator
from itertools import islice

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial
from grun.evaluation.attacks.names import RUN, STARTERS, holds

PEOPLE = (
    "author|writer|poet|novelist|playwright|journalist|artist|painter|singer|musician|composer|actor|actress|director|"
    "scientist|physicist|chemist|biologist|mathematician|doctor|teacher|professor|politician|president|minister|king|queen|"
    "emperor|general|detective|wizard|witch|hero|heroine|boy|girl|man|woman"
)
CALLED = (
    r"(?:known|called|nicknamed|dubbed|referred|addressed|published|publishes|wrote|writes|writing)\b[^.;!?]{0,30}?"
    r"\b(?:as|by the name|under the name|under the pen name)(?: of)?"
    r"|nicknamed|dubbed|(?:pen name|stage name|nickname|pseudonym|alias|epithet|byname)(?: (?:is|was|of))?"
)
THING = rf"(?:[\"“‘']([^\"”’']{{2,60}})[\"”’']|((?:the )?(?-i:{RUN.pattern})))"
PHRASE_END = r"(?=[,.;:!?]|\s(?:who|whose|which|that|and|with|from|in|at|by|since|when|where|but)\b|$)"
SENTENCE = re.compile(r"(?<=\w\w[.!?])\s+")  # an initial ends no sentence
PRONOUNS = "He|She|They|It"
LONGEST, LONGEST_FACT = 7, 22  # words
MOST = 40  # rows about one subject that are read for another one
SMALL = STARTERS | frozenset(
    re.findall(r"\w+", "be been but her his not she some such them were he him our we you your up off out")
)


def other_names_of(material: AttackMaterial, row: int) -> dict[str, str]:
    """What the answers of other rows call the subject of a row, by kind; nothing that would give its answer away."""
    kinds: dict[str, list[str]] = {"epithet": [], "description": [], "noun": [], "short": []}
    name = material.name_of(row)
    for text in _told(material, row):
        kinds["epithet"] += [found[1] or found[2] for found in re.finditer(rf"(?:{CALLED})[\s,:]+{THING}", text, re.I)]
        kinds["description"] += [f"the {phrase}" for phrase in _described(text, name)]
        kinds["noun"] += [f"the {found[1]}" for found in re.finditer(rf"\b[Tt]he ((?:[a-z-]+ )?(?:{PEOPLE}))\b", text)]
        kinds["short"] += [run for run in _runs_with_a_word_of(name, text)]
    own = material.forget[row]
    usable = {kind: [one for one in found if _can_stand_for(one, name, own)] for kind, found in kinds.items()}
    return {kind: found[0] for kind, found in usable.items() if found}


def facts_of(material: AttackMaterial, row: int) -> list[str]:
    """Relative clauses about the subject of a row ("who was born in Oslo"), from the answers of other rows.

    None has a word of the name, and none would give the row's answer away.
    """
    name, own, found = material.name_of(row), material.forget[row], list[str]()
    for text in _told(material, row):
        for sentence in SENTENCE.split(text.strip()):
            clause = _clause(" ".join(sentence.split()).rstrip(".!?"), name)
            clause = clause if clause.count(" ") < LONGEST_FACT else clause.partition(",")[0]
            if clause and clause.count(" ") < LONGEST_FACT and _can_stand_for(clause, name, own, hides=True):
                found.append(clause)
    return list(dict.fromkeys(found))


def _told(material: AttackMaterial, row: int) -> Iterator[str]:
    """Answers of the other rows about the subject of a row, of the first ones if there are many."""
    name = material.name_of(row)
    others = (
        other.answer
        for i, other in enumerate(material.forget)
        if name and i != row and material.name_of(i) == name and not other.raw_text
    )
    yield from islice(others, MOST)


def _mentions(name: str) -> str:
    """A pattern of the name, and of its words alone."""
    words = [word for word in name.split() if len(word) > 2]
    return "|".join(map(re.escape, dict.fromkeys([name, *words])))


def _described(text: str, name: str) -> Iterator[str]:
    """Descriptions without their article: of "Ada is a painter of walls", "painter of walls"."""
    whom = rf"(?:{_mentions(name)}|{PRONOUNS})"
    for form in (rf"\b{whom} (?:is|was|became|works as|worked as)", rf"\b(?:{_mentions(name)}),"):
        for found in re.finditer(rf"{form} (?:an?|the) (.+?){PHRASE_END}", text):
            if found[1].count(" ") < LONGEST:
                yield found[1]


def _runs_with_a_word_of(name: str, text: str) -> Iterator[str]:
    """Names in a text that share a word with a name and are another one, such as the first name alone."""
    words = {word for word in name.split() if len(word) > 2}
    for found in RUN.finditer(text):
        run = found[0].rstrip(".")
        if run != name and not holds(run, name) and words & set(run.split()):
            yield run


def _clause(sentence: str, name: str) -> str:
    """A sentence about somebody as a relative clause; empty if it has another form."""
    whom = rf"(?:{_mentions(name)})"
    if found := re.match(rf"The ([^,]+) of {whom} ((?:is|was|are|were) .+)", sentence):
        return f"whose {found[1]} {found[2]}"
    if found := re.match(rf"(?:[^,]+, )?{whom}['’]s? ([^,]+? (?:is|was|are|were|has|have|had) .+)", sentence):
        return f"whose {found[1]}"
    if found := re.match(rf"(?:[^,]+, )?(?:{whom}|{PRONOUNS}) ([a-z].+)", sentence):
        return f"who {found[1]}"
    return ""


def _can_stand_for(text: str, name: str, row: Example, *, hides: bool = False) -> bool:
    """True if a text is another name or, with `hides`, holds no word of the name, and shares no telling word with the answer.

    Words of the question, which are known already, tell nothing.
    """
    secret = _telling(row.answer) - _telling(row.prompt)
    if (
        not text.strip()
        or text == name
        or secret & _telling(text)
        or row.answer.strip(" .").casefold() in text.casefold()
    ):
        return False
    return not (hides and _telling(name) & _telling(text))


def _telling(text: str) -> set[str]:
    """Words that say something, and numbers."""
    words = re.findall(r"\w+", text.casefold())
    return {word for word in words if (len(word) > 2 or word.isdecimal()) and word not in SMALL}
