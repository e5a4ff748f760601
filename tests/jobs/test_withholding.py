"""Whole subjects are withheld, as many as asked for, and always the same ones."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grun.core.errors import UserError
from grun.core.records import Example
from grun.jobs.inputs.unlearning import withhold

ROWS = st.lists(st.sampled_from(["ada", "bo", "cleo", "dov", None]), min_size=4, max_size=60)


def rows_of(subjects: list[str | None]) -> list[Example]:
    return [Example(f"question {i}", "answer", subject) for i, subject in enumerate(subjects)]


@given(ROWS, st.floats(0.0, 0.5), st.integers(0, 3))
def test_every_row_is_on_one_side_and_no_subject_on_both(subjects: list[str | None], share: float, seed: int) -> None:
    rows = rows_of(subjects)
    try:
        learn, withheld = withhold(rows, share, seed)
    except UserError:
        assert len({subject or i for i, subject in enumerate(subjects)}) == 1
        return
    assert sorted([*learn, *withheld], key=rows.index) == rows
    assert learn == sorted(learn, key=rows.index)
    assert not {r.subject for r in learn if r.subject} & {r.subject for r in withheld if r.subject}
    largest = max(Counter(s for s in subjects if s).values(), default=1)
    assert abs(len(withheld) - share * len(rows)) <= largest / 2 + 0.5 or len(withheld) < share * len(rows)
    assert (learn, withheld) == withhold(rows, share, seed)


def test_seeds_choose_different_rows() -> None:
    rows = rows_of([None] * 50)
    assert len({tuple(r.prompt for r in withhold(rows, 0.2, seed)[1]) for seed in range(5)}) == 5
    assert all(len(withhold(rows, 0.2, seed)[1]) == 10 for seed in range(5))


def test_something_must_be_left() -> None:
    with pytest.raises(UserError, match=r"--withhold 0\.9 leaves none"):
        withhold(rows_of(["ada", "ada"]), 0.9, 0)
