"""Options of objectives and benchmarks: text, converted to the type that the signature of the function declares."""

from __future__ import annotations

__all__ = ["typed_option"]

import math
from typing import Any, get_args

from grun.core.config.checks import LARGEST, MOST_SEED, check_text, shown
from grun.core.errors import UserError

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number"}
BOUNDS = {int: MOST_SEED, float: LARGEST}  # of numbers, on both sides of zero; functions have closer ones of their own


def typed_option(text: str, hint: Any, what: str) -> Any:
    """A text as a `hint`.

    Args:
        text: what was given.
        hint: str, int, float, bool, or one of them or None.
        what: what the option is called in messages.

    Raises:
        UserError: for another type, or a number that is not finite or absurdly large.
    """
    kind = next((t for t in get_args(hint) if t is not type(None)), hint)
    if str(text).lower() == "none" and type(None) in get_args(hint):
        return None
    check_text(str(text), what)
    try:
        value = BOOLEANS[str(text).lower()] if kind is bool else kind(text)
    except (KeyError, ValueError) as error:
        raise UserError(f"{what} is {shown(text)}, expected {EXPECTED.get(kind, kind.__name__)}.") from error
    if kind is float and not math.isfinite(value):
        raise UserError(f"{what} is {shown(text)}, expected a number that is finite.")
    if kind in BOUNDS and abs(value) > BOUNDS[kind]:
        raise UserError(f"{what} is {shown(text)}, expected {EXPECTED[kind]} of at most {BOUNDS[kind]:,}.")
    return value
