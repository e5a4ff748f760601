"""Unlearning objectives and retain losses: pure functions of the signals of a model, all to be minimised.

An objective is a function `(Signals, *, settings) -> scalar`, a retain loss a function `SideSignals -> scalar`. Every
objective works with every retain loss, and neither calls a model. Both register with their paper and the quantities that they
need. Quantities are `logps`, `logits`, `hidden` (the output of one decoder layer) and those of the base model with the prefix
`ref_`; an objective names the side as well: `forget.logps`, `refusal.ref_logps`, `alternative.logps` (sides: see `Signals`).
The keyword-only arguments of an objective are its configuration: flags, documentation and validation come from the signature.
An objective also registers its default retain loss and the default weights of both terms.
"""

from __future__ import annotations

__all__ = ["SIDES", "Objective", "RetainLoss", "needs_of", "objective_options", "objectives", "retain_losses"]

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from grun.core.config.leaf_options import typed_option
from grun.core.errors import UserError, nearest
from grun.core.records import SideSignals
from grun.core.registry import Entry, Registry

Objective = Callable[..., Tensor]
RetainLoss = Callable[[SideSignals], Tensor]
objectives: Registry[Objective] = Registry("objective", "grun.training.objectives")
retain_losses: Registry[RetainLoss] = Registry("retain loss", "grun.training.objectives")

SIDES = ("forget", "refusal", "alternative", "retain")


def needs_of(objective: Entry[Objective], retain_loss: Entry[RetainLoss]) -> dict[str, set[str]]:
    """Quantities by side, in the fixed order of sides, that an objective and a retain loss need together."""
    needed: defaultdict[str, set[str]] = defaultdict(set)
    for need in objective.info["needs"]:
        side, _, quantity = need.partition(".")
        needed[side].add(quantity)
    if retain_loss.info["needs"]:
        needed["retain"] |= set(retain_loss.info["needs"])
    return {side: needed[side] for side in SIDES if side in needed}


def objective_options(entry: Entry[Objective], given: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of an objective from `name=value` settings.

    Raises:
        UserError: for an unknown name (with the nearest known one), or a value that is not a number or out of range.
    """
    options = {}
    for name, value in given.items():
        if name not in entry.parameters:
            known = ", ".join(entry.parameters) or "none"
            hint = nearest(name, entry.parameters)
            raise UserError(f"objective '{entry.name}' has no option '{name}'.{hint} It has: {known}.")
        what = f"option '{name}' of objective '{entry.name}'"
        options[name] = typed_option(value, type(entry.parameters[name].default), what)
        low = entry.info.get("above", {}).get(name, -math.inf)
        if not isinstance(options[name], str) and not low < options[name]:
            raise UserError(f"{what} is {value}, expected a number above {low:g}.")
    return options
