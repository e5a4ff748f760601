"""What Ctrl-C, SIGTERM and a closed terminal do to a command: one line, and an exit code that names the signal."""

from __future__ import annotations

__all__ = ["Listener", "stopped"]

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from grun.core.errors import Interrupted
from grun.core.process.stop_signals import listen, on_signals

BY_SIGNAL = (
    128  # exit codes of shells for a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
)
PATIENCE = 3  # signals, the last of which ends the process at once, whatever it is doing
AT_ONCE = b"grun: stopped at once; what was saved before is kept. Run the same command to go on.\n"
AGAIN = 0.02  # seconds


class Listener:
    """Raises `Interrupted` in the main thread at the first and the second signal; the third one ends the process.

    Every file is written whole or not at all, so nothing is damaged then either.

    Attributes:
        number: of the first signal; 0 before.
        code: exit code, once the command is over: a signal then ends the process with it; None before.
    """

    def __init__(self) -> None:
        self.number = 0
        self.code: int | None = None
        self.is_speaking = False
        self._count = 0

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.code is not None:
            os._exit(self.code)
        self.number = self.number or number
        self._count += 1
        if self._count >= PATIENCE:
            with suppress(OSError):
                os.write(2, b"" if self.is_speaking else AT_ONCE)
            os._exit(BY_SIGNAL + self.number)
        if not self.is_speaking:
            raise Interrupted(number=self.number)

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator[None]:
        """Context in which one listens: that of the process (see `start`), or a new one until the end of the block.

        Raises:
            Interrupted: also for what a library made of one.
        """
        listener, hook = _of_process or cls(), sys.unraisablehook
        try:
            if _of_process is not None:
                yield
                return
            with on_signals(listener.ask):
                sys.unraisablehook = listener._again
                yield
        except Exception as error:
            if listener.number:  # an import that was interrupted ends in many ways
                raise Interrupted(number=listener.number) from error
            raise
        finally:
            sys.unraisablehook = hook

    def start(self) -> None:
        """Listen until the process ends."""
        global _of_process
        _of_process = self
        listen(self.ask)
        sys.unraisablehook = self._again

    def _again(self, lost: Any) -> None:
        """Ask again where Python could not raise, within the finaliser of an object for instance."""
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(lost)
        elif self.number and self.code is None and not self.is_speaking:
            self._count -= 1
            timer = threading.Timer(AGAIN, signal.raise_signal, [self.number])
            timer.daemon = True
            timer.start()


_of_process: Listener | None = None


def stopped(error: KeyboardInterrupt) -> int:
    """Say in one line that a command was stopped, and return its exit code."""
    if _of_process is not None:
        _of_process.is_speaking = True
    error = Interrupted.saying(error, str(error) or str(Interrupted()))
    with suppress(OSError, ValueError, AttributeError):  # the terminal may be gone
        sys.stderr.write("grun: " + " ".join(str(error).split()) + "\n")
        sys.stderr.flush()
    return BY_SIGNAL + error.number
