"""Every objective trains as it did: losses and gradient norms of 20 steps against those that an earlier version wrote down.

Agreement to `RELATIVE`, which is ten times what other vector instructions of the processor (AVX-512, AVX2, SSE4) make of
the same code. `ABSOLUTE` is for small differences of large numbers, such as 1 - p where the model is sure of an answer.
"""

from __future__ import annotations

import json
import math

import pytest

from golden.regenerate import CURVES, STEPS, cases, curves_of

KEPT: dict[str, dict[str, list[float]]] = json.loads(CURVES.read_text())
RELATIVE, ABSOLUTE = 1e-4, 1e-6


def test_every_objective_has_its_curves() -> None:
    assert KEPT.keys() == cases().keys(), "python tests/golden/regenerate.py writes them"
    assert all(len(values) == STEPS for kept in KEPT.values() for values in kept.values())


@pytest.mark.parametrize("name", KEPT)
def test_training_takes_the_same_steps(name: str) -> None:
    found = curves_of(cases()[name])
    assert found.keys() == KEPT[name].keys()
    assert first_difference(found, KEPT[name]) == ""


def first_difference(found: dict[str, list[float]], kept: dict[str, list[float]]) -> str:
    """The first step at which a quantity differs, in words; empty if there is none."""
    for step in range(STEPS):
        for quantity, values in kept.items():
            if not math.isclose(found[quantity][step], values[step], rel_tol=RELATIVE, abs_tol=ABSOLUTE):
                return f"step {step + 1}: {quantity} is {found[quantity][step]:.7g}, was {values[step]:.7g}"
    return ""


def test_the_first_step_that_differs_is_named() -> None:
    kept = KEPT["npo"]
    changed = {**kept, "grad_norm": [v * (1.001 if i == 6 else 1) for i, v in enumerate(kept["grad_norm"])]}
    assert first_difference(kept, kept) == ""
    assert first_difference(changed, kept).startswith("step 7: grad_norm is ")
