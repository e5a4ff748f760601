"""The process of one run of a sweep: commands with their settings files, one after the other.

python -m grun.cli.sweep_worker unlearn SETTINGS.json evaluate SETTINGS.json
"""

from __future__ import annotations

__all__ = ["work"]

import os
import sys
import threading
from collections.abc import Sequence

from grun.cli.main import main
from grun.cli.process.program import process

ORPHANED = 1


def work(steps: Sequence[str]) -> int:
    """Run commands, each with its settings file, until one fails; returns the exit code of the last."""
    for command, settings in zip(steps[::2], steps[1::2], strict=True):
        code = main([command, "--config", settings])
        if code:
            return code
    return 0


def _end_with_parent() -> None:
    """End this process with its parent, which holds the other end of standard input and never writes to it."""
    os.read(sys.stdin.fileno(), 1)  # a buffered read would hold a lock that the interpreter needs when it exits
    os._exit(ORPHANED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(process(lambda: work(sys.argv[1:])))
