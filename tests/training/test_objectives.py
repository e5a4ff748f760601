"""Objectives and retain losses against plain loops in float64, and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from grun.core.errors import UserError
from grun.core.records import SideSignals, Signals
from grun.training.loss.terms import gate_loss, split_sides, steering_direction
from grun.training.objectives import needs_of, objective_options, objectives, retain_losses
from support.objective_kit import LENGTHS, everything, gradients, leaves_of, of_side, plain_side
from support.plain_objectives import OBJECTIVES, RETAIN

OPTIONS: dict[str, tuple[dict[str, float], ...]] = {
    "npo": ({}, {"beta": 0.5}),
    "simnpo": ({}, {"beta": 2.0, "delta": 0.7}),
    "dpo": ({}, {"beta": 1.0}),
    "wga": ({}, {"beta": 0.3}),
    "satimp": ({}, {"beta1": 1.5, "beta2": 0.5}),
    "undial": ({}, {"beta": 2.0}),
    "untaught": ({}, {"margin": 2.0, "push": 1.5}),
    "rmu": ({}, {"coefficient": 3.0}),
}


CASES = [(name, options) for name in objectives.names() for options in OPTIONS.get(name, ({},))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
def test_every_objective_equals_its_formula_gradients_included(name: str, options: dict, seed: int) -> None:
    rows, signals = everything(seed)
    found, expected = objectives.get(name).target(signals, **options), OBJECTIVES[name](rows, options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, plain in zip(gradients(found, leaves_of(rows)), gradients(expected, leaves_of(rows)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in retain_losses.names() if n != "none"])
def test_every_retain_loss_equals_its_formula_gradients_included(name: str) -> None:
    rows, signals = everything()
    found, expected = retain_losses.get(name).target(signals.retain), RETAIN[name](rows["retain"])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, plain in zip(gradients(found, leaves_of(rows)), gradients(expected, leaves_of(rows)), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_no_retain_loss_is_nothing() -> None:
    assert retain_losses.get("none").target(everything()[1].retain).item() == 0.0


def test_npo_and_dpo_of_the_base_model_are_known_constants() -> None:
    _, signals = everything()
    base = {side: SideSignals(s.mask_BT, {**s.quantities, "logps": s.ref_logps_N}) for side, s in signals.sides.items()}
    for name in ("npo", "dpo", "altpo"):
        found = objectives.get(name).target(Signals(base), beta=0.1).item()
        assert found == pytest.approx(20.0 * math.log(2.0), rel=1e-12)


def test_divergence_from_the_base_model_itself_is_zero() -> None:
    side = everything()[1].retain
    base = SideSignals(side.mask_BT, {**side.quantities, "logits": side.ref_logits_NV, "hidden": side.ref_hidden_ND})
    assert retain_losses.get("kl").target(base).item() == pytest.approx(0.0, abs=1e-15)
    assert retain_losses.get("mse").target(base).item() == 0.0


def test_npo_gradient_tends_to_gradient_ascent_as_beta_vanishes() -> None:
    rows, signals = everything()
    npo = gradients(objectives.get("npo").target(signals, beta=1e-6), leaves_of(rows))
    ascent = gradients(-signals.forget.nll_B.mean(), leaves_of(rows))
    for ours, expected in zip(npo, ascent, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [("wga", {"beta": 0.0}), ("satimp", {"beta1": 0.0, "beta2": 0.0})])
def test_unweighted_ascent_is_gradient_ascent(name: str, options: dict[str, float]) -> None:
    _, signals = everything()
    found = objectives.get(name).target(signals, **options)
    assert found.item() == pytest.approx(objectives.get("ga").target(signals).item(), rel=1e-12)


def test_maximum_entropy_is_zero_for_a_uniform_model_and_flattening_too() -> None:
    side = everything()[1].forget
    flat = SideSignals(side.mask_BT, {"logits": torch.full_like(side.logits_NV, 0.3)})
    for name in ("me", "pdu"):
        assert objectives.get(name).target(Signals({"forget": flat})).item() == pytest.approx(0.0, abs=1e-14)


def test_answers_of_one_token_leave_ceu_nothing_to_learn_from() -> None:
    rows = plain_side(3, (1, 1))
    assert objectives.get("ceu").target(Signals({"forget": of_side(rows)})).item() == 0.0


def test_the_steering_direction_is_a_fixed_positive_unit_vector() -> None:
    direction = steering_direction(16, 3)
    assert float(direction.norm()) == pytest.approx(1.0, rel=1e-6)
    assert (direction >= 0).all()
    assert torch.equal(direction, steering_direction(16, 3))
    assert not torch.equal(direction, steering_direction(16, 4))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_gate_loss_is_the_mean_cross_entropy_over_gates_and_rows(weight: float) -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.1], [-0.4, 0.7]], dtype=torch.float64)
    forget = [True, False, True]
    total = 0.0
    for row, is_forget in zip(logits.tolist(), forget, strict=True):
        for z in row:
            p = 1 / (1 + math.exp(-z))
            total += -weight * math.log(p) if is_forget else -math.log(1 - p)
    assert float(gate_loss(logits, torch.tensor(forget), weight)) == pytest.approx(total / 6, rel=1e-12)


def test_sides_of_a_batch_are_told_apart() -> None:
    rows = [plain_side(seed) for seed in range(2)]
    joined = of_side(rows[0] + rows[1])
    own = SideSignals(joined.mask_BT, {name: joined.quantities[name] for name in ("logps", "logits", "targets")})
    references = {"retain": {"logps": joined.ref_logps_N[sum(LENGTHS) :]}}
    parts = split_sides(own, ["forget", "retain"], references)
    for side, expected in zip(("forget", "retain"), rows, strict=True):
        torch.testing.assert_close(parts[side].nll_B, of_side(expected).nll_B)
    torch.testing.assert_close(parts["retain"].ref_nll_B, of_side(rows[1]).ref_nll_B)
    with pytest.raises(ValueError, match=r"'ref_logps' was not asked for: declare '<side>\.ref_logps'"):
        _ = parts["forget"].ref_nll_B


def test_sides_come_in_a_fixed_order() -> None:
    needs = needs_of(objectives.get("dpo"), retain_losses.get("kl"))
    assert list(needs) == ["forget", "refusal", "retain"]
    assert needs["retain"] == {"logits", "ref_logits"}


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
    with pytest.raises(UserError, match=r"unknown retain loss 'ke'"):
        retain_losses.get("ke")
