"""Errors for people: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

__all__ = ["Interrupted", "NotWritten", "RunsFailed", "TrainingDiverged", "UserError", "nearest"]

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: the command line prints the message as one line and exits with code 2, without a traceback.

    The message names the file, row, field or flag, what was found, what was expected and what to do.
    """


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite: the command line prints the message and exits with code 3.

    The message names the step and the directory of the last good state.
    """


class RunsFailed(RuntimeError):
    """Some runs of a sweep failed: the command line prints the message and exits with code 1. The message names them."""


class NotWritten(RuntimeError):
    """A disk is full or went away in the middle of the work: the command line prints the message and exits with code 1.

    The message names the place, how much is free, and what is kept.
    """


class Interrupted(KeyboardInterrupt):
    """The user stopped a job whose state is kept: the command line prints the message and exits with code 130.

    The message names the directory of the state and says how to resume. It is a `KeyboardInterrupt`, so that no `except
    Exception` swallows it.
    """


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice nearest to `name`, or an empty string where none is near."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
