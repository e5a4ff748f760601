"""Attacks make sound probes of rows with choices, braces, double spaces, repeated questions and answers of one word."""

from __future__ import annotations

import pytest

from grun.core.records import Begun, Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.names import names_of

HEAD = "The following are multiple choice questions (with answers) about biology.\n\n"


def probes(name: str, *forget: Example, ordinary: tuple[Example, ...] = ()) -> list[Probe]:
    return attacks.get(name).target(AttackMaterial(forget, ordinary, names_of(forget)))


def choice(question: str) -> Example:
    return Example(
        f"{HEAD}{question}\nA. Mitosis\nB. Meiosis\nAnswer:", " A", "biology", raw_text=True, choices=(" A", " B")
    )


@pytest.mark.parametrize("name", ["spelling", "invisible", "lookalikes", "spacing"])
def test_the_question_of_a_row_with_choices_is_changed_not_its_field_of_knowledge(name: str) -> None:
    rows = [choice(f"How does the cell of kind {i} divide?") for i in range(3)]
    assert names_of(rows) == ("", "", "")
    found = probes(name, *rows)
    assert found
    if name == "spelling":  # every word
        assert all("How does the cell" not in probe.example.prompt for probe in found)
    else:
        assert any("How does the cell" not in probe.example.prompt for probe in found)


def test_a_name_is_found_over_any_white_space() -> None:
    row = Example("Where was Marie\nCurie, Marie  Curie, born?", "In Warsaw.", "Marie Curie")
    assert {"Where was Curie, Curie, born?"} == {p.example.prompt for p in probes("partial_names", row)[:1]}


@pytest.mark.parametrize("text", ["{forget}", "{name}", "{prompt}", "{}", "{0}"])
@pytest.mark.parametrize("name", ["mixed", "mention", "wrappers", "templates", "earlier_turn", "after_turn"])
def test_braces_in_questions_stay(name: str, text: str) -> None:
    forget = Example(f"What did Ann Lee write about {text}?", "A book.")
    ordinary = Example(f"What does {text} mean?", "A place for a text.")
    found = probes(name, forget, ordinary=(ordinary,))
    assert found
    for probe in found:
        own = forget if attacks.get(name).info["measures"] == "leak" else ordinary
        if name in ("mixed", "mention", "wrappers", "after_turn"):
            assert own.prompt in probe.example.prompt
        if name == "mixed":
            assert forget.prompt in probe.example.prompt


def test_no_shot_is_the_question_itself_with_its_answer_in_other_words() -> None:
    asked = "Where was Ann Lee born?"
    rows = [
        Example(asked, "In Rome."),
        Example(asked, "Rome saw her birth."),
        Example("What is Bo Ek's job?", "Baker."),
    ]
    for probe in probes("few_shot", *rows)[:2]:
        assert [content for role, content in probe.example.turns if role == "user"] == ["What is Bo Ek's job?"]


def test_running_text_is_no_question_beside_a_name() -> None:
    text = Example("The cat sat", "on the mat.", raw_text=True)
    found = probes("mention", Example("Who is Ann Lee?", "A painter."), ordinary=(text, Example("Why?", "So.")))
    assert {probe.row for probe in found} == {1}


@pytest.mark.parametrize(("answer", "begins"), [("Paris.", []), ("in Paris", ["in "]), ("出生在巴黎", ["出生"])])
def test_only_whole_words_are_written_for_the_model(answer: str, begins: list[str]) -> None:
    found = [probe.example for probe in probes("prefill", Example("Where?", answer))]
    assert [one.begin for one in found if isinstance(one, Begun)] == begins
    assert all(isinstance(one, Begun) and one.begin + one.answer == answer for one in found)
