"""The process of the command line, from its first moment to its last: signals and streams."""

from __future__ import annotations

__all__ = ["process"]

import sys
from collections.abc import Callable

from grun.cli.process.signals import Listener, stopped
from grun.cli.process.streams import guard_streams


def process(work: Callable[[], int]) -> int:
    """Do work as a process of its own; returns its exit code, which is that of the signal if one stopped it.

    Signals are listened to until the process is gone, so there is no moment at which one of them ends in a traceback.
    """
    listener, code = Listener(), 1
    try:
        listener.start()
        try:
            with Listener.listening():
                guard_streams()
                code = work()
        except KeyboardInterrupt as error:
            code = stopped(error)
    except KeyboardInterrupt as error:  # one more, before the first had its word
        code = stopped(error)
    finally:
        listener.code = code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code
