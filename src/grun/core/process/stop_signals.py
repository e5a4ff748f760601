"""The signals that ask a process to stop: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

__all__ = ["STOPPING", "listen", "on_signals"]

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, the machine or a manager, the terminal was closed


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
