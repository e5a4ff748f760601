"""Commands in processes whose files may not grow beyond a limit, as on a full disk."""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from grun.cli.main import main

CRASHED = 99


def limited(arguments: Sequence[str], limit: int | None, cwd: Path | None = None) -> tuple[int, str]:
    """Exit code and output of a command in a child process in which no file may have more bytes than `limit`."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = CRASHED
        try:
            os.close(reading)
            for descriptor in (1, 2):
                os.dup2(writing, descriptor)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
            if cwd is not None:
                os.chdir(cwd)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            code = main(list(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as output:
        said = output.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said
