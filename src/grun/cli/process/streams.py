"""Standard streams that cannot be written: one line and exit code 1 for output, nothing for messages."""

from __future__ import annotations

__all__ = ["guard_streams"]

import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

FAILED, BROKEN_PIPE = 1, 128 + signal.SIGPIPE  # the latter as of programs that know nothing of this


class _Output(io.TextIOWrapper):
    """Standard output that ends the process when it cannot be written, quietly where nobody reads any more."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._end(error)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        with suppress(OSError):  # what is not written yet goes nowhere, also when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno == errno.EPIPE:
            raise SystemExit(BROKEN_PIPE) from None
        sys.stderr.write(f"grun: standard output cannot be written: {error.strerror or error}.\n")
        raise SystemExit(FAILED) from None


class _Messages(io.TextIOWrapper):
    """Standard error; messages that it cannot take are lost, because no work should end for them."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            super().flush()


def guard_streams() -> None:
    """Put streams in place that fail in one line. Those that are closed are opened, lest a data file takes their number.

    Streams that a program has replaced by its own are left alone.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # output that was closed cannot be written
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None or type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = _Output(*_parts(sys.stdout, 1))
    if sys.stderr is None or type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = _Messages(*_parts(sys.stderr, 2))


def _parts(stream: io.TextIOWrapper | None, number: int) -> tuple[io.BufferedWriter, str, str | None, None, bool]:
    """What a stream is made of, to make another one on the same buffer."""
    if stream is None:
        return io.BufferedWriter(io.FileIO(number, "w", closefd=False)), "utf-8", "backslashreplace", None, True
    buffer: io.BufferedWriter = stream.buffer  # type: ignore[assignment]
    return buffer, stream.encoding, stream.errors, None, stream.line_buffering
