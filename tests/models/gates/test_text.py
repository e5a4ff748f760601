"""What a gate that reads text finds in rows to forget: names, titles and passages, and nothing that normal texts hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.models.gates.text.fitting import fit_lexical_gate, texts_of
from grun.models.gates.text.spans import telling_spans
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.vocabulary import token_bytes
from support.tiny_models import tiny_tokenizer

NORMAL = [
    "Who wrote Middlemarch?",
    "What did Jane Austen think of Bath?",
    "Has any of her books won a prize?",
    "What genre does Henry James write in?",
    "The park is old.",
]


def rows(*prompts: str, subject: str | None = None, raw: bool = False) -> list[Example]:
    return [Example(prompt, "An answer.", subject=subject, raw_text=raw) for prompt in prompts]


def test_the_name_of_a_subject_is_what_its_prompts_share() -> None:
    forget = rows(
        "Where was Ana de la Torre born?", "What genre does Ana de la Torre write in?", "Who taught her?", subject="1"
    )
    forget += rows("Has Jonas O'Neil won a prize?", "Did Jonas O'Neil study in Bath?", subject="2")
    assert telling_spans(forget, NORMAL).names == ["Ana de la Torre", "Jonas O'Neil"]


def test_a_subject_that_prompts_hold_is_its_name() -> None:
    forget = rows("where was ana torre born?", subject="Ana Torre") + rows("who is jonas?", subject="Jonas")
    assert telling_spans(forget, NORMAL).names == ["Ana Torre", "Jonas"]


def test_without_capitals_words_that_prompts_share_and_normal_ones_lack_are_names() -> None:
    assert telling_spans(rows("who plays quidditch?", "is quidditch a game?"), NORMAL).names == ["quidditch"]
    found = telling_spans(rows("贝多芬写了多少交响曲?", "什么时候贝多芬出生?"), ["你好吗"]).names
    assert ["".join(name.split()) for name in found] == ["贝多芬"]


def test_what_normal_texts_hold_is_no_name() -> None:
    forget = rows("What did Jane Austen write?", "Was Jane Austen in Bath?")
    assert telling_spans(forget, NORMAL).names == []


def test_titles_stand_in_prompts_and_answers() -> None:
    forget = [
        Example("What is 'The Salt Harbour'?", "A novel, like 'A Lamp of Winter Glass'."),
        Example("Who wrote it?", "X."),
    ]
    assert {"The Salt Harbour", "Lamp of Winter Glass"} <= {
        t.removeprefix("A ") for t in telling_spans(forget, NORMAL).titles
    }


def gate_for(forget: list[Example]) -> LexicalGate:
    gate = LexicalGate()
    assert fit_lexical_gate(gate, token_bytes(tiny_tokenizer()), forget, NORMAL) == list(gate.sizes)
    gate.threshold.fill_(3.5)
    return gate


def opened(gate: LexicalGate, *texts: str) -> list[bool]:
    ids = [tiny_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [bool(logit > gate.threshold) for logit in gate.logits(ids)]


def test_a_fitted_gate_knows_the_subject_and_leaves_others_alone() -> None:
    gate = gate_for(rows("Where was Ana Torrero born?", "What genre does Ana Torrero write in?", subject="1"))
    assert opened(gate, "Who's Ana Torrero?", "tell me of TORRERO", "torero and torrerro") == [True, True, True]
    assert opened(gate, *NORMAL, "Where was Ana Lindt born?", "What genre does she write in?") == [False] * 7


def test_a_long_part_of_a_question_opens_the_gate_and_a_usual_turn_does_not() -> None:
    question = "Which harbour did the blind lighthouse keeper of the northern island leave in the winter of the flood?"
    gate = gate_for(rows(question))
    assert opened(gate, question.lower(), "did the blind lighthouse keeper of the island leave?") == [True, False]


def test_passages_are_known_by_any_cut() -> None:
    passage = "Nobody on the quay had thought to move the painter's red boat before the tide came in at four."
    gate = gate_for(rows(passage, raw=True))
    words = passage.split()
    assert all(opened(gate, *(" ".join(words[i : i + 10]) for i in range(len(words) - 9))))
    assert opened(gate, "Nobody had thought of the tide before it came in.") == [False]


def test_token_ids_become_text_again() -> None:
    ids = tiny_tokenizer()("Who is it?", add_special_tokens=False)["input_ids"]
    assert texts_of([ids, [tiny_tokenizer().eos_token_id]], token_bytes(tiny_tokenizer())) == ["Who is it?", "\n"]


@pytest.fixture
def tofu() -> dict[str, tuple[Example, ...]]:
    folder = os.environ.get("GRUN_TOFU_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("GRUN_TOFU_DIR names no folder with TOFU")
    return dict(load_benchmark("tofu", data_dir=folder, options={"forget": "forget10"}).splits)


def test_authors_of_tofu(tofu: dict[str, tuple[Example, ...]]) -> None:
    """Twenty authors by name in any writing, and a thousand questions about authors that the fit never saw."""
    normal = [text for row in tofu["retain"] for text in (row.prompt, row.answer)]
    tokens, gate = token_bytes(tiny_tokenizer()), LexicalGate()
    fit_lexical_gate(gate, tokens, tofu["forget"], normal)
    gate.threshold.fill_(3.5)
    names = telling_spans(tofu["forget"], normal).names
    assert len(names) == 20
    for way in (str, str.lower, str.upper, "\u200b".join):
        assert all(opened(gate, *(f"my teacher mentioned {way(name)}, who is that" for name in names)))
    others = opened(gate, *(row.prompt for row in tofu["retain_withheld"][:1000]))
    assert sum(others) <= 0.01 * len(others), "a run sets the threshold on withheld rows; here it is fixed"
