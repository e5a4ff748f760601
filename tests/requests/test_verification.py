"""The result of verifying a request, and the words that it is shown in."""

from __future__ import annotations

import pytest

from grun.requests.verification import Verification

RESULTS = {
    "ok (suspended)": Verification("a", True, "suspended"),
    "ok (active; not measured: --model is missing)": Verification("a", True, "active", "--model is missing"),
    "ok (forget probability 0.102, 0.100 when it was added)": Verification("a", True, "active", "", 0.1024, 0.1),
    "is not forgotten as it was: forget probability 0.300, 0.100 when it was added.": Verification(
        "a", False, "active", "", 0.3, 0.1
    ),
    "request 'a' is damaged: x is missing; restore it from a backup.": Verification(
        "a", False, "active", "request 'a' is damaged: x is missing; restore it from a backup."
    ),
}


@pytest.mark.parametrize(("words", "result"), RESULTS.items(), ids=list(RESULTS))
def test_a_result_is_shown_in_one_line(words: str, result: Verification) -> None:
    assert str(result) == words
    assert result.ok == words.startswith("ok")
