"""Errors for people: one line that says what was found, what was expected and what to do; and being asked to stop."""

from __future__ import annotations

__all__ = ["Interrupted", "RunsFailed", "TrainingDiverged", "UserError", "nearest", "on_signals", "resumable"]

import difflib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, the machine or a manager, the terminal was closed


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


class Interrupted(KeyboardInterrupt):
    """The user stopped a job: the command line prints the message and exits with code 128 + `number` (130 for Ctrl-C).

    The message names the directory of what is kept and says how to go on. It is a `KeyboardInterrupt`, so that no `except
    Exception` swallows it.

    Args:
        message: one line.
        number: of the signal.
    """

    def __init__(self, message: str = "stopped.", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)

    @classmethod
    def by(cls, error: KeyboardInterrupt, message: str) -> Interrupted:
        """The error with a message, for the signal that another one was raised for."""
        return cls(message, getattr(error, "number", signal.SIGINT))


@contextmanager
def resumable(path: Path, kept: str = "what is done is kept") -> Iterator[None]:
    """Inside, a signal that stops a job says where its state is; messages of parts of the job stay as they are.

    Args:
        path: directory of the run.
        kept: what there is in it once the run was started.

    Raises:
        Interrupted: instead of a `KeyboardInterrupt` without such a message.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) and str(error) != str(Interrupted()):
            raise
        if (path / "run.json").is_file():
            raise Interrupted.by(error, f"stopped; {kept} in {path}. Run the same command to go on.") from error
        message = f"stopped before anything was written to {path}. Run the same command to start again."
        raise Interrupted.by(error, message) from error


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[Mapping[int, Any]]:
    """Inside, a function is called at Ctrl-C, SIGTERM and SIGHUP; afterwards the handlers are those from before.

    A SIGHUP that is ignored (`nohup`) stays so. Signals reach the main thread only; in another one nothing is changed.

    Args:
        handler: called with the number of the signal.

    Yields:
        The handlers from before.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice nearest to `name`, or an empty string where none is near."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""
