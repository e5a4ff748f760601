"""Errors for people: one line that says what was found, what was expected and what to do; being asked to stop; safe text."""

from __future__ import annotations

__all__ = [
    "Interrupted",
    "NotWritten",
    "RunsFailed",
    "TrainingDiverged",
    "UserError",
    "keeps",
    "listen",
    "nearest",
    "on_signals",
    "one_line",
    "shown",
    "shown_json",
]

import difflib
import functools
import json
import os
import re
import signal
import threading
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])
STOPPED = "stopped."
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, the machine or a manager, the terminal was closed


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
    """Some runs of a sweep failed: the command line prints the message and exits with code 1. The message names them."""


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


def keeps(what: str) -> Callable[[F], F]:
    """A decorator for jobs: if a signal stops one, the error says what is kept in its `output` and how to go on.

    Args:
        what: that is kept once the run was started.
    """

    def decorate(job: F) -> F:
        @functools.wraps(job)
        def wrapped(config: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return job(config, *args, **kwargs)
            except KeyboardInterrupt as error:
                path = Path(str(config.output)).expanduser()
                started = (path / "run.json").is_file()
                place = f"stopped; {what} in {path}" if started else f"stopped before anything was written to {path}"
                raise Interrupted.saying(error, f"{place}. Run the same command to go on.") from error

        return cast(F, wrapped)

    return decorate


def listen(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have a function called at Ctrl-C, SIGTERM and SIGHUP.

    A SIGHUP that is ignored (`nohup`) stays so. Signals reach the main thread only; in another one nothing is changed. A
    forked process leaves Ctrl-C, which the terminal sends to all, to the process that it comes from.

    Args:
        handler: called with the number of the signal and the frame.

    Returns:
        The handlers from before.
    """
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number, frame)
        elif number != signal.SIGINT:
            os._exit(128 + number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    return before


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[Mapping[int, Any]]:
    """Inside, a function is called as by `listen`, which yields the handlers from before; afterwards these are back."""
    before = listen(handler)
    try:
        yield before
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the choice nearest to `name`, or an empty string where none is near."""
    found = difflib.get_close_matches(name.lower(), list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def shown(text: str, mark: str | None = None) -> str:
    r"""Text that came from data, safe to show: what a terminal would obey, or would not show at all, is written out.

    That is everything that cannot be printed: escape sequences, marks that turn the direction of writing, characters
    without width, halves of characters. Line breaks and all kinds of spaces stay.

    Args:
        text: the text.
        mark: stands for each such character; None writes its number (`\x1b`).
    """
    if text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else (_number(c) if mark is None else mark) for c in text)


def one_line(text: str) -> str:
    """`shown` in one line."""
    return shown(re.sub(r"\s*[^\S ]\s*", " ", text).strip())


def shown_json(value: Any) -> str:
    """A value as indented JSON, in which everything that `shown` would not show is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(c if _is_harmless(c) else json.dumps(c)[1:-1] for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character == "\n" or unicodedata.category(character) == "Zs"


def _number(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
