"""The plan of a measurement: what is asked of which split, and which rows are whose."""

from __future__ import annotations

import pytest

from grun.core.errors import UserError
from grun.core.records import RowEvidence
from grun.evaluation.measuring import sharding
from grun.evaluation.measuring.assembly import assembled
from grun.evaluation.measuring.plan import plan_splits
from grun.evaluation.measuring.settings import MeasureSettings
from support.evaluation_kit import FORGET, ROWS, TEMPLATE

NEEDS = frozenset({"token_logps", "generated", "fluency", "perturbed", "gradient", "holdout"})
SETTINGS = MeasureSettings(TEMPLATE, NEEDS, max_new_tokens=9, answer_tokens={"forget": 3})
SPLITS = {"forget": FORGET, "retain": ROWS}


def test_every_split_is_asked_what_its_metrics_read() -> None:
    plan = {split.name: split for split in plan_splits(SPLITS, SETTINGS, "forget", ROWS[:2])}
    assert list(plan) == ["forget", "forget_paraphrased", "retain", "holdout"]
    assert plan["forget"].settings.needs == NEEDS
    assert plan["retain"].settings.needs == plan["forget_paraphrased"].settings.needs == NEEDS - {"gradient"}
    assert plan["holdout"].settings.needs == {"token_logps", "gradient", "holdout"}
    assert plan["holdout"].examples == ROWS[:2]
    assert [split.settings.max_new_tokens for split in plan.values()] == [3, 3, 9, 9]
    assert plan["holdout"].asked == "['gradient', 'holdout', 'token_logps'], 9 tokens"


@pytest.mark.parametrize(("needs", "forget"), [(NEEDS - {"holdout"}, "forget"), (NEEDS, None)])
def test_holdout_rows_are_measured_only_to_be_compared_with(needs: frozenset[str], forget: str | None) -> None:
    plan = plan_splits(SPLITS, MeasureSettings(TEMPLATE, needs), forget, ROWS[:2])
    assert [split.name for split in plan] == ["forget", "forget_paraphrased", "retain"]


def test_a_forget_split_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="'forgotten' is not among the splits forget, forget_paraphrased, retain"):
        plan_splits(SPLITS, SETTINGS, "forgotten", ())


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_shares_are_joined_in_order(monkeypatch: pytest.MonkeyPatch, processes: int, count: int) -> None:
    rows, shares = list(range(count)), []
    monkeypatch.setattr(sharding, "world", lambda: processes)
    for number in range(processes):
        monkeypatch.setattr(sharding, "rank", lambda number=number: number)
        shares.append(sharding.own_share(rows))
    assert sharding.joined_shares(shares, count) == tuple(rows)


def test_splits_are_compared_with_the_forget_split_and_that_with_the_holdout_rows() -> None:
    names = ("forget", "forget_paraphrased", "retain", "holdout")
    rows = {name: (RowEvidence(ROWS[i], (-0.1,)),) for i, name in enumerate(names)}
    logs = {name: (RowEvidence(ROWS[i], (-0.2,)),) for i, name in enumerate(names)}
    found = assembled(rows, logs, "forget")
    assert list(found) == ["forget", "forget_paraphrased", "retain"]
    for name in ("forget", "forget_paraphrased"):
        assert found[name].forget is found[name].forget_paraphrased is None
        assert (found[name].holdout, found[name].holdout_retain_log) == (rows["holdout"], logs["holdout"])
    assert (found["retain"].forget, found["retain"].forget_paraphrased) == (rows["forget"], rows["forget_paraphrased"])
    assert found["retain"].holdout is None
    assert all(one.retain_log == logs[name] for name, one in found.items())
    alone = assembled({"retain": rows["retain"]}, {"retain": None}, None)["retain"]
    assert alone.forget is alone.forget_paraphrased is alone.holdout is alone.retain_log is None
