"""The record of a calibration, and its form in `calibration.json` and `ledger.json`."""

from __future__ import annotations

import json
import math

import pytest
import torch

from grun.models.gates.calibration import Calibration, share_open

LOGITS = torch.tensor([[-1.0, 0.0], [2.0, -3.0], [0.5, 0.5], [math.nan, -3.0]])
THRESHOLD = torch.tensor([0.5, 0.5])


def test_a_prompt_counts_once_for_all_gates_that_it_opens() -> None:
    found = share_open(LOGITS, THRESHOLD)
    assert (found.open, found.prompts, found.share) == (2, 4, 0.5)
    assert found.interval == pytest.approx((0.0676, 0.9324), abs=1e-4)
    assert share_open(LOGITS, THRESHOLD - 1e-3).open == 3


def test_the_file_has_the_fields_in_their_order() -> None:
    thresholds = tuple(THRESHOLD.tolist())
    found = Calibration(
        0.1, 0.05, "float32", 4, 29, 0, thresholds, (0.0, 0.0), (0.0, 0.1), share_open(LOGITS, THRESHOLD)
    )
    shown = found.as_json()
    assert shown == json.loads(json.dumps(shown))
    assert list(shown) == [
        "alpha",
        "delta",
        "dtype",
        "normal_prompts",
        "normal_prompts_needed",
        "normal_prompts_allowed_open",
        "thresholds",
        "places",
        "deviations",
        "normal_open",
    ]
    assert list(shown["normal_open"]) == ["open", "prompts", "share", "interval"]
    assert torch.equal(found.threshold_G, THRESHOLD)
    both = found.with_forget(LOGITS[1:3])
    assert list(both.as_json()) == [*shown, "forget_open"]
    assert both.forget_open is not None
    assert (both.forget_open.open, both.forget_open.prompts) == (1, 2)
