"""The content of files and pipes that users name: nothing is read for ever, and a pipe is read once and kept."""

from __future__ import annotations

__all__ = ["decoded", "read_content", "state_of"]

import errno
import logging
import os
import select
import stat
import time
from pathlib import Path

import psutil

from grun.core.errors import UserError
from grun.core.python_objects import is_pipe

logger = logging.getLogger("grun")
STANDARD_INPUT = "-"
CHUNK = 1 << 20
MOST_PIPED = 1 << 29  # bytes
WORD, PATIENCE = 3.0, 20.0  # seconds until something is said, and until a pipe without a writer is given up
REASONS = {
    errno.ELOOP: "its links lead round in a circle",
    errno.ENAMETOOLONG: "its name is longer than that of a file can be",
    errno.EACCES: "there is no permission to read it",
}
FOREIGN = {  # beginnings of files that are no text
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself: run `git lfs pull`",
    b"PAR1": "is a Parquet file: give its name the ending .parquet",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ\0": "is compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it first",
    b"PK\x03\x04": "is a zip archive (or a spreadsheet): unpack it, or save the sheet as CSV",
    b"ARROW1": "is an Arrow file: write it as Parquet or JSON lines",
    b"SQLite format 3\0": "is a database: write its rows as JSON lines or CSV",
    b"\xff\xfe": "is UTF-16: save the file in UTF-8",
    b"\xfe\xff": "is UTF-16: save the file in UTF-8",
    b"%PDF-": "is a PDF: write its text as JSON lines or CSV",
}
_kept: dict[tuple[int, int], bytes] = {}  # what came through a pipe, by device and number of the pipe


def state_of(source: str, said: str = "") -> os.stat_result | None:
    """What the system knows about a path; None if nothing is there.

    Args:
        source: a path, or `-` for standard input.
        said: how a message begins; the source where it is empty.

    Raises:
        UserError: if the path cannot be looked at.
    """
    try:
        return os.fstat(0) if source == STANDARD_INPUT else os.stat(Path(source).expanduser())  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RuntimeError:  # ~name of nobody
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{said or source}: cannot be read: {_reason(error)}. Check the path.") from error


def read_content(source: str, said: str = "") -> bytes:
    """All bytes of a file or pipe. What came through a pipe is kept, since jobs read their data more than once.

    Args:
        source: a path, or `-` for standard input.
        said: how a message begins; the source where it is empty.

    Raises:
        UserError: if nothing is there, it is neither a file nor a pipe, or it cannot be read.
    """
    said = said or source
    state = state_of(source, said)
    if state is None:
        raise UserError(f"{said}: no such file. Check the path (working directory: {Path.cwd()}).")
    try:
        if stat.S_ISREG(state.st_mode):
            return _read_file(source, said, state.st_size)
        if stat.S_ISDIR(state.st_mode):
            raise UserError(f"{said}: is a folder, expected a file; name a file in it.")
        if stat.S_ISFIFO(state.st_mode) or (source == STANDARD_INPUT and stat.S_ISSOCK(state.st_mode)):
            return _read_pipe(source, said, state)
        if stat.S_ISCHR(state.st_mode) and state.st_rdev == os.stat(os.devnull).st_rdev:  # noqa: PTH116
            return b""
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{said}: cannot be read: {_reason(error)}. Check its permissions.") from error
    except MemoryError as error:
        raise UserError(f"{said}: does not fit into memory; split it.") from error
    kind = "a terminal" if source == STANDARD_INPUT and os.isatty(0) else "a device or socket"
    raise UserError(f"{said}: is {kind}, expected a file or a pipe with rows.")


def decoded(content: bytes, said: str) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        UserError: if it is no UTF-8 text; says what it seems to be.
    """
    for start, words in FOREIGN.items():
        if content.startswith(start):
            raise UserError(f"{said}: {words}.")
    if (place := content.find(b"\0")) >= 0:
        raise UserError(f"{said}: byte {place} is zero, so this is no text in UTF-8; it is damaged or of another kind.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{said}: not UTF-8 at byte {error.start}; save the file in UTF-8.") from error


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return "a path cannot hold this character" if "null" in str(error) else str(error)
    return REASONS.get(error.errno or 0, error.strerror or str(error))


def _read_file(source: str, said: str, size: int) -> bytes:
    free = psutil.virtual_memory().available
    if size > free // 2:
        words = f"has {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free"
        raise UserError(f"{said}: {words}; split it, or give fewer rows.")
    if source != STANDARD_INPUT:
        return Path(source).expanduser().read_bytes()
    with os.fdopen(os.dup(0), "rb") as file:
        file.seek(0)
        return file.read()


def _read_pipe(source: str, said: str, state: os.stat_result) -> bytes:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{said}: is a pipe, which several processes cannot all read; give a file.")
    key = (state.st_dev, state.st_ino)
    path = Path(source).expanduser()
    number = os.dup(0) if source == STANDARD_INPUT else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        is_new = key not in _kept or bool(select.select([number], [], [], 0)[0] and not is_pipe(source))
        found = _drained(number, source, said) if is_new else b""
    finally:
        os.close(number)
    if found or key not in _kept:
        _kept[key] = found
        logger.info("%s was read through a pipe. To resume this run, give the same content again.", said)
    return _kept[key]


def _drained(number: int, source: str, said: str) -> bytes:
    """Everything that comes through a pipe until its writers close it."""
    parts, total = list[bytes](), 0
    started, is_told = time.monotonic(), False
    while True:
        is_ready = bool(select.select([number], [], [], 1.0)[0])
        chunk = _available(number, source)
        if chunk:
            parts.append(chunk)
            total += len(chunk)
            if total > MOST_PIPED:
                most = f"{MOST_PIPED / 2**20:.0f} MiB"
                raise UserError(f"{said}: more than {most} came through the pipe; write it to a file and name that.")
        elif chunk is not None and (is_ready or parts):
            return b"".join(parts)
        waited = time.monotonic() - started
        if chunk is not None and not parts and waited > PATIENCE:
            raise UserError(
                f"{said}: is a pipe, and nobody writes to it; start the program that fills it, or name a file."
            )
        if not chunk and not is_told and waited > WORD:
            is_told = True
            logger.info("Waiting for rows from the pipe %s ...", said)


def _available(number: int, source: str) -> bytes | None:
    """What a pipe holds now: nothing if no writer is there, None if one is there and has written nothing yet."""
    if source == STANDARD_INPUT and not select.select([number], [], [], 0)[0]:
        return None
    try:
        return os.read(number, CHUNK)
    except BlockingIOError:
        return None
