"""The law of the gate: exactly 0 unless the logit is above the threshold, the sigmoid times the scale where it is."""

from __future__ import annotations

import math

import torch

from grun.models.tuner.call.decision import gate_value, is_open
from grun.models.tuner.edit import Gate

LOGITS = torch.tensor([-math.inf, -200.0, -1.0, 0.5, 0.5000001, 3.0, math.inf, math.nan])


def test_a_gate_is_open_above_its_threshold_and_where_its_logit_is_no_number() -> None:
    opened = is_open(LOGITS, torch.tensor(0.5)).tolist()
    assert opened == [False, False, False, False, True, True, True, True]
    assert is_open(LOGITS, torch.tensor(-math.inf)).tolist() == [False, *[True] * 7]


def test_a_shut_gate_is_exactly_0_and_an_open_one_the_sigmoid_times_the_scale() -> None:
    values = gate_value(LOGITS, torch.tensor(0.5), 2.0)
    assert values[:4].tolist() == [0.0] * 4
    assert torch.equal(values[4:7], 2.0 * LOGITS[4:7].sigmoid())
    assert values[7].isnan()
    assert gate_value(LOGITS, torch.tensor(0.5), math.inf)[:4].tolist() == [0.0] * 4


def test_thresholds_and_scales_of_several_gates_broadcast() -> None:
    logits_BG = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    threshold_G, scale_G = torch.tensor([-math.inf, 0.0, 1.0]), torch.tensor([1.0, 0.5, 3.0])
    together = gate_value(logits_BG, threshold_G, scale_G)
    for i in range(3):
        assert torch.equal(together[:, i], gate_value(logits_BG[:, i], threshold_G[i], float(scale_G[i])))


def test_the_gate_module_follows_the_law() -> None:
    gate = Gate(4)
    gate.threshold.fill_(0.25)
    torch.testing.assert_close(gate.value(LOGITS), gate_value(LOGITS, gate.threshold), rtol=0, atol=0, equal_nan=True)
