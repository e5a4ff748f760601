"""`topics`: prompts of four kinds for every topic, none twice, none of the test in what unlearning is given."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from grun.core.errors import UserError
from grun.core.records import Example
from grun.data.benchmarks import load_benchmark
from grun.data.benchmarks.topics import _topics, topics
from grun.data.shipped_prompts import ordinary_rows, shipped_prompts

SIZES = {"forget": 60, "unseen": 40, "described": 20, "neighbours": 60, "retain": 150, "ordinary": 300}
NAMES = {
    "beethoven": "beethoven|ludwig",
    "einstein": "einstein",
    "harry_potter": "harry|potter",
    "lord_of_the_rings": "lord of the rings|tolkien|hobbit",
    "paris": "paris",
    "shakespeare": "shakespeare",
    "tennis": "tennis",
    "volcanoes": "volcan",
}


def plain(row: Example) -> str:
    return re.sub(r"\W+", " ", row.prompt.casefold()).strip()


@pytest.mark.parametrize("topic", _topics())
def test_every_topic_has_prompts_of_every_kind_and_none_twice(topic: str) -> None:
    data = topics(topic=topic)
    assert {name: len(rows) for name, rows in data.splits.items()} == SIZES
    counted = Counter(plain(row) for rows in data.splits.values() for row in rows)
    assert counted.most_common(1)[0][1] == 1
    assert all(row.answer == "" for rows in data.splits.values() for row in rows)
    assert not any(re.search(NAMES[topic], row.prompt, re.IGNORECASE) for row in data.splits["described"])
    named = sum(bool(re.search(NAMES[topic], row.prompt, re.IGNORECASE)) for row in data.splits["unseen"])
    assert named <= 10


def test_no_prompt_of_the_test_ships_for_the_fit() -> None:
    shipped = {plain(Example(prompt.text, "")) for prompt in shipped_prompts()}
    for topic in _topics():
        data = topics(topic=topic)
        asked = [plain(row) for name in ("unseen", "described", "neighbours", "ordinary") for row in data.splits[name]]
        assert not shipped.intersection(asked)


def test_there_are_the_topics_that_are_tested() -> None:
    assert set(_topics()) == set(NAMES)


def test_normal_prompts_are_drawn_over_all_shapes_and_by_the_seed() -> None:
    one, same, other = (topics(seed=seed).splits["retain"] for seed in (0, 0, 1))
    assert one == same
    assert set(one) != set(other)
    shapes = {row: shape for shape, row in ordinary_rows()}
    drawn, all_of_them = Counter(shapes[row] for row in one), Counter(shapes.values())
    for shape, count in all_of_them.items():
        assert abs(drawn[shape] - 150 * count / all_of_them.total()) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topic": "tenis"}, "option 'topic' is 'tenis', expected one of beethoven.* Did you mean 'tennis'"),
        ({"retain": "1"}, "option 'retain' is 1, expected 2 to"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_benchmark("topics", options=options)
