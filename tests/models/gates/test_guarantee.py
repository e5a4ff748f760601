"""The guarantee on normal prompts holds where it is promised, and promises are not made of nothing nor needlessly small."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from grun.models.gates.guarantee import Guarantee, guaranteed_thresholds


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.floats(0.001, 0.5), st.floats(0.001, 0.5))
def test_as_many_may_exceed_as_the_tail_of_a_beta_distribution_allows(n: int, alpha: float, delta: float) -> None:
    guarantee = Guarantee(alpha, delta)
    k = guarantee.allowed(n)
    # the share above the (k + 1)-th largest of n continuous scores is Beta(k + 1, n - k), independently of binomials
    if k >= 0:
        assert beta.sf(alpha, k + 1, n - k) <= delta * (1 + 1e-9)
    if k + 1 < n:
        assert beta.sf(alpha, k + 2, n - k - 1) > delta * (1 - 1e-9)
    assert (k >= 0) == (n >= guarantee.prompts_needed)


@pytest.mark.parametrize(("alpha", "delta", "needed"), [(0.01, 0.05, 299), (0.001, 0.05, 2995), (0.05, 0.1, 45)])
def test_numbers_of_prompts_are_those_of_the_tables(alpha: float, delta: float, needed: int) -> None:
    assert Guarantee(alpha, delta).prompts_needed == needed  # Wilks's first-order one-sided limits


def uniform_logits(rows: int, gates: int, generator: torch.Generator) -> torch.Tensor:
    """Logits of gates that depend on each other; the share of traffic above thresholds is known (`share_above`)."""
    return torch.rand(rows, gates, generator=generator, dtype=torch.float64)


def share_above(threshold_G: torch.Tensor) -> float:
    return 1.0 - float(threshold_G.double().clamp(0.0, 1.0).prod())


@pytest.mark.parametrize(
    ("alpha", "delta", "n", "gates"), [(0.05, 0.1, 300, 1), (0.02, 0.2, 200, 3), (0.1, 0.05, 80, 5)]
)
def test_coverage_in_simulation(alpha: float, delta: float, n: int, gates: int) -> None:
    generator, guarantee, repeats = torch.Generator().manual_seed(0), Guarantee(alpha, delta), 4000
    place_G = torch.linspace(-0.3, 0.1, gates)  # below the logits, so that no gap hides what the bound does
    shares = torch.tensor(
        [
            share_above(guaranteed_thresholds(uniform_logits(n, gates, generator), place_G, guarantee, slack=0.0))
            for _ in range(repeats)
        ]
    )
    broken = float((shares > alpha).double().mean())
    error = math.sqrt(delta * (1 - delta) / repeats)
    assert broken <= delta + 3 * error
    k = guarantee.allowed(n)
    exact = float(beta.sf(alpha, k + 1, n - k))
    assert abs(broken - exact) <= 4 * math.sqrt(exact * (1 - exact) / repeats)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=60, max_size=120), st.integers(1, 3), st.integers(-10, 30))
def test_no_more_prompts_exceed_than_allowed_whatever_the_ties(logits: list[int], gates: int, place: int) -> None:
    normal_NG = (torch.tensor(logits)[: len(logits) // gates * gates].view(-1, gates) / 3).float()
    guarantee = Guarantee(0.3, 0.3)
    place_G = torch.full((gates,), place / 3)
    margin_N = (normal_NG - place_G).amax(1)
    for lower in (False, True):
        threshold_G = guaranteed_thresholds(normal_NG, place_G, guarantee, lower=lower)
        exceeding = int((normal_NG > threshold_G).any(1).sum())
        assert exceeding <= guarantee.allowed(len(normal_NG))
        if not lower:
            assert bool((threshold_G >= place_G).all())
        elif bool((margin_N < 0).all()):  # a gap: thresholds lie inside it
            assert bool((threshold_G < place_G + 0.1).all())
    if bool((margin_N < -1).all()):
        assert bool((guaranteed_thresholds(normal_NG, place_G, guarantee) == place_G).all())


def test_a_promise_without_enough_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="298 prompts, expected at least 299"):
        guaranteed_thresholds(torch.zeros(298, 1), torch.zeros(1), Guarantee(0.01, 0.05))


def test_thresholds_are_as_far_above_the_deciding_prompt_as_readings_move() -> None:
    normal_NG, guarantee = torch.linspace(0.0, 1.0, 60)[:, None], Guarantee(0.1, 0.1)
    least = guaranteed_thresholds(normal_NG, torch.zeros(1), guarantee, slack=0.0)
    moved = guaranteed_thresholds(normal_NG, torch.zeros(1), guarantee, deviation_G=torch.tensor([0.25]))
    torch.testing.assert_close(moved, least + 0.25)
    assert guaranteed_thresholds(normal_NG, torch.zeros(1), guarantee, deviation_G=torch.zeros(1)) > least


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_nothing_is_promised_for_logits_that_are_no_numbers(broken: float) -> None:
    normal_NG = torch.zeros(60, 1)
    normal_NG[7] = broken
    with pytest.raises(ValueError, match="no finite numbers"):
        guaranteed_thresholds(normal_NG, torch.zeros(1), Guarantee(0.1, 0.1))
