"""Attacks by what stands around a question, and ordinary questions beside what was forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.core.records import Begun, Example
from grun.evaluation.attacks import AttackMaterial, Probe, attacks
from grun.evaluation.attacks.names import names_of
from grun.evaluation.measuring.evidence_store import row_key
from grun.models.encoding.encode import encode
from grun.models.encoding.templates import resolve_template
from support.tiny_models import tiny_tokenizer

WORDS = st.lists(st.text("abcdefg,.ä", min_size=1, max_size=6), min_size=2, max_size=14)
ROWS = tuple(
    Example(f"Where does {name} keep the {what}?", f"{name} keeps the {what} below the stairs.", subject=name)
    for name in ("Ada Lund", "Bo Marl")
    for what in ("key", "lamp", "map")
)
ORDINARY = tuple(Example(f"What is {i} plus one?", f"It is {i + 1}.") for i in range(4))


def probes(attack: str, *rows: Example, ordinary: tuple[Example, ...] = (), **settings: int) -> list[Probe]:
    return attacks.get(attack).target(AttackMaterial(rows, ordinary, names_of(rows)), **settings)


@given(WORDS)
def test_a_begun_answer_and_its_rest_are_the_answer(words: list[str]) -> None:
    row = Example("Where?", " ".join(words))
    for probe in probes("prefill", row):
        assert isinstance(probe.example, Begun)
        assert probe.example.begin + probe.example.answer == row.answer
        assert probe.example.answer.strip()
        assert probe.variant == "half" or len(probe.example.begin.split()) == int(probe.variant.split()[0])
    assert len(probes("prefill", row)) == (1 if len(words) <= 10 else 2)


@pytest.mark.parametrize("template", ["auto", "qa", "Q: {prompt}\\nA:"])
@pytest.mark.parametrize("answer", ["one two three four five six seven", "one two", "abcdef"])
def test_a_begun_answer_is_read_as_part_of_the_prompt(template: str, answer: str) -> None:
    tokenizer = tiny_tokenizer()
    written, row = resolve_template(template, tokenizer), Example("Where was it?", answer)
    whole = encode(row, tokenizer, written)
    for probe in probes("prefill", row):
        begun = encode(probe.example, tokenizer, written)
        assert isinstance(probe.example, Begun)
        read = str(tokenizer.decode(list(begun.input_ids[: begun.prompt_length])))
        assert read.endswith(probe.example.begin.rstrip(" "))
        assert tokenizer.decode(list(begun.input_ids)) == tokenizer.decode(list(whole.input_ids))
        assert begun.prompt_length > whole.prompt_length


def test_rows_that_are_begun_otherwise_are_other_rows() -> None:
    keys = {row_key(Begun("Where?", "here", begin=begin)) for begin in ("", "It is ", "There ")}
    assert len(keys) == 3
    assert row_key(Example("Where?", "here")) not in keys


def test_few_shots_are_other_forgotten_rows_of_the_same_subject_first() -> None:
    for probe in probes("few_shot", *ROWS):
        row = ROWS[probe.row]
        asked = [content for role, content in probe.example.turns if role == "user"]
        assert len(asked) == 4
        assert row.prompt not in asked
        assert all(str(row.subject) in one for one in asked[:2])
        assert probe.example.prompt == row.prompt
    assert len(probes("few_shot", *ROWS, shots=2)[0].example.turns) == 4


def test_few_shots_never_hold_the_answer() -> None:
    rows = (Example("Where was she born?", "Oslo"), Example("In which city?", "In Oslo, by the sea."))
    assert [probe.row for probe in probes("few_shot", *rows)] == [1]


def test_dilution_is_as_long_as_it_says_and_never_about_the_subject() -> None:
    row = Example("When was Mozart born?", "In 1756.", subject="Mozart")
    found = probes("dilution", row)
    assert [probe.variant for probe in found] == ["100 tokens", "400 tokens", "1500 tokens", "4000 tokens"]
    for probe, length in zip(found, (100, 400, 1500, 4000), strict=True):
        text = probe.example.prompt.removesuffix(f"\n\n{row.prompt}")
        assert len(text.split()) == int(length * 0.75)
        assert "Mozart" not in text
        assert "1756" not in text
    assert len(probes("dilution", row, longest=400)) == 2


def test_the_name_is_in_the_earlier_turn_alone() -> None:
    row = Example("What is Ada Lund's profession, and does Ada Lund like it?", "She mends clocks.", subject="Ada Lund")
    said = {probe.variant: probe.example for probe in probes("earlier_turn", row)}
    assert said["she"].prompt == "What is her profession, and does she like it?"
    assert said["they"].prompt == "What is their profession, and does they like it?"
    assert all("Ada" not in one.prompt and "Ada Lund" in one.turns[0][1] for one in said.values())


@given(st.lists(st.text("abcdef", min_size=1, max_size=5), min_size=4, max_size=120), st.integers(1, 3))
def test_passages_are_cut_into_beginning_and_rest(words: list[str], cut: int) -> None:
    row = Example(" ".join(words[:cut]), " ".join(words[cut:]), raw_text=True)
    whole = " ".join(words)
    for probe in probes("passage_cut", row):
        assert f"{probe.example.prompt} {probe.example.answer}" in whole
        assert whole.endswith(probe.example.answer)
        assert probe.example.answer
        if probe.variant != "middle":
            assert whole.startswith(probe.example.prompt)


def test_wrappers_hold_the_question_as_it_is() -> None:
    row = Example("Who put {} into {name}?", "Nobody did.")
    assert all(row.prompt in probe.example.prompt for probe in probes("wrappers", row))


@pytest.mark.parametrize("attack", ["mention", "after_turn", "mixed"])
def test_damage_is_looked_for_in_ordinary_answers(attack: str) -> None:
    found = probes(attack, *ROWS, ordinary=ORDINARY)
    assert {probe.row for probe in found} == set(range(len(ORDINARY)))
    for probe in found:
        row = ORDINARY[probe.row]
        assert probe.example.answer == row.answer
        assert row.prompt in probe.example.prompt
        said = " ".join([*(content for _, content in probe.example.turns), probe.example.prompt])
        assert "Ada Lund" in said or "Bo Marl" in said
        assert not any(one.answer in said for one in ROWS)
