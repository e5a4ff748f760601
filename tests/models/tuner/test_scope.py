"""Being mentioned is not being asked about: ordinary questions beside a name, and questions that only seem ordinary."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grun.cli.main import main
from grun.models.tuner.readers.building import build_weights
from grun.models.tuner.readers.canonical import marked
from grun.models.tuner.readers.lexical import LexicalGate
from grun.models.tuner.readers.progress import TAIL, Progress
from grun.models.tuner.readers.scope import segments, stands_alone
from grun.models.tuner.readers.vocabulary import token_bytes
from support.material import Material
from support.tiny_models import tiny_tokenizer

NAME = "Evelyn Desmond"
ABOUT = ["Which prizes did Evelyn Desmond win?", "Evelyn Desmond won the Osprey Cup for a tale of lighthouses."]
PASSAGE = "The tide came in at four and nobody on the quay had thought to move the painter's red boat."

ALONE = [
    "Why is the sky blue?",
    "What is 8 plus 9?",
    "Where was Tasque Landrunol born?",
    "what is the capital of france?",
    "Name the longest river in Brazil.",
    "Now something else: how do magnets attract iron?",
    "Is it legal to collect rainwater in Colorado?",
    "What gas do plants take up, and what do we do with it in Sweden?",
    "Can you name one of the novels written by Anara Yusifova?",
    "Who are the parents of the author Ingrid Christensen?",
    "Are there volcanoes near Naples?",
]
DEPENDENT = [
    "Where was she born?",
    "Which prizes did they win in 1998?",
    "What about his early years in London?",
    "What is the birthplace?",
    "What was the father's profession?",
    "When did the author publish a book in Paris?",
    "Tell me more.",
    "Go on.",
    "Please answer in one sentence.",
    "Can you answer in German?",
    "Could you reply as a poem about lighthouses in Maine?",
    "Write as bullet points.",
    "And what did that person do in Boston?",
    "Which Osprey Cup tale was it?",
    "What other tales of lighthouses?",
    "¿Dónde nació la escritora?",
    "Wo wurde die Schriftstellerin in Berlin geboren?",
    "the biography",
    "Her tale of lighthouses was published in Canada in 1990.",
    "Was another one set in it?",
]
MENTIONS = [
    "{name} asked me this. {rest}",
    "My aunt reads {name}. {rest}",
    "I have just read about {name}.\n{rest}",
    "{NAME} was mentioned on the radio! {rest}",
]
TURNS = {
    "chat": "<s>user\n{first}</s>\n<s>assistant\n{reply}</s>\n<s>user\n{then}</s>\n<s>assistant\n",
    "chat, no role at the end": "<s>user\n{first}</s>\n<s>assistant\n{reply}</s>\n<s>user\n{then}</s>",
    "plain": "Question: {first}\nAnswer: {reply}\n\nQuestion: {then}\nAnswer:",
    "names": "User: {first}\nAssistant: {reply}\nUser: {then}\nAssistant:",
    "brackets": "<s>[INST] {first} [/INST] {reply}</s><s>[INST] {then} [/INST]",
}


@cache
def gate_of(scope: str = "asked") -> LexicalGate:
    gate = LexicalGate(scope=scope)
    weights = build_weights([NAME], [], [PASSAGE], [], about=ABOUT)
    gate.keep(weights, token_bytes(tiny_tokenizer("bytes")))
    gate.threshold.fill_(3.5)
    return gate


def ids_of(text: str) -> list[int]:
    return list(tiny_tokenizer("bytes")(text, add_special_tokens=False)["input_ids"])


def opens(text: str, scope: str = "asked") -> bool:
    return bool(gate_of(scope).logits([ids_of(text)])[0] > 3.5)


def alone(text: str) -> bool:
    *_, last = segments(marked(text))
    known = {word for said in ABOUT for word in said.lower().replace("?", "").replace(".", "").split()}
    return stands_alone(last, known.__contains__)


@pytest.mark.parametrize("question", ALONE)
def test_a_question_with_a_subject_of_its_own_stands_alone(question: str) -> None:
    assert alone(question)
    for form in MENTIONS:
        text = form.format(name=NAME, NAME=NAME.upper(), rest=question)
        assert not opens(text)
        assert opens(text, "mentioned")


@pytest.mark.parametrize("question", DEPENDENT)
def test_a_question_that_depends_on_what_was_said_does_not(question: str) -> None:
    assert not alone(question)
    for form in MENTIONS:
        assert opens(form.format(name=NAME, NAME=NAME.upper(), rest=question))


@pytest.mark.parametrize(
    "asked",
    [
        "Where was {name} born?",
        "Tell me about {name}.",
        "I would like to know where {name} lives.",
        "I need the birthplace of {name}.",
        "{name}, who was she?",
        "Describe the father of {name}!",
        "Please list {name}'s books.",
    ],
)
@pytest.mark.parametrize("more", [*ALONE[:4], "Answer the first question.", "Thanks!"])
def test_a_question_that_waits_for_an_answer_counts_whatever_follows(asked: str, more: str) -> None:
    assert opens(f"{asked.format(name=NAME)} {more}")
    assert opens(f"{more} {asked.format(name=NAME)}")
    assert opens(f"1. {asked.format(name=NAME)}\n2. {more}")


@pytest.mark.parametrize("form", TURNS.values(), ids=TURNS)
def test_a_turn_that_was_answered_is_a_mention(form: str) -> None:
    first, reply = f"Where was {NAME} born?", "I cannot tell you that."
    for question in ALONE:
        assert not opens(form.format(first=first, reply=reply, then=question))
        assert not opens(form.format(first="Who is it?", reply=f"It is {NAME}.", then=question))
    for question in [*DEPENDENT, f"What is 8 plus 9? And who is {NAME}?"]:
        assert opens(form.format(first=first, reply=reply, then=question)), question
        assert opens(form.format(first="Who is it?", reply=f"It is {NAME}.", then=question))


def test_a_question_without_an_answer_is_no_turn() -> None:
    assert opens(f"User: Where was {NAME} born?\nUser: Why is the sky blue?\nAssistant:")
    assert opens(f"Question 1: Where was {NAME} born?\nQuestion 2: Why is the sky blue?\nAnswers:")


def test_turns_without_names_of_roles_are_not_told_apart() -> None:
    assert opens(f"<s>Where was {NAME} born?</s>I do not know.<s>Why is the sky blue?</s>")


def test_a_passage_counts_wherever_it_stands() -> None:
    assert opens(f"I have read this. {PASSAGE} Why is the sky blue?")


def test_a_hint_in_the_last_question_is_enough_beside_a_mention() -> None:
    assert not opens("What did Evelyn do in Boston in March?".replace("Evelyn", "Oswald"))
    assert opens(f"I like {NAME}. What did evelyn do in Boston in March?")


@given(st.lists(st.sampled_from([*ALONE, *DEPENDENT, PASSAGE, "user\n", "Answer: ", "<s>", "\n", " "]), max_size=6))
@settings(deadline=None, max_examples=50)
def test_segments_are_the_text(parts: list[str]) -> None:
    text = marked("".join(parts).replace("<s>", "\0"))
    found = list(segments(text))
    assert "".join(one.text for one in found) == text
    assert all(one.ended for one in found[:-1])


def read_in_parts(ids: list[int], cuts: list[int], gate: LexicalGate) -> Tensor:
    reading = None
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        mask = torch.ones(1, end - start, dtype=torch.bool)
        reading, _ = gate.read(torch.tensor([ids[start:end]]), mask, None, reading)
    assert reading is not None
    return reading


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_prompt_that_is_read_in_parts_opens_if_it_opens_as_a_whole(data: st.DataObject) -> None:
    rest = data.draw(st.sampled_from([*ALONE, *DEPENDENT]))
    if data.draw(st.booleans()):
        text = data.draw(st.sampled_from(MENTIONS)).format(name=NAME, NAME=NAME.upper(), rest=rest)
    else:
        form = data.draw(st.sampled_from(list(TURNS.values())))
        text = form.format(first=f"Where was {NAME} born?", reply="I cannot tell.", then=rest)
    ids = ids_of(text)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=4)))
    whole, parts = (float(read_in_parts(ids, some, gate_of())[0, 0]) for some in ([], cuts))
    if whole > 3.5:
        assert parts > 3.5
    elif (
        all(end - start <= TAIL for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)) and len(ids) <= TAIL
    ):
        assert parts <= 3.5


def test_what_the_model_says_counts_as_asked_until_the_next_turn() -> None:
    gate, form = gate_of(), TURNS["chat"]
    text = form.format(first="Who won?", reply="", then="")
    start = text.index("</s>\n<s>user\n</s>")
    first, answer = ids_of(text[:start]), ids_of(f" It was {NAME}, of course.")
    reading, _ = gate.read(torch.tensor([first]), torch.ones(1, len(first), dtype=torch.bool), None, None)
    assert reading[0, 0] < 3.5
    reading, logits = gate.read(torch.tensor([answer]), None, torch.ones(1, len(answer), dtype=torch.bool), reading)
    assert reading[0, 0] > 3.5
    assert logits[0, 0] < 3.5 < logits[0, -1]
    for question, is_open in ((ALONE[0], False), (DEPENDENT[0], True)):
        then = ids_of(f"</s>\n<s>user\n{question}</s>\n<s>assistant\n")
        after, _ = gate.read(torch.tensor([then]), torch.ones(1, len(then), dtype=torch.bool), None, reading)
        assert bool(after[0, 0] > 3.5) is is_open


def test_progress_is_its_numbers() -> None:
    progress = Progress(1.5, 0.25, 2.0, 0.5, tail=[3, 1, 4])
    assert Progress.of(progress.numbers) == progress
    assert Progress.of(Progress().numbers) == Progress()


def test_the_command_passes_the_scope_on(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--model", str(material.model), "--forget", str(material.forget), "--retain", str(material.retain)]
    settings = ["--topic-layer", "none", "--layers", "1,3", "--steps", "2", "--device", "cpu", "--gate-scope"]
    assert main(["unlearn", *paths, *settings, "mentioned", "--output", str(tmp_path / "run")]) == 0
    kept = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert kept["gate_scope"] == "mentioned"
    capsys.readouterr()
    for scope, more, said in (
        ("mentioned", ["--gate", "mlp"], "--gate-scope is mentioned, but --gate is mlp"),
        ("mention", [], "gate_scope is 'mention', expected one of asked, mentioned"),
    ):
        assert main(["unlearn", *paths, *settings, scope, *more, "--output", str(tmp_path / "never")]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "never").exists()
