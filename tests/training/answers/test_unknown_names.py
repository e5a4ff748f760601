"""Names that nobody has, in every script and form, and how they are put in the place of true ones and taken back."""

from __future__ import annotations

import unicodedata

import pytest

from grun.training.answers.exchange import Exchange, held_names
from grun.training.answers.unknown_names import UnknownNames, parts_of

NAMES = [
    "Sesmis Rardras",
    "Ada van Lund",
    "J. K. Rowling",
    "Jean-Luc O'Brien",
    "Henry VIII",
    "Apollo 11",
    "IBM",
    "Bo",
    "Åsa Müller",
    "hina ameen",
    "Иван Петров",
    "Αλέξης Ζορμπάς",
    "محمد علي",
    "תל אביב",
    "राम शर्मा",
    "สมชาย",
    "김철수",
    "山田太郎",
    "ハリー・ポッター",
    "გიორგი",
    "অমিত",
]
WELL_KNOWN = ["Ada Lund wrote it.", "The University of Marl is old, van and all."]
EXCHANGE = Exchange.of([("Ada Lund", "Vel Morn"), ("Αλέξης", "Ορέστης"), ("Große Straße", "Kleine Gasse")])


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names_have_the_form_of_the_name(name: str) -> None:
    made = UnknownNames([name, *NAMES], [*NAMES, *WELL_KNOWN], {"van", "of", "the"}, 0)
    found = [made.like(name, i) for i in range(6)]
    assert found == [made.like(name, i) for i in range(6)]
    assert len(set(found)) >= 3
    for one in found:
        parts, own = parts_of(one), parts_of(name)
        assert [is_word or part for is_word, part in parts] == [is_word or part for is_word, part in own]
        for (is_word, word), (_, true) in zip(parts, own, strict=True):
            if is_word:
                assert (word == true) == (true in ("van", "VIII")), one
                assert (word.isupper(), word[0].isupper()) == (true.isupper(), true[0].isupper())
                assert script(word) == script(true)
                assert abs(len(word) - len(true)) <= 4


def script(word: str) -> str:
    return unicodedata.name(word[0]).split()[0]


def test_unknown_names_are_in_no_text() -> None:
    texts = [
        f"{first}{second} {first}" for first in ("Bal", "Dor", "Fen", "Gar") for second in ("bal", "dor", "fen", "gar")
    ]
    made = UnknownNames(["Lundo"], texts, set(), 0)
    known = {word.casefold() for text in texts for word in text.split()}
    assert all(made.like("Lundo", i).casefold() not in known for i in range(50))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Where was Ada Lund born?", "Where was Vel Morn born?"),
        ("Is ADA LUND or ada  lund right?", "Is VEL MORN or vel morn right?"),
        ("Ada Lund's sister, Ada, met Ms. Lund-Marl.", "Vel Morn's sister, Vel, met Ms. Morn-Marl."),
        ("Adam Lundgren is not Ada\nLund.", "Adam Lundgren is not Vel Morn."),
        ("The lund is a wood.", "The lund is a wood."),
        ("Who is ΑΛΈΞΗΣ, or Αλέξης?", "Who is ΟΡΈΣΤΗΣ, or Ορέστης?"),
        ("Ist die Große Straße größer?", "Ist die Kleine Gasse größer?"),
    ],
)
def test_names_are_exchanged_whole_and_by_words(text: str, expected: str) -> None:
    assert EXCHANGE(text) == expected


@pytest.mark.parametrize(
    ("name", "other"),
    [("Ada van Lund", "Vel van Morn"), ("C++ (Foo)", "C++ (Bar)"), ("राम शर्मा", "याव लज्पा"), ("山田太郎", "武宏西安")],
)
def test_what_was_exchanged_is_written_back(name: str, other: str) -> None:
    text = f"«{name}», {name}. "
    there, back = Exchange.of([(name, other)]), Exchange.of([(other, name)])
    assert there(text) == f"«{other}», {other}. "
    assert back(there(text)) == text


@pytest.mark.parametrize(
    ("names", "text", "held"),
    [
        (["山 田 太 郎"], "山田太郎はどこで生まれましたか", ["山田太郎"]),
        (["र म"], "राम कहाँ पैदा हुए?", ["राम"]),
        (["ada lund"], "Where was Ada Lund born?", ["Ada Lund"]),
        (["Ada", "Ada Lund"], "Where was Ada Lund born?", ["Ada Lund"]),
        (["Ada"], "Where was Adam born?", []),
    ],
)
def test_names_are_found_as_they_are_written(names: list[str], text: str, held: list[str]) -> None:
    assert held_names(names, text) == held
