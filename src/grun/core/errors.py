"""Errors for people: one line that says what was found, what was expected and what to do."""

from __future__ import annotations

__all__ = ["Interrupted", "NotWritten", "RunsFailed", "TrainingDiverged", "UserError", "nearest"]

import difflib
import signal
from collections.abc import Iterable

from grun.core.process.terminal import one_line

STOPPED = "stopped."


class UserError(ValueError):
    """Wrong input: the command line prints the message as one line and exits with code 2, without a traceback.

    The message names the file, row, field or flag, what was found, what was expected and what to do. What it quotes is shown
    as text, in one line, wherever it is printed.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class TrainingDiverged(RuntimeError):
    """A loss or gradient is not finite: the command line prints the message and exits with code 3.

    The message names the step and the directory of the last good state.
    """


class RunsFailed(RuntimeError):
    """Some of several parts failed: the command line prints the message and exits with code 1.

    The message names them: runs of a sweep, or the address that stopped answering.
    """


class NotWritten(RuntimeError):
    """A disk is full or went away in the middle of the work: the command line prints the message and exits with code 1.

    The message names the place, how much is free, and what is kept.
    """


class Interrupted(KeyboardInterrupt):
    """The user stopped a job: the command line prints the message and exits with code 128 + `number` (130 for Ctrl-C).

    The message names the directory of what is kept and says how to go on. It is a `KeyboardInterrupt`, so that no `except
    Exception` swallows it.

    Args:
        message: one line.
        number: of the signal.
    """

    def __init__(self, message: str = STOPPED, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)

    @classmethod
    def saying(cls, error: KeyboardInterrupt, message: str) -> Interrupted:
        """The error with a message, for the same signal; an error that has a message of its own stays as it is."""
        if isinstance(error, cls) and str(error) != STOPPED:
            return error
        return cls(message, getattr(error, "number", signal.SIGINT))


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice nearest to `name`, or an empty string where none is near."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
