"""`fictional`: invented people and some general knowledge, generated from a seed, without any file.

Its record schema is TOFU's (Maini et al. 2024, arXiv 2401.06121): paraphrased questions, a paraphrased answer, and
five wrong answers in the words of the paraphrased one.
"""

from __future__ import annotations

__all__ = ["fictional", "invent_names"]

import itertools
import random
from collections.abc import Sequence

from grun.core.errors import UserError
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import benchmarks
from grun.data.benchmarks._fictional_words import FACTS, Kind
from grun.data.benchmarks._general_knowledge import Fact, general_facts

WRONG_ANSWERS = 5
MOST_PEOPLE = 400
ONSETS = (*"bdfghjklmnprstvwz", "br", "dr", "gr", "kl", "qu", "st", "tr")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "l", "n", "r", "s", "x")


@benchmarks.register("fictional")
def fictional(
    *,
    people: int = 40,
    facts: int = 10,
    phrasings: int = 3,
    forget_share: float = 0.1,
    heldout_share: float = 0.2,
    seed: int = 0,
) -> Benchmark:
    """Invented people with facts, and general knowledge, in four splits.

    `forget` and `retain` are for unlearning; `retain_heldout` (people) and `general` (arithmetic, days, months, opposites) are
    trained into the target model but never shown to unlearning; `holdout` (as many people as `forget`) is shown to no model.
    Every training phrasing of a question is a row of its own; all rows carry two phrasings that are never trained on as
    `paraphrased_prompts`.

    Args:
        people: number of people, 3 to 400.
        facts: facts per person, 1 to 12.
        phrasings: phrasings of each question that are trained on, 1 to 3.
        forget_share: share of the people to forget.
        heldout_share: share of the people kept out of unlearning.
        seed: decides names, facts and who is in which split.

    Raises:
        UserError: if a number is out of its range or leaves a split without people.
    """
    for name, value, low, high in (
        ("people", people, 3, MOST_PEOPLE),
        ("facts", facts, 1, len(FACTS)),
        ("phrasings", phrasings, 1, 3),
    ):
        if not low <= value <= high:
            raise UserError(f"option '{name}' of benchmark 'fictional' is {value}, expected {low} to {high}.")
    sizes = _sizes(people, forget_share, heldout_share)
    draw = random.Random(f"fictional {seed}")
    everyone = [_person(name, FACTS[:facts], draw) for name in invent_names(people, draw)]
    splits: dict[str, tuple[Example, ...]] = {}
    for split, size in sizes.items():
        chosen, everyone = everyone[:size], everyone[size:]
        splits[split] = _rows(list(itertools.chain.from_iterable(chosen)), phrasings, split)
    splits["general"] = _rows(general_facts(draw, WRONG_ANSWERS), phrasings, "general")
    names = tuple(splits)
    others = random.Random(f"fictional holdout {seed}")
    known = {word for rows in splits.values() for row in rows for word in (row.subject or "").split()}
    strangers = [name for name in invent_names(MOST_PEOPLE, others) if not known & set(name.split())]
    invented = [_person(name, FACTS[:facts], others) for name in strangers[: sizes["forget"]]]
    splits["holdout"] = _rows(list(itertools.chain.from_iterable(invented)), phrasings, "holdout")
    return Benchmark(
        "fictional",
        splits,
        "forget",
        "retain",
        full=names,
        evaluation=names,
        unseen=("retain_heldout", "general"),
        holdout="holdout",
        utility={"retain": False, "retain_heldout": False, "general": True},
    )


def _sizes(people: int, forget_share: float, heldout_share: float) -> dict[str, int]:
    """People per split; each split has at least one."""
    forget, heldout = max(1, round(people * forget_share)), max(1, round(people * heldout_share))
    if min(forget_share, heldout_share) < 0 or people - forget - heldout < 1:
        raise UserError(
            f"benchmark 'fictional': forget_share {forget_share} and heldout_share {heldout_share} of {people} people "
            "leave nobody to retain; lower one of them."
        )
    return {"forget": forget, "retain": people - forget - heldout, "retain_heldout": heldout}


def invent_names(count: int, draw: random.Random) -> list[str]:
    """`count` names that are easy to tell apart: no two first or last names have more than one syllable in common."""
    syllables = ["".join(parts) for parts in itertools.product(ONSETS, VOWELS, CODAS)]
    taken = {word.lower() for kind in FACTS for value in kind.values for word in value.split()}
    used: set[frozenset[str]] = set()
    parts: list[str] = []
    while len(parts) < 2 * count:
        chosen = draw.sample(syllables, draw.choice((2, 3)))
        pairs = {frozenset(pair) for pair in itertools.combinations(chosen, 2)}
        part = "".join(chosen)
        if part not in taken and not pairs & used:
            used |= pairs
            taken.add(part)
            parts.append(part.capitalize())
    return [f"{first} {last}" for first, last in zip(parts[::2], parts[1::2], strict=True)]


def _person(name: str, kinds: Sequence[Kind], draw: random.Random) -> list[Fact]:
    """All facts about one person."""
    facts = []
    for kind in kinds:
        value, *others = draw.sample(kind.values, 1 + WRONG_ANSWERS)
        facts.append(
            Fact(
                subject=name,
                asked=tuple(question.format(name=name) for question in kind.asked),
                unseen=tuple(question.format(name=name) for question in kind.unseen),
                answer=kind.answer.format(name=name, value=value),
                paraphrase=kind.paraphrase.format(name=name, value=value),
                wrong=tuple(kind.paraphrase.format(name=name, value=other) for other in others),
            )
        )
    return facts


def _rows(facts: Sequence[Fact], phrasings: int, split: str) -> tuple[Example, ...]:
    """One row for each fact and training phrasing."""
    asked = [(fact, question) for fact in facts for question in fact.asked[:phrasings]]
    return tuple(
        Example(
            prompt=question,
            answer=fact.answer,
            subject=fact.subject,
            paraphrased_prompts=fact.unseen,
            paraphrased_answer=fact.paraphrase,
            perturbed_answers=fact.wrong,
            source=f"fictional {split}, row {number}",
        )
        for number, (fact, question) in enumerate(asked, 1)
    )
