"""Locks between processes: a file that one process at a time has locked."""

from __future__ import annotations

__all__ = ["Busy", "is_held", "lock", "unlock"]

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without locks


class Busy(Exception):
    """Another process holds a lock; the message says which, as far as it is known."""


def lock(file: Path, wait: Callable[[], None] | None = None) -> IO[str]:
    """A lock file, open and locked until it is closed. It holds the number of the process and the name of its machine.

    A holder may delete the file before it unlocks it, so the file is opened again if it is another one by then. On a file
    system without locks nothing is locked.

    Args:
        file: the lock file; it is made if it is not there.
        wait: called once before waiting for another process; None not to wait.

    Raises:
        Busy: if another process holds the lock, and this one should not wait.
        OSError: if the file cannot be made.
    """
    while True:
        stream = file.open("a+", encoding="utf-8")
        try:
            _take(stream, wait)
        except BaseException:
            stream.close()
            raise
        if _is_at(stream, file):
            with suppress(OSError):  # a full disk: the lock holds all the same
                os.ftruncate(stream.fileno(), 0)
                os.write(stream.fileno(), f"{os.getpid()} {socket.gethostname()}\n".encode())
            return stream
        stream.close()


def _take(stream: IO[str], wait: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if wait is None:
            raise Busy(_holder(stream)) from error
        wait()
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def unlock(stream: IO[str]) -> None:
    """Release a lock, also for child processes that were forked while it was held."""
    with suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_UN)
    stream.close()


def is_held(file: Path) -> bool:
    """True if a process has locked a file; the file stays as it is."""
    with suppress(OSError), file.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(stream: IO[str]) -> str:
    """Which process wrote a lock file, in words; it may not have done so yet."""
    stream.seek(0)
    number, _, machine = stream.read(300).strip().partition(" ")
    if not number.isdigit():
        return "another process"
    return f"another process ({number}{'' if machine == socket.gethostname() else f' on {machine}'})"


def _is_at(stream: IO[str], file: Path) -> bool:
    """True if an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:
        return False
