"""Bootstrap intervals: against the normal approximation, against a plain loop, and for every metric that has a value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from grun.core.records import Evidence, Score
from grun.evaluation.intervals import difference_interval, interval
from grun.evaluation.metrics import auroc, metrics
from support.evidence_kit import compared, row


def draws(seed: int, mean: float, count: int = 400) -> tuple[float, ...]:
    return tuple(np.random.default_rng(seed).normal(mean, 0.2, count))


def known(found: tuple[float, float] | None) -> tuple[float, float]:
    assert found is not None
    return found


def test_the_interval_of_a_mean_has_the_width_of_the_normal_approximation() -> None:
    values = np.asarray(draws(5, 0.5))
    low, high = known(interval(Score(float(values.mean()), 400, tuple(values)), {}, seed=1))
    error = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert low == pytest.approx(values.mean() - error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.15 * error)


def test_without_two_rows_there_is_no_interval_and_without_spread_it_is_a_point() -> None:
    assert interval(Score(0.5, 3, (0.5, 0.5, 0.5)), {}) == (0.5, 0.5)
    assert interval(Score(0.5, 1, (0.5,)), {}) is None
    assert interval(Score(0.9, 400), {}) is None


def test_each_group_of_rows_is_resampled_on_its_own() -> None:
    members, others = draws(1, 0.7, 60), draws(2, 0.5, 90)
    found = Score(auroc(members, others), 60, groups=(members, others))
    low, high = known(interval(found, {"statistic": auroc}, seed=3))
    generator = np.random.default_rng(11)
    plain = [auroc(generator.choice(members, len(members)), generator.choice(others, len(others))) for _ in range(2000)]
    assert low == pytest.approx(np.percentile(plain, 2.5), abs=0.02)
    assert high == pytest.approx(np.percentile(plain, 97.5), abs=0.02)
    assert found.value is not None
    assert low < found.value < high


def test_the_same_seed_gives_the_same_interval() -> None:
    found = Score(0.5, 400, draws(7, 0.5))
    assert interval(found, {}, seed=2) == interval(found, {}, seed=2) != interval(found, {}, seed=3)


@pytest.mark.parametrize("name", metrics.names())
def test_every_metric_with_a_value_has_an_interval(name: str) -> None:
    rows = tuple(row((-0.1 * i - 0.1, -1.0 / (i + 1))) for i in range(6))
    entry = metrics.get(name)
    found = entry.target(Evidence("retain", rows, **compared(*rows)))
    low, high = known(interval(found, entry.info))
    assert low <= high
    if found.groups:
        assert entry.info["statistic"](*map(np.asarray, found.groups)) == pytest.approx(found.value)


def test_a_difference_is_taken_on_the_same_rows() -> None:
    ours = draws(1, 0.5)
    theirs = tuple(value - 0.1 for value in ours)
    low, high = known(difference_interval(Score(0.5, 400, ours), Score(0.4, 400, theirs), {}))
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert difference_interval(Score(0.5, 400, ours), Score(0.4, 399, theirs[1:]), {}) is None
    assert difference_interval(Score(0.5, 400, ours), Score(0.5, 400), {}) is None


def test_the_difference_of_a_statistic_of_groups_pairs_every_group() -> None:
    members, others = draws(1, 0.7, 60), draws(2, 0.5, 90)
    ours = Score(auroc(members, others), 60, groups=(members, others))
    assert difference_interval(ours, ours, {"statistic": auroc}) == (0.0, 0.0)
    worse = Score(0.5, 60, groups=(draws(3, 0.5, 60), others))
    low, high = known(difference_interval(ours, worse, {"statistic": auroc}))
    assert 0.0 < low < auroc(members, others) - auroc(worse.groups[0], others) < high
