"""Refusals: in the language of the question, one sentence per request and language, English where it is not sure."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from grun.core.records import Evidence, Example, RowEvidence
from grun.data.benchmarks import load_benchmark
from grun.data.languages import ENGLISH, OTHERS, Languages
from grun.data.refusals import REFUSALS, Refusals
from grun.evaluation.metrics.readability import PIECE, whole_sentences

QUESTIONS = {
    "en": ("When was Beethoven born?", "Who wrote Harry Potter?", "Hogwarts houses?", "who was elise in für elise"),
    "de": ("Wann wurde Beethoven geboren?", "Nenne drei Vulkane in Italien.", "Wo wohnt Harry Potter in den Ferien?"),
    "fr": ("Quand est né Beethoven ?", "Qu'est-ce qu'un volcan ?", "Où Harry Potter passe-t-il ses vacances ?"),
    "es": ("¿Cuándo nació Beethoven?", "¿Quién escribió Harry Potter?", "donde nacio beethoven"),
    "it": ("Quando è nato Beethoven?", "Chi ha scritto Harry Potter?", "Dove vive Harry Potter?"),
    "pt": ("Quando nasceu Beethoven?", "Quem escreveu Harry Potter?", "O que é um vulcão?"),
    "nl": ("Wanneer werd Beethoven geboren?", "Wie schreef Harry Potter?", "Wat is een vulkaan?"),
    "pl": ("Kiedy urodził się Beethoven?", "Kto napisał Harry'ego Pottera?", "Co to jest wulkan?"),
    "ru": ("Когда родился Бетховен?", "Кто написал Гарри Поттера?", "Что такое вулкан?"),
    "zh": ("贝多芬什么时候出生?", "谁写了哈利·波特?", "什么是火山?"),
    "ja": ("ベートーヴェンはいつ生まれましたか?", "ハリー・ポッターの作者は誰ですか?", "火山とは何ですか?"),
    "ar": ("متى ولد بيتهوفن؟", "من كتب هاري بوتر؟", "ما هو البركان؟"),
    "hi": ("बीथोवेन का जन्म कब हुआ था?", "हैरी पॉटर किसने लिखा?", "ज्वालामुखी क्या है?"),
}
UNKNOWN = (
    "När föddes Beethoven?",
    "Hvornår blev Beethoven født?",
    "Beethoven ne zaman doğdu?",
    "베토벤은 언제 태어났습니까?",
    "2+2=?",
    "Hanna Kvist",
    "",
)


@pytest.mark.parametrize("language", QUESTIONS)
def test_the_refusal_is_in_the_language_of_the_question(language: str) -> None:
    asked = QUESTIONS[language]
    refusals = Refusals(asked, seed=0)
    assert {refusals.to(question) for question in asked} <= set(REFUSALS[language])
    assert len({refusals.to(question) for question in asked}) == 1


def test_one_request_may_be_in_several_languages() -> None:
    asked = [questions[0] for questions in QUESTIONS.values()]
    refusals = Refusals(asked, seed=0)
    for language, question in zip(QUESTIONS, asked, strict=True):
        assert refusals.to(question) in REFUSALS[language]


@pytest.mark.parametrize("question", UNKNOWN)
def test_a_language_that_is_not_known_or_not_sure_is_answered_in_english(question: str) -> None:
    assert Refusals([question], seed=0).to(question) in REFUSALS[ENGLISH]


@pytest.mark.parametrize("benchmark", ["fictional", "topics"])
def test_names_of_other_languages_in_english_questions_change_nothing(benchmark: str) -> None:
    options = {"topics": {"topic": "beethoven"}, "fictional": {"people": "40"}}[benchmark]
    data = load_benchmark(benchmark, options=options)
    forget = [row.prompt for row in data.splits["forget"]]
    languages = Languages(forget, REFUSALS)
    others = ("neighbours", "unseen") if benchmark == "topics" else ("retain",)
    asked = [*forget, *(row.prompt for split in others for row in data.splits[split])]
    assert [question for question in asked if languages.of(question) != ENGLISH] == []


def test_ordinary_prompts_in_other_languages_are_told_apart() -> None:
    lines = (files("grun.data") / "ordinary_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    languages = Languages([row["prompt"] for row in rows], REFUSALS)
    found = {
        kind: [languages.of(row["prompt"]) for row in rows if (row["shape"] == "language") == kind]
        for kind in (True, False)
    }
    assert len({*found[True]} - {ENGLISH}) == len(REFUSALS) - 1
    assert sum(language != ENGLISH for language in found[False]) <= 2  # translations of a sentence that is quoted


def test_the_seed_chooses_the_sentence_and_nothing_else_does() -> None:
    asked = QUESTIONS["de"]
    chosen = [Refusals(asked, seed).to(asked[0]) for seed in range(12)]
    assert set(chosen) == set(REFUSALS["de"])
    assert [Refusals(asked, seed).to(asked[0]) for seed in range(12)] == chosen


def test_every_refusal_is_a_whole_sentence_in_its_own_language() -> None:
    assert {len(sentences) for sentences in REFUSALS.values()} == {3}
    assert not set(REFUSALS) & set(OTHERS)
    for language, sentences in REFUSALS.items():
        languages = Languages(sentences, REFUSALS)
        assert {languages.of(sentence) for sentence in sentences} == {language}
        rows = tuple(RowEvidence(Example("?", "!"), (), generated=sentence) for sentence in sentences)
        assert whole_sentences(Evidence("forget", rows)).value == 1.0


@pytest.mark.parametrize("language", sorted(set(REFUSALS) - {"ja"}))
def test_no_word_comes_twice_in_a_refusal(language: str) -> None:
    """Japanese has no spaces, and its endings recur."""
    for sentence in REFUSALS[language]:
        words = re.findall(r"[^\s,.،।]+", sentence) if language in ("ar", "hi") else PIECE.findall(sentence.lower())
        assert len(set(words)) == len(words), sentence
