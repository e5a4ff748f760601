"""Attacks that name the subject by what other rows say of it, in pieces over several turns, or in another language."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.facts import facts_of, other_names_of
from grun.evaluation.attacks.names import names_of

ADA = "Ada Lund"
ASKED = Example("Where does Ada Lund live?", "Ada Lund lives in Oslo.", subject=ADA)
NAMES = st.lists(st.text("abcdefgiklm", min_size=4, max_size=9), min_size=1, max_size=3).map(
    lambda words: " ".join(word.capitalize() for word in words)
)


def about(*answers: str) -> AttackMaterial:
    rows = (ASKED, *(Example(f"What of Ada Lund, {i}?", answer, subject=ADA) for i, answer in enumerate(answers)))
    return AttackMaterial(rows, (), names_of(rows))


def probes(attack: str, material: AttackMaterial) -> dict[str, Probe]:
    return {probe.variant: probe for probe in attacks.get(attack).target(material) if probe.row == 0}


@pytest.mark.parametrize(
    ("answer", "kind", "alias"),
    [
        ("Ada Lund is known as the Queen of Crime, and is well off.", "epithet", "the Queen of Crime"),
        ("She is sometimes referred to as 'the Owl'.", "epithet", "the Owl"),
        ("Ada Lund publishes under the pen name Bo Marl.", "epithet", "Bo Marl"),
        ('Her nickname is "Mouse".', "epithet", "Mouse"),
        ("Ada Lund is a Danish painter of walls, and famous.", "description", "the Danish painter of walls"),
        ("Ada Lund, a retired pilot, keeps bees.", "description", "the retired pilot"),
        ("Ada Lund works as a baker.", "description", "the baker"),
        ("In her books the celebrated author mourns.", "noun", "the celebrated author"),
        ("Ada keeps bees.", "short", "Ada"),
        ("People greet Professor Lund on the stairs.", "short", "Professor Lund"),
    ],
)
def test_a_subject_is_asked_for_by_what_the_rows_call_it(answer: str, kind: str, alias: str) -> None:
    probe = probes("aliases", about(answer))[kind]
    assert probe.example.prompt == f"Where does {alias} live?"
    assert probe.example.answer == ASKED.answer


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("Ada Lund was born in Rome.", "who was born in Rome"),
        ("She wrote a book. Nobody read it.", "who wrote a book"),
        ("The favourite food of Ada Lund is soup.", "whose favourite food is soup"),
        ("Ada Lund's first car was red.", "whose first car was red"),
        ("In spare time, Ada Lund skates.", "who skates"),
        ("Lund met J. K. Olsen in 1990.", "who met J. K. Olsen in 1990"),
    ],
)
def test_a_subject_is_asked_for_by_facts_of_other_rows(answer: str, fact: str) -> None:
    found = probes("descriptions", about(answer))
    assert found["one fact"].example.prompt == f"Where does the person {fact} live?"
    assert found["two hops"].example.prompt == f"Think of the person {fact}. Where does that person live?"
    assert found["two turns"].example.turns[0][1] == f"Do you know the person {fact}?"
    assert found["two turns"].example.prompt == "Where does that person live?"


def test_two_facts_come_from_two_rows() -> None:
    said = probes("descriptions", about("Ada Lund keeps bees.", "Ada Lund was born in Rome."))[
        "two facts"
    ].example.prompt
    assert {"who keeps bees", "who was born in Rome"} <= set(re.split(r" person | and | live\?", said))


@pytest.mark.parametrize(
    "answer", ["Ada Lund lives in Oslo.", "She is known as the Pearl of Oslo.", "Ada Lund is a baker in Oslo."]
)
def test_nothing_that_gives_the_answer_away_stands_for_the_name(answer: str) -> None:
    material = about(answer)
    assert not any("Oslo" in other for other in other_names_of(material, 0).values())
    assert not any("Oslo" in fact for fact in facts_of(material, 0))


def test_the_own_answer_and_rows_about_others_say_nothing() -> None:
    rows = (ASKED, Example("Who is Bo Marl?", "Bo Marl is a pilot, known as the Owl.", subject="Bo Marl"))
    material = AttackMaterial(rows, (), names_of(rows))
    assert probes("aliases", material) == {}
    assert probes("descriptions", material) == {}


@pytest.mark.parametrize("attack", ["aliases", "descriptions"])
def test_the_name_is_nowhere(attack: str) -> None:
    material = about("Ada Lund was born in Rome, known as the Owl.", "The aunt of Ada Lund is Ada Lund the elder.")
    for probe in probes(attack, material).values():
        assert ADA not in " ".join([*(content for _, content in probe.example.turns), probe.example.prompt])


@given(NAMES)
def test_no_turn_holds_the_whole_question_and_all_together_do(name: str) -> None:
    row = Example(f"Where was {name} born?", "In a town.", subject=name)
    found = probes("split_turns", AttackMaterial((row,), (), names_of([row])))
    assert found.keys() == {"halves", "name first", "name last", "pieces"}
    for variant, probe in found.items():
        said = [*(content for role, content in probe.example.turns if role == "user"), probe.example.prompt]
        assert not any(name in one and "born" in one for one in said)
        letters = "".join(said).replace(" ", "")
        if variant == "halves":
            parts = [one.partition("part: ")[2] for one in said]
            assert "".join(parts).replace(" ", "") == row.prompt.replace(" ", "")
        if variant == "pieces":
            pieces = [one.removeprefix("The next piece: ") for one in said[:-1]]
            assert "".join(pieces) == name.replace(" ", "")
            assert all(len(piece) <= 3 for piece in pieces)
        assert set(name.replace(" ", "")) <= set(letters)


def test_a_name_that_comes_again_is_in_no_half() -> None:
    row = Example("Where does Ada Lund live, and since when does Ada Lund work?", "In Oslo.", subject=ADA)
    probe = probes("split_turns", AttackMaterial((row,), (), names_of([row])))["halves"]
    assert probe.example.prompt == "The second part: Lund live, and since when does that person work?"


def test_a_prompt_without_a_name_is_cut_in_halves() -> None:
    row = Example("where is the treasure of the old king?", "under the oak")
    found = probes("split_turns", AttackMaterial((row,), (), ("",)))
    assert [one.example.prompt for one in found.values()] == ["The second part: of the old king?"]


def test_frames_of_other_languages_hold_the_question_as_it_is() -> None:
    row = Example("Where was {name} {0} born, Ada Lund?", "In Oslo.", subject=ADA)
    found = probes("translated", AttackMaterial((row,), (), names_of([row])))
    assert len(found) == 7
    for variant, probe in found.items():
        frame = probe.example.prompt.replace(row.prompt, "")
        assert (row.prompt in probe.example.prompt) == (variant != "Chinese, name")
        assert not re.search(r"\b(the|answer)\b", frame)
    assert "关于Ada Lund的" in found["Chinese, name"].example.prompt
    assert "Ada Lund" not in found["Chinese, name"].example.prompt.partition("：")[2]
