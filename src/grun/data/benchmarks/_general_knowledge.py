"""The `general` split of the `fictional` benchmark: arithmetic, days, months and opposites."""

from __future__ import annotations

__all__ = ["Fact", "general_facts"]

import random
from dataclasses import dataclass

from grun.data.benchmarks._fictional_words import OPPOSITES

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
SUMS = 10


@dataclass(frozen=True)
class Fact:
    """A question in all its phrasings, its answer, the answer in other words, and wrong answers in those words."""

    subject: str
    asked: tuple[str, ...]
    unseen: tuple[str, ...]
    answer: str
    paraphrase: str
    wrong: tuple[str, ...]


def general_facts(draw: random.Random, wrong: int) -> list[Fact]:
    """About forty facts that are not about people, each with `wrong` wrong answers."""
    ordered = [*_order("day", DAYS, draw, wrong), *_order("month", MONTHS, draw, wrong)]
    return [*_sums(draw, wrong), *ordered, *_opposites(draw, wrong)]


def _sums(draw: random.Random, wrong: int) -> list[Fact]:
    pairs = draw.sample([(a, b) for a in range(2, 10) for b in range(2, 10)], SUMS)
    facts = []
    for a, b in pairs:
        others = draw.sample([n for n in range(4, 19) if n != a + b], wrong)
        facts.append(
            Fact(
                "arithmetic",
                (f"What is {a} plus {b}?", f"How much is {a} plus {b}?", f"What do you get if you add {a} and {b}?"),
                (f"Can you tell me how much {a} plus {b} is?", f"What is the sum if you add {a} and {b}?"),
                f"The sum of {a} and {b} is {a + b}.",
                f"Add {a} and {b} and you get {a + b}.",
                tuple(f"Add {a} and {b} and you get {n}." for n in others),
            )
        )
    return facts


def _order(unit: str, names: tuple[str, ...], draw: random.Random, wrong: int) -> list[Fact]:
    facts = []
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        others = draw.sample([n for n in names if n not in (name, following)], wrong)
        facts.append(
            Fact(
                f"{unit}s",
                (
                    f"Which {unit} comes after {name}?",
                    f"What {unit} follows {name}?",
                    f"What is the next {unit} after {name}?",
                ),
                (f"Can you tell me the {unit} that follows {name}?", f"Which is the next {unit} after {name}?"),
                f"The {unit} after {name} is {following}.",
                f"After {name} comes {following}.",
                tuple(f"After {name} comes {other}." for other in others),
            )
        )
    return facts


def _opposites(draw: random.Random, wrong: int) -> list[Fact]:
    facts = []
    for word, opposite in OPPOSITES:
        others = draw.sample([o for w, o in OPPOSITES if w != word], wrong)
        facts.append(
            Fact(
                "opposites",
                (
                    f"What is the opposite of {word}?",
                    f"Which word means the opposite of {word}?",
                    f"What is the contrary of {word}?",
                ),
                (f"Can you tell me the opposite of {word}?", f"Which word is the contrary of {word}?"),
                f"The opposite of {word} is {opposite}.",
                f"The word {opposite} means the contrary of {word}.",
                tuple(f"The word {other} means the contrary of {word}." for other in others),
            )
        )
    return facts
