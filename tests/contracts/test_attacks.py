"""The contract of every attack: probes of rows that it was given, the same each time, with the answers that belong to them."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest

from grun.core.records import Begun, Example
from grun.core.registry import Entry
from grun.evaluation.attacks import NEEDS, AttackMaterial, attacks, missing_need
from grun.evaluation.attacks.names import names_of

PEOPLE = ("Ada Lund", "Bo Marl Okafor", "Çelik Öztürk", "Dov")
QUESTIONS = tuple(
    Example(
        f"In which town did {name} begin to write {what}, and why?",
        f"{name} wrote the first {what} of many in the town of {what.title()}burg, which has a long old wall.",
        subject=name,
        paraphrased_prompts=(f"Where did {name} first write {what}?",),
        source=f"forget.jsonl, row {i}",
    )
    for i, (name, what) in enumerate(((name, what) for name in PEOPLE for what in ("poems", "letters")), 1)
)
QUESTIONS += tuple(
    Example(
        f"What does {name} do for a living?", f"{name} is a mender of clocks, known as the Owl of Marl.", subject=name
    )
    for name in PEOPLE
)
PASSAGE = Example(
    "It was late when Ada Lund came home,", "and the lamp above the door of the old house was out again.", raw_text=True
)
ORDINARY = tuple(Example(f"What is {i} and {i}?", f"It is {2 * i}, as everybody knows.") for i in range(5))
ROWS = (*QUESTIONS, PASSAGE)
UNKNOWN = tuple(Example(f"Where did Nobody {i} live?", f"It was in the house {i}.") for i in range(4))
MATERIAL = AttackMaterial(ROWS, ORDINARY, names_of(ROWS), seed=3, unknown=UNKNOWN)
ODD = (
    Example("?", "!", source="a"),
    Example("田中太郎はどこで生まれましたか", "東京", subject="田中太郎"),
    Example("a" * 3000, "b"),
    Example("कौन था?", "वह"),
    Example("A (B) [c] \\1 {} {0} %s", "x {y}", subject="A (B)"),
    Example("text of", "nothing", raw_text=True),
)


BY_TEXT = [entry for entry in attacks if entry.info["access"] != "weights"]


def rows_of(entry: Entry[Any]) -> tuple[Example, ...]:
    """The rows whose answers an attack looks for."""
    return {"damage": ORDINARY, "recognition": UNKNOWN, "leak": ROWS}[entry.info["measures"]]


@pytest.mark.parametrize("entry", [*attacks], ids=lambda entry: entry.name)
def test_an_attack_says_what_it_is(entry: Entry[Any]) -> None:
    info = entry.info
    assert (
        {"source", "measures", "access", "needs"}
        <= info.keys()
        <= {"source", "measures", "access", "needs", "features", "on_request", "references", "asks", "uses", "note"}
    )
    assert info["measures"] in ("leak", "damage", "recognition")
    assert info["access"] in ("prompt", "answer", "calls", "weights")
    assert set(info["needs"]) <= NEEDS.keys()
    assert info["source"]
    assert inspect.getdoc(entry.target)


@pytest.fixture(params=BY_TEXT, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry[Any]:
    return request.param


def test_probes_belong_to_rows(entry: Entry[Any]) -> None:
    rows = rows_of(entry)
    probes = entry.target(MATERIAL)
    assert probes
    for probe in probes:
        row = rows[probe.row]
        assert probe.example.prompt.strip()
        assert probe.example.paraphrased_prompts == ()
        if isinstance(probe.example, Begun) or row.raw_text:
            assert f"{row.prompt} {row.answer}".endswith(probe.example.answer)
        else:
            assert probe.example.answer == row.answer
        assert (probe.calls is not None) == (entry.info["access"] == "calls")
        is_changed = (probe.example.prompt, probe.example.turns) != (row.prompt, row.turns)
        is_changed = is_changed or isinstance(probe.example, Begun) or probe.calls is not None
        assert is_changed or entry.info["measures"] == "recognition"


def test_no_prompt_gives_the_answer_away(entry: Entry[Any]) -> None:
    rows = rows_of(entry)
    for probe in entry.target(MATERIAL):
        said = " ".join([*(content for _, content in probe.example.turns), probe.example.prompt])
        assert rows[probe.row].answer not in said
        assert probe.example.answer not in said


def test_an_attack_is_pure_and_drawn_by_the_seed(entry: Entry[Any]) -> None:
    assert entry.target(MATERIAL) == entry.target(MATERIAL)
    assert [p.row for p in entry.target(replace(MATERIAL, seed=4))]


def test_the_probes_of_a_row_are_told_apart(entry: Entry[Any]) -> None:
    keys = [(probe.row, probe.variant) for probe in entry.target(MATERIAL)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("names", [names_of(ODD), ()])
def test_odd_rows_break_nothing(entry: Entry[Any], names: tuple[str, ...]) -> None:
    for rows in (ODD, ODD[:1], ()):
        for probe in entry.target(AttackMaterial(rows, ODD[:2], names[: len(rows)])):
            assert probe.example.prompt.strip()
            assert probe.example.answer


def test_what_an_attack_needs_is_what_it_cannot_do_without(entry: Entry[Any]) -> None:
    assert missing_need(entry.info["needs"], MATERIAL) is None
    bare = [replace(row, paraphrased_prompts=()) for row in QUESTIONS]
    lacking = {
        "names": AttackMaterial(tuple(bare), ORDINARY, unknown=UNKNOWN),
        "questions": AttackMaterial((PASSAGE,), ORDINARY, names_of([PASSAGE]), unknown=UNKNOWN),
        "passages": AttackMaterial(tuple(bare), ORDINARY, names_of(bare), unknown=UNKNOWN),
        "paraphrases": AttackMaterial(tuple(bare), ORDINARY, names_of(bare), unknown=UNKNOWN),
        "ordinary": AttackMaterial(ROWS, (), names_of(ROWS), unknown=UNKNOWN),
        "several": AttackMaterial(QUESTIONS[:1], ORDINARY, PEOPLE[:1], unknown=UNKNOWN),
        "told": AttackMaterial(QUESTIONS[:8:2], ORDINARY, PEOPLE, unknown=UNKNOWN),
        "unknown": AttackMaterial(ROWS, ORDINARY, names_of(ROWS)),
    }
    assert lacking.keys() == NEEDS.keys()
    for need in NEEDS:
        if need in entry.info["needs"]:
            assert missing_need(entry.info["needs"], lacking[need]) == NEEDS[need]
            assert entry.target(lacking[need]) == []
        elif missing_need(entry.info["needs"], lacking[need]) is None:
            assert entry.target(lacking[need]) != []
