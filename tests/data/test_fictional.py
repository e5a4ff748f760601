"""The embedded benchmark: deterministic, names that cannot be confused, complete records, splits that do not leak."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grun.core.errors import UserError
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import benchmarks, load_benchmark
from grun.data.benchmarks._fictional_words import FACTS
from grun.data.benchmarks.fictional import fictional

PEOPLE_SPLITS = ("forget", "retain", "retain_heldout")
sizes = st.fixed_dictionaries(
    {
        "people": st.integers(6, 60),
        "facts": st.integers(1, 12),
        "phrasings": st.integers(1, 3),
        "seed": st.integers(0, 10**6),
    }
)


def subjects(rows: tuple[Example, ...]) -> set[str]:
    return {row.subject or "" for row in rows}


def everything_said(row: Example) -> str:
    wording = (row.prompt, row.answer, *row.paraphrased_prompts, row.paraphrased_answer or "", *row.perturbed_answers)
    return " ".join(wording).lower()


def distance(a: str, b: str) -> int:
    """Levenshtein distance."""
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        last = row
    return last[-1]


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_sizes_follow_from_the_options(options: dict[str, int]) -> None:
    data = fictional(**options)
    people, rows_each = options["people"], options["facts"] * options["phrasings"]
    counts = {name: len(subjects(data.splits[name])) for name in PEOPLE_SPLITS}
    assert counts["forget"] == max(1, round(0.1 * people))
    assert counts["retain_heldout"] == max(1, round(0.2 * people))
    assert sum(counts.values()) == people
    assert all(len(data.splits[name]) == counts[name] * rows_each for name in PEOPLE_SPLITS)


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_names_share_no_part_and_forgotten_names_occur_nowhere_else(options: dict[str, int]) -> None:
    data = fictional(**options)
    names = [name for split in PEOPLE_SPLITS for name in subjects(data.splits[split])]
    parts = [part.lower() for name in names for part in name.split()]
    assert len(set(parts)) == 2 * options["people"]
    forgotten = [part.lower() for name in subjects(data.splits["forget"]) for part in name.split()]
    others = [everything_said(row) for name, rows in data.splits.items() if name != "forget" for row in rows]
    words = {word.strip(".,?'") for text in others for word in text.split()}
    assert not words & set(forgotten)


def test_names_are_clearly_distinct() -> None:
    data = fictional(people=60)
    parts = [part for split in PEOPLE_SPLITS for name in subjects(data.splits[split]) for part in name.split()]
    assert min(distance(a.lower(), b.lower()) for a, b in combinations(parts, 2)) >= 2


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_every_row_has_the_whole_schema(options: dict[str, int]) -> None:
    data = fictional(**options)
    for split, rows in data.splits.items():
        for row in rows:
            assert row.prompt.endswith("?")
            assert row.answer.endswith(".")
            assert row.source.startswith(f"fictional {split}")
            assert len(set(row.paraphrased_prompts)) >= 2
            assert row.paraphrased_answer
            assert row.paraphrased_answer != row.answer
            wrong = set(row.perturbed_answers)
            assert len(wrong) == len(row.perturbed_answers) == 5
            assert not wrong & {row.answer, row.paraphrased_answer}
            if split != "general":
                named = (row.prompt, row.answer, row.paraphrased_answer, *wrong, *row.paraphrased_prompts)
                assert all(str(row.subject) in text for text in named)


def test_wrong_answers_differ_from_the_paraphrased_one_in_the_value_only() -> None:
    kinds = {kind.paraphrase: kind for kind in FACTS}
    rows = [row for split in PEOPLE_SPLITS for row in fictional(facts=12).splits[split]]
    for row in rows:
        starts = [p for p in kinds if (row.paraphrased_answer or "") in _all_values(p, row.subject, kinds[p].values)]
        assert len(starts) == 1
        assert set(row.perturbed_answers) <= _all_values(starts[0], row.subject, kinds[starts[0]].values)


def _all_values(sentence: str, name: str | None, values: tuple[str, ...]) -> set[str]:
    return {sentence.format(name=name, value=value) for value in values}


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_no_unseen_phrasing_is_trained_on_and_no_question_has_two_answers(options: dict[str, int]) -> None:
    data = fictional(**options)
    rows = [row for name in data.full for row in data.splits[name]]
    asked = Counter(row.prompt for row in rows)
    assert max(asked.values()) == 1
    assert not asked.keys() & {text for row in rows for text in row.paraphrased_prompts}


@given(sizes)
@settings(max_examples=20, deadline=None)
def test_splits_share_no_subject(options: dict[str, int]) -> None:
    data = fictional(**options)
    for one, other in combinations(data.splits, 2):
        assert not subjects(data.splits[one]) & subjects(data.splits[other])


def test_roles_of_the_splits() -> None:
    data = fictional()
    assert (data.forget, data.retain) == ("forget", "retain")
    assert data.full == data.evaluation == ("forget", "retain", "retain_heldout", "general")
    assert data.unseen == ("retain_heldout", "general")
    assert subjects(data.splits["general"]) == {"arithmetic", "days", "months", "opposites"}
    assert 100 <= len(data.splits["general"]) <= 140


def test_general_knowledge_is_right() -> None:
    sums = [row for row in fictional().splits["general"] if row.subject == "arithmetic"]
    for row in sums:
        a, b, total = (int(word.strip(".")) for word in row.answer.split() if word.strip(".").isdigit())
        assert a + b == total


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_one_seed_gives_one_benchmark_and_another_seed_another(seed: int) -> None:
    assert fictional(seed=seed) == fictional(seed=seed)
    first, second = (names_in(fictional(seed=s)) for s in (seed, seed + 1))
    assert not first & second


def names_in(data: Benchmark) -> set[str]:
    return {name for split in PEOPLE_SPLITS for name in subjects(data.splits[split])}


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    code = "from grun.data.benchmarks.fictional import fictional; import hashlib; "
    code += "print(hashlib.md5(repr(fictional(seed=3)).encode()).hexdigest())"
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] != ""


def test_every_kind_of_fact_has_forty_values_and_five_phrasings() -> None:
    for kind in FACTS:
        assert len(set(kind.values)) == 40, kind.name
        assert len({*kind.asked, *kind.unseen}) == 5, kind.name


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"people": "2"}, "'people'"),
        ({"people": "100000"}, "'people'"),
        ({"facts": "0"}, "'facts'"),
        ({"phrasings": "4"}, "'phrasings'"),
        ({"forget_share": "0.9"}, "nobody"),
        ({"heldout_share": "-1"}, "heldout_share"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_benchmark("fictional", options=options)


def test_options_are_converted_and_the_option_seed_wins() -> None:
    data = load_benchmark("fictional", seed=5, options={"people": "10", "forget_share": "0.2", "seed": "7"})
    assert data == fictional(people=10, forget_share=0.2, seed=7)
    assert load_benchmark("fictional", seed=5) == fictional(seed=5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"poeple": "10"}, "Did you mean 'people'"),
        ({"people": "ten"}, "'ten', expected a whole number"),
        ({"forget_share": "much"}, "'much', expected a number"),
    ],
)
def test_unknown_options_and_wrong_types_are_named(options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_benchmark("fictional", options=options)
    assert "\n" not in str(caught.value)


def test_an_unknown_benchmark_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="Did you mean 'fictional'"):
        load_benchmark("fictionl")


def test_a_folder_for_a_benchmark_without_files_is_refused() -> None:
    with pytest.raises(UserError, match="reads no files"):
        load_benchmark("fictional", data_dir="somewhere")


def test_flags_and_yes_no_options_follow_the_signature() -> None:
    @benchmarks.register("dummy for this test")  # type: ignore[arg-type]
    def dummy(*, loud: bool = False, limit: int | None = 3, size: int) -> tuple[bool, int | None, int]:
        return loud, limit, size

    try:
        found: Any = load_benchmark("dummy for this test", options={"loud": "yes", "limit": "none", "size": "4"})
        assert found == (True, None, 4)
        with pytest.raises(UserError, match="expected true or false"):
            load_benchmark("dummy for this test", options={"loud": "maybe", "size": "4"})
        with pytest.raises(UserError, match="needs option size"):
            load_benchmark("dummy for this test")
    finally:
        del benchmarks._entries["dummy for this test"]
