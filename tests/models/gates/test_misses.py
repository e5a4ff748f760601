"""The bound on prompts to forget that open no gate holds where it is promised, beside the one on normal prompts."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, binomtest

from grun.core.errors import UserError
from grun.core.records import Example
from grun.models.gates.guarantee import Guarantee, upper_bound
from grun.models.gates.misses import Paraphrases, missed_share, thresholds_for_both


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 2000), st.data(), st.floats(0.001, 0.5))
def test_the_bound_is_the_one_sided_limit_of_clopper_and_pearson(n: int, data: st.DataObject, delta: float) -> None:
    count = data.draw(st.integers(0, n))
    bound = upper_bound(count, n, delta)
    theirs = binomtest(count, n, alternative="less").proportion_ci(1 - delta, method="exact")
    assert bound == pytest.approx(theirs.high, rel=1e-6)
    if count < n:
        assert binom.cdf(count, n, bound) == pytest.approx(delta, rel=1e-6)


def above(rows: int, gates: int, generator: torch.Generator, shift: float) -> torch.Tensor:
    """Logits of independent gates, uniform between `shift` and `shift + 1`."""
    return torch.rand(rows, gates, generator=generator, dtype=torch.float64) + shift


def share_below(threshold_G: torch.Tensor, shift: float) -> float:
    """Share of such prompts for which no gate is above its threshold."""
    return float((threshold_G.double() - shift).clamp(0.0, 1.0).prod())


@pytest.mark.parametrize(
    ("alpha", "rate", "delta", "normal", "forget", "gates", "shift"),
    [(0.05, 0.1, 0.1, 120, 60, 1, 0.93), (0.1, 0.05, 0.2, 60, 120, 3, 0.8), (0.2, 0.2, 0.05, 40, 40, 2, 1.5)],
)
def test_coverage_of_both_sides_in_simulation(
    alpha: float, rate: float, delta: float, normal: int, forget: int, gates: int, shift: float
) -> None:
    generator, repeats = torch.Generator().manual_seed(1), 2000
    guarantee, misses = Guarantee(alpha, delta), Guarantee(rate, delta)
    place_G = torch.linspace(-0.1, 0.0, gates)
    opened = missed = outside = kept = 0
    for _ in range(repeats):
        normal_NG, forget_NG = above(normal, gates, generator, 0.0), above(forget, gates, generator, shift)
        try:
            threshold_G = thresholds_for_both(normal_NG, forget_NG, place_G, guarantee, misses, slack=0.0)
        except UserError:
            continue
        kept += 1
        true = share_below(threshold_G, shift)
        opened += 1 - share_below(threshold_G, 0.0) > alpha
        missed += true > rate
        outside += true > missed_share(above(50, gates, generator, shift), threshold_G, delta).bound
    assert kept > 0.3 * repeats
    for broken in (opened, missed, outside):
        assert broken / repeats <= delta + 3 * math.sqrt(delta * (1 - delta) / repeats)
    if kept == repeats:  # the tail of a beta distribution, as on the other side
        k = misses.allowed(forget)
        exact = float(beta.sf(rate, k + 1, forget - k))
        assert abs(missed / repeats - exact) <= 4 * math.sqrt(exact * (1 - exact) / repeats)


def test_the_rate_is_not_kept_needlessly_low() -> None:
    """Without a contradiction the share that is missed exceeds the rate as often as delta allows, not less."""
    generator, delta, rate, n, repeats = torch.Generator().manual_seed(2), 0.2, 0.1, 100, 2000
    misses = Guarantee(rate, delta)
    shares = [
        share_below(
            thresholds_for_both(
                torch.zeros(60, 2), above(n, 2, generator, 1.0), torch.zeros(2), Guarantee(0.1, 0.1), misses, slack=0.0
            ),
            1.0,
        )
        for _ in range(repeats)
    ]
    k = misses.allowed(n)
    exact = float(beta.sf(rate, k + 1, n - k))
    found = sum(share > rate for share in shares) / repeats
    assert exact > 0.1
    assert abs(found - exact) <= 4 * math.sqrt(exact * (1 - exact) / repeats)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-20, 5), min_size=30, max_size=60),
    st.lists(st.integers(-5, 20), min_size=30, max_size=60),
    st.integers(1, 3),
    st.floats(0.0, 0.3),
)
def test_both_counts_are_kept_or_the_values_that_can_be_are_named(
    normal: list[int], forget: list[int], gates: int, moved: float
) -> None:
    normal_NG, forget_NG = ((torch.tensor(one)[:30].view(-1, gates) / 3).float() for one in (normal, forget))
    place_G, deviation_G = torch.linspace(-1.0, 1.0, gates), torch.full((gates,), moved)
    guarantee, misses = Guarantee(0.3, 0.3), Guarantee(0.25, 0.3)

    def found(alpha: float, rate: float) -> torch.Tensor:
        both = Guarantee(alpha, guarantee.delta), Guarantee(rate, guarantee.delta)
        return thresholds_for_both(normal_NG, forget_NG, place_G, *both, deviation_G=deviation_G)

    try:
        threshold_G = found(guarantee.alpha, misses.alpha)
    except UserError as error:
        said = str(error)
        assert said.startswith("--miss-rate 0.25 and --alpha 0.3 cannot both be kept. ")
        assert "\n" not in said
        for flag, value in re.findall(r"(--miss-rate|--alpha) ([0-9.]+)", said.partition(" Give ")[2]):
            values = {"--alpha": guarantee.alpha, "--miss-rate": misses.alpha, flag: float(value)}
            found(values["--alpha"], values["--miss-rate"])
    else:
        assert int((normal_NG > threshold_G).any(1).sum()) <= guarantee.allowed(len(normal_NG))
        assert missed_share(forget_NG - deviation_G / 2, threshold_G, 0.3).missed <= misses.allowed(len(forget_NG))


def test_a_prompt_at_its_threshold_is_missed_and_one_with_no_number_opens() -> None:
    logits_NG = torch.tensor([[1.0, 0.0], [1.5, 0.0], [0.0, 3.0], [math.nan, 0.0], [-math.inf, -math.inf]])
    found = missed_share(logits_NG, torch.tensor([1.0, 2.0]), 0.1)
    assert (found.missed, found.prompts, found.share) == (2, 5, 0.4)
    assert found.bound == pytest.approx(float(beta.ppf(0.9, 3, 3)))
    assert missed_share(logits_NG[-1:], torch.zeros(2), 0.1).bound == 1.0


def test_what_is_too_little_or_no_number_is_refused() -> None:
    enough, place_G, kept = torch.linspace(-1, 0, 60)[:, None], torch.zeros(1), Guarantee(0.1, 0.1)
    with pytest.raises(ValueError, match="21 paraphrases, expected at least 22"):
        thresholds_for_both(enough, enough[:21] + 2, place_G, kept, kept)
    with pytest.raises(ValueError, match="21 normal prompts, expected at least 22"):
        thresholds_for_both(enough[:21], enough + 2, place_G, kept, kept)
    for value in (math.nan, math.inf, -math.inf):
        broken = enough.clone()
        broken[3] = value
        with pytest.raises(ValueError, match="no finite numbers for the paraphrases"):
            thresholds_for_both(enough, broken, place_G, kept, kept)
        with pytest.raises(ValueError, match="no finite numbers for the normal prompts"):
            thresholds_for_both(broken, enough, place_G, kept, kept)


def test_halves_are_the_same_in_any_order_and_share_no_prompt() -> None:
    rows = [Example(f"Where was Ada {i} born?", "") for i in range(41)]
    set_on, apart = Paraphrases(rows, 0.1).halves()
    assert Paraphrases(rows[::-1], 0.1).halves() == (set_on, apart)
    assert (len(set_on), len(apart)) == (20, 21)
    assert {row.prompt for row in (*set_on, *apart)} == {row.prompt for row in rows}
    assert set_on != rows[:20]
    assert Paraphrases(rows).halves() == ([], rows)
