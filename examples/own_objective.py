"""An objective of your own, as a function.

python examples/own_objective.py MODEL FORGET.jsonl RETAIN.jsonl
"""

import sys

from torch import Tensor

import grun


def margin(signals: grun.Signals, *, width: float = 2.0) -> Tensor:
    """Push forget answers down until they are `width` nats below the base model."""
    above_B = signals.forget.ref_nll_B + width - signals.forget.nll_B
    return above_B.clamp_min(0.0).mean()


model, forget, retain = sys.argv[1:4]
for width in (2.0, 8.0):
    options, output = {"width": width}, f"margin-{width:g}"
    print(grun.unlearn(model, forget, retain, objective=margin, objective_options=options, output=output))
