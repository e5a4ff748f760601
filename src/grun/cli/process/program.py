"""The process of the command line, from its first moment to its last: signals and streams."""

from __future__ import annotations

__all__ = ["process"]

import json
import sys
from collections.abc import Callable, Sequence

from grun.cli.process.signals import Listener, stopped
from grun.cli.process.streams import guard_streams


def process(work: Callable[[], int], arguments: Sequence[str] = ()) -> int:
    """Do work as a process of its own; returns its exit code, which is that of the signal if one stopped it.

    Signals are listened to until the process is gone, so there is no moment at which one of them ends in a traceback.

    Args:
        work: that returns an exit code.
        arguments: of the command line; with `--json`, a signal before the work has begun is a document as well.
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
            _write_document(error, code, arguments)
    except KeyboardInterrupt as error:  # one more, before the first had its word
        code = stopped(error)
    finally:
        listener.code = code
    if sys.stdout is not None:
        sys.stdout.flush()
    return code


def _write_document(error: KeyboardInterrupt, code: int, arguments: Sequence[str]) -> None:
    """Write what `Output.failure` writes, which is not imported yet; once it is, it may have written its document."""
    output = getattr(sys.modules.get("grun.cli.output"), "Output", None)
    if "--json" in arguments and "lm-eval" not in arguments and not getattr(output, "has_written", False):
        message = " ".join(str(error).split()) or "stopped."
        document = {"error": {"kind": "interrupted", "message": message, "exit_code": code}}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
