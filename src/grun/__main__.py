"""`grun` and `python -m grun` are the command line."""

from __future__ import annotations

__all__ = ["run"]

import sys

from grun.cli.process.program import process


def run() -> int:
    """The console script. What takes time to import is imported once signals are listened to."""

    def work() -> int:
        from grun.cli.main import main

        return main(sys.argv[1:])

    return process(work, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
