"""Unlearning objectives: pure functions `(Signals, *, settings) -> LossTerms`, all to be minimised.

An objective registers with the paper it comes from and the quantities that it needs: `forget.logps`, `retain.logps`,
`refusal.logps` (the forget prompts with a refusal as answer), and `<side>.ref_logps` for the base model's. It never calls a
model. Its keyword-only arguments are its configuration: flags, documentation and validation come from the signature.
"""

from __future__ import annotations

__all__ = ["Objective", "objective_options", "objectives", "sides_of"]

from collections.abc import Callable, Mapping
from typing import Any

from grun.errors import UserError, nearest
from grun.records import LossTerms
from grun.registry import Entry, Registry

Objective = Callable[..., LossTerms]
objectives: Registry[Objective] = Registry("objective", "grun.objectives")


def sides_of(entry: Entry[Objective]) -> list[str]:
    """Sides of a batch that an objective looks at, in a fixed order."""
    needed = {need.split(".")[0] for need in entry.info["needs"]}
    return [side for side in ("forget", "refusal", "retain") if side in needed]


def objective_options(entry: Entry[Objective], given: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments of an objective from `name=value` settings.

    Raises:
        UserError: for an unknown name (with the nearest known one) or a value that is not a number.
    """
    options = {}
    for name, value in given.items():
        if name not in entry.parameters:
            known = ", ".join(entry.parameters) or "none"
            hint = nearest(name, entry.parameters)
            raise UserError(f"objective '{entry.name}' has no option '{name}'.{hint} It has: {known}.")
        try:
            options[name] = type(entry.parameters[name].default)(value)
        except ValueError as error:
            raise UserError(f"option '{name}' of objective '{entry.name}' is '{value}', expected a number.") from error
    return options
