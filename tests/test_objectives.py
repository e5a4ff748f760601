"""Objectives against plain loops in float64, their limits, and what must never matter."""

from __future__ import annotations

import math

import pytest
import torch

from grun.errors import UserError
from grun.objectives import objective_options, objectives, sides_of
from grun.records import SideSignals, Signals


def random_side(seed: int, lengths: tuple[int, ...] = (3, 5, 1)) -> SideSignals:
    """A side with rows of the given answer lengths, prompt and padding masked."""
    generator = torch.Generator().manual_seed(seed)
    mask_BT = torch.zeros(len(lengths), max(lengths) + 2, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask_BT[row, 1 : 1 + length] = True
    shape = mask_BT.shape
    logps_BT = -torch.rand(shape, generator=generator, dtype=torch.float64) * 4 * mask_BT
    ref_BT = -torch.rand(shape, generator=generator, dtype=torch.float64) * 4 * mask_BT
    return SideSignals(logps_BT.requires_grad_(), mask_BT, ref_BT)


def signals(seed: int = 0) -> Signals:
    return Signals(random_side(seed), random_side(seed + 1), random_side(seed + 2))


def rows_of(side: SideSignals) -> list[list[float]]:
    """Token log-probabilities row by row, as plain numbers."""
    return [
        [v.item() for v, on in zip(ps, ms, strict=True) if on]
        for ps, ms in zip(side.logps_BT, side.mask_BT, strict=True)
    ]


def plain_mean_nll(side: SideSignals) -> float:
    tokens = [value for row in rows_of(side) for value in row]
    return -sum(tokens) / len(tokens)


def plain_npo(side: SideSignals, beta: float) -> float:
    total = 0.0
    for logps, refs, ms in zip(side.logps_BT, side.ref_logps_BT, side.mask_BT, strict=True):
        ratio = sum((p - r).item() for p, r, on in zip(logps, refs, ms, strict=True) if on)
        total += -math.log(1.0 / (1.0 + math.exp(beta * ratio)))  # sigmoid(-beta * log ratio)
    return 2.0 / beta * total / len(side.mask_BT)


@pytest.mark.parametrize("seed", range(3))
def test_gd_is_ascent_on_forget_and_descent_on_retain(seed: int) -> None:
    given = signals(seed)
    terms = objectives.get("gd").target(given)
    assert float(terms.forget.detach()) == pytest.approx(-plain_mean_nll(given.forget), rel=1e-12)
    assert float(terms.retain.detach()) == pytest.approx(plain_mean_nll(given.retain), rel=1e-12)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_equals_its_formula(beta: float) -> None:
    given = signals()
    terms = objectives.get("npo").target(given, beta=beta)
    assert float(terms.forget.detach()) == pytest.approx(plain_npo(given.forget, beta), rel=1e-12)
    assert float(terms.retain.detach()) == pytest.approx(plain_mean_nll(given.retain), rel=1e-12)


def test_idk_learns_the_refusal_and_ignores_the_forget_answer() -> None:
    given = signals()
    terms = objectives.get("idk").target(given)
    assert float(terms.forget.detach()) == pytest.approx(plain_mean_nll(given.refusal), rel=1e-12)
    assert torch.autograd.grad(terms.forget, given.forget.logps_BT, allow_unused=True)[0] is None


def test_npo_of_the_base_model_is_a_known_constant() -> None:
    side = random_side(0)
    same = SideSignals(side.ref_logps_BT, side.mask_BT, side.ref_logps_BT)
    terms = objectives.get("npo").target(Signals(forget=same, retain=same), beta=0.1)
    assert float(terms.forget.detach()) == pytest.approx(20.0 * math.log(2.0), rel=1e-12)


def test_npo_gradient_tends_to_gradient_ascent_as_beta_vanishes() -> None:
    side = random_side(4)
    terms = objectives.get("npo").target(Signals(forget=side, retain=side), beta=1e-6)
    (npo,) = torch.autograd.grad(terms.forget, side.logps_BT)
    (ascent,) = torch.autograd.grad(-side.nll_B.mean(), side.logps_BT)
    torch.testing.assert_close(npo, ascent, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_has_a_gradient_that_lowers_it(name: str) -> None:
    given = signals()
    terms = objectives.get(name).target(given)
    leaves = [getattr(given, side).logps_BT for side in sides_of(objectives.get(name))]
    total = terms.forget + (terms.retain if terms.retain is not None else 0)
    gradients = torch.autograd.grad(total, leaves)
    moved = {
        side: SideSignals((leaf - 1e-3 * g).detach(), getattr(given, side).mask_BT, getattr(given, side).ref_logps_BT)
        for side, leaf, g in zip(sides_of(objectives.get(name)), leaves, gradients, strict=True)
    }
    after = objectives.get(name).target(Signals(**moved))
    assert float(after.forget + (after.retain if after.retain is not None else 0)) < total.item()


@pytest.mark.parametrize("name", objectives.names())
def test_padding_never_changes_a_loss(name: str) -> None:
    given = signals()
    pad = torch.nn.functional.pad
    wider = Signals(
        **{
            side: SideSignals(pad(s.logps_BT, (2, 3)), pad(s.mask_BT, (2, 3)), pad(s.ref_logps_BT, (2, 3)))
            for side, s in (("forget", given.forget), ("retain", given.retain), ("refusal", given.refusal))
        }
    )
    a, b = objectives.get(name).target(given), objectives.get(name).target(wider)
    assert a.forget.item() == pytest.approx(b.forget.item(), rel=1e-12)
    assert a.retain.item() == pytest.approx(b.retain.item(), rel=1e-12)


def test_reference_values_that_were_not_asked_for_are_missed_loudly() -> None:
    side = random_side(0)
    with pytest.raises(ValueError, match=r"ref_logps"):
        _ = SideSignals(side.logps_BT, side.mask_BT).ref_nll_B


def test_options_come_from_the_signature() -> None:
    npo = objectives.get("npo")
    assert objective_options(npo, {"beta": "0.25"}) == {"beta": 0.25}
    with pytest.raises(UserError, match=r"no option 'betta'.*Did you mean 'beta'"):
        objective_options(npo, {"betta": "1"})
    with pytest.raises(UserError, match=r"'beta'.*'high', expected a number"):
        objective_options(npo, {"beta": "high"})


def test_an_unknown_objective_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"unknown objective 'npoo'\. Did you mean 'npo'\?"):
        objectives.get("npoo")
