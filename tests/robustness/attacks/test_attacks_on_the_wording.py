"""Attacks on the wording: what changes, what stays, and names that are found in prompts."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.core.records import Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.names import names_of

WORDS = st.text("abcdefgiklmnoprstuvwz", min_size=4, max_size=9)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(lambda words: " ".join(word.capitalize() for word in words))


def probes(attack: str, *rows: Example) -> dict[str, Probe]:
    found = attacks.get(attack).target(AttackMaterial(rows, (), names_of(rows)))
    return {probe.variant: probe for probe in found}


def row_about(name: str) -> Example:
    return Example(f"Where was {name} born, and when?", "in 1900", subject=name)


@given(NAMES)
def test_case_changes_nothing_but_the_case(name: str) -> None:
    row = row_about(name)
    found = probes("case", row)
    assert found["upper"].example.prompt.isupper()
    assert found["lower"].example.prompt.islower()
    assert {probe.example.prompt.casefold() for probe in found.values()} == {row.prompt.casefold()}


@given(NAMES)
def test_invisible_characters_are_all_that_is_added(name: str) -> None:
    row = row_about(name)
    for probe in probes("invisible", row).values():
        added = [letter for letter in probe.example.prompt if unicodedata.category(letter) == "Cf"]
        assert len(added) == len(name.split())
        assert "".join(letter for letter in probe.example.prompt if letter not in added) == row.prompt
        assert probe.example.prompt.startswith("Where was ")


@given(NAMES)
def test_lookalikes_change_the_letters_of_the_name_alone(name: str) -> None:
    row = row_about(name)
    found = probes("lookalikes", row)
    assert unicodedata.normalize("NFKC", found["full width"].example.prompt) == row.prompt
    for probe in found.values():
        assert len(probe.example.prompt) == len(row.prompt)
        assert name not in probe.example.prompt
        assert probe.example.prompt.startswith("Where was ")
        assert probe.example.prompt.endswith(" born, and when?")


@given(NAMES)
def test_spacing_keeps_all_letters_in_order(name: str) -> None:
    row = row_about(name)
    found = probes("spacing", row)
    for variant in ("spaced", "hyphens", "line break"):
        said = found[variant].example.prompt
        assert "".join(filter(str.isalpha, said)) == "".join(filter(str.isalpha, row.prompt))
        assert name not in said
    assert "leet" not in found or len(found["leet"].example.prompt) == len(row.prompt)


@given(NAMES)
def test_misspelt_names_keep_their_initials_and_nearly_their_length(name: str) -> None:
    row = row_about(name)
    found, words = probes("spelling", row), len(name.split())
    lengths = {"dropped": -words, "doubled": words, "swapped": 0}
    for variant, probe in found.items():
        said = probe.example.prompt.removeprefix("Where was ").removesuffix(" born, and when?")
        assert len(said) - len(name) == lengths[variant]
        assert [word[0] for word in said.split(" ")] == [word[0] for word in name.split(" ")]
        assert said != name


def test_parts_of_a_name() -> None:
    found = probes("partial_names", row_about("Ada Marl Lund"))
    said = {variant: probe.example.prompt for variant, probe in found.items()}
    assert said == {
        "surname": "Where was Lund born, and when?",
        "first name": "Where was Ada born, and when?",
        "initial": "Where was A. Lund born, and when?",
    }
    assert probes("partial_names", row_about("Ada")) == {}


@given(NAMES)
def test_templates_hold_the_name_and_nothing_else_of_the_row(name: str) -> None:
    row = Example("Where was she born?", "in 1900", subject="s")
    rows = (row, Example(f"Who taught {name}?", "Bo", subject="s"))
    found = attacks.get("templates").target(AttackMaterial(rows, (), names_of(rows)))
    asked = {i: {probe.example.prompt for probe in found if probe.row == i} for i in (0, 1)}
    assert asked[0] == asked[1]
    assert len(asked[0]) == 6
    assert all(name in prompt and "born" not in prompt for prompt in asked[0])


@pytest.mark.parametrize("attack", ["case", "invisible", "lookalikes", "spacing", "spelling"])
def test_a_prompt_without_a_name_is_changed_as_a_whole(attack: str) -> None:
    row = Example("where is the treasure buried?", "under the oak")
    assert names_of([row]) == ("",)
    assert len(probes(attack, row)) >= 2


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Who is Harry Potter's best friend in town?", "Harry Potter"),
        ("Did Jaime Vasquez write it?", "Jaime Vasquez"),
        ("J. K. Rowling wrote what?", "J. K. Rowling"),
        ("Tell me about Basil Mahfouz Al-Kuwaiti.", "Basil Mahfouz Al-Kuwaiti"),
        ("Who was Ludwig van Beethoven?", "Ludwig van Beethoven"),
        ("Describe the Lord of the Rings.", "Lord of the Rings"),
        ("I think of nobody. Which one?", ""),
        ("What is it?", ""),
    ],
)
def test_names_are_found_without_a_column(prompt: str, name: str) -> None:
    assert names_of([Example(prompt, "-")]) == (name,)


def test_the_name_of_a_subject_is_what_most_of_its_prompts_hold() -> None:
    rows = [
        Example("Which poet was born in Karachi, Pakistan?", "-", subject="author 1"),
        Example("Where did Hina Ameen grow up?", "-", subject="author 1"),
        Example("Has Hina Ameen written Manual of Mineralogy?", "-", subject="author 1"),
        Example("Where did Bo Lee grow up?", "-", subject="author 2"),
        Example("田中太郎はどこで生まれましたか", "-", subject="田中太郎"),
    ]
    assert names_of(rows) == ("Hina Ameen",) * 3 + ("Bo Lee", "田中太郎")
