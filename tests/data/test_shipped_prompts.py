"""The normal prompts that ship with the package, and those of them that may be about what is to be forgotten."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.data.shipped_prompts import clashing, shipped_prompts

# A telling word, prompts that have it (in several forms), and prompts of the same script that have not.
SCRIPTS: dict[str, tuple[list[str], list[str]]] = {
    "latin": (
        ["Who is Quidditch for?", "The quidditch, explained", "QUIDDITCHES of old"],
        ["Who won?", "Explain rain."],
    ),
    "accents": (["Où est Čtyřlístek ?", "čtyřlístek", "Le « Čtyřlístek »"], ["Où est Prague ?", "Qu'est-ce ?"]),
    "combining accents": (["Cafe\u0301terion", "cafe\u0301terion now"], ["coffee", "caffeine"]),
    "cyrillic": (["Кто такой Раскольников?", "О Раскольникове", "раскольников"], ["Кто это?", "Сколько будет два?"]),
    "greek": (["Ποιος είναι ο Οδυσσέας;", "του Οδυσσέα", "ΟΔΥΣΣΈΑΣ"], ["Ποιος ήρθε;", "Τι ώρα;"]),
    "arabic": (["من هو شهرزاد؟", "قصة شهرزاد", "شهرزاد"], ["كم الساعة؟", "أين البحر؟"]),
    "hebrew": (["מי זה אודיסאוס?", "על אודיסאוס", "אודיסאוס"], ["מה השעה?", "איפה?"]),
    "devanagari": (["पॉटर कौन है?", "पॉटर की कहानी", "वह पॉटर"], ["समय क्या है?", "कहाँ?"]),
    "bengali": (["পটোটার কে?", "ওই পটোটার", "পটোটার"], ["কখন?", "কোথায়?"]),
    "hangul": (["해리포터의 작가", "해리포터는", "해리포터가"], ["몇 시야?", "어디?"]),
    "han": (["谁写了哈利波特？", "哈利波特的作者", "我喜欢哈利"], ["现在几点？", "海在何方"]),
    "kana": (["だれがハリーを書いた", "ハリーの本", "これはハリー"], ["いま何時", "うみはどこ"]),
    "thai": (["ใครเขียนแฮร์รี่", "แฮร์รี่คือใคร", "เรื่องแฮร์รี่"], ["ซบ", "ฟ้า"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_prompt_with_a_telling_word_clashes_in_any_script_and_no_other_does(script: str) -> None:
    about, other = SCRIPTS[script]
    prompts = [*other, *about, *(f"something else {i}" for i in range(100))]
    assert clashing(prompts, about * 4) == set(range(len(other), len(other) + len(about)))


WORDS = st.sampled_from(["alpha", "betamax", "gammaray", "deltas", "epsilon", "zeta"])
TEXTS = st.lists(WORDS, min_size=1, max_size=4).map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=30), st.lists(TEXTS, min_size=1, max_size=30))
def test_words_that_are_rare_or_usual_tell_nothing(prompts: list[str], forget: list[str]) -> None:
    counts, usual = (Counter(word for text in side for word in set(text.split())) for side in (forget, prompts))
    for i, text in enumerate(prompts):
        shares = {word: (counts[word] / len(forget), usual[word] / len(prompts)) for word in text.split()}
        tells = any(counts[word] >= 3 and ours > 20 * theirs for word, (ours, theirs) in shares.items())
        assert (i in clashing(prompts, forget)) == tells


def test_one_row_with_a_word_and_short_words_tell_nothing() -> None:
    prompts = ["The Quidditch cup", "The cup", *(f"something else {i}" for i in range(1000))]
    assert clashing(prompts, ["quidditch", "x", "y", "z"]) == set()
    assert clashing(prompts, ["the cup"] * 8) == set()
    assert clashing(prompts, ["quidditch"] * 3 + ["x"] * 200) == set(), "too small a share"
    assert clashing(prompts, ["quidditch"] * 12 + ["x"] * 200) == {0}


def test_what_ships_has_ordinary_prompts_and_topics_in_several_texts_each() -> None:
    found = shipped_prompts()
    assert found is shipped_prompts()
    ordinary = [prompt.text for prompt in found if prompt.topic is None]
    assert all(prompt.topic is None for prompt in found[: len(ordinary)])
    sizes = Counter(prompt.topic for prompt in found[len(ordinary) :])
    assert min(len(ordinary), len(sizes)) > 300
    assert min(sizes.values()) > 1
    assert len({prompt.text for prompt in found}) > 0.99 * len(found)
    assert all(prompt.text.strip() for prompt in found)


def test_ordinary_rows_clash_with_few_prompts_and_rows_about_a_topic_with_that_topic() -> None:
    found = shipped_prompts()
    texts = [prompt.text for prompt in found]
    topics = sorted({prompt.topic for prompt in found if prompt.topic is not None})[::40]
    own = {topic: [prompt.text for prompt in found if prompt.topic == topic] for topic in topics}
    dropped = {topic: clashing(texts, rows) for topic, rows in own.items()}
    assert all(len(numbers) < 0.1 * len(found) for numbers in dropped.values())
    itself = [topic in {found[i].topic for i in numbers} for topic, numbers in dropped.items() if numbers]
    assert all(itself)
    assert len(itself) > len(topics) / 2
