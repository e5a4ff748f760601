"""Disks that are full or go away: recognised in the errors of every library, found beforehand where that is possible."""

from __future__ import annotations

__all__ = ["check_room", "not_written", "reason_of"]

import errno
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grun.core.errors import NotWritten, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO)
OS_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # as libraries in Rust say it, and errors of several files
TORCH = ("PytorchStreamWriter failed", "file write failed", "iostream error", "unexpected pos ")
SCARCE = 2**26  # bytes; less than this may be why a temporary file could not be written
_needed: dict[Path, int] = {}  # bytes that a run is expected to write, by its directory


def reason_of(error: BaseException, where: Path | None = None) -> str | None:
    """Why a file could not be written, in words; None for any other error.

    Args:
        error: as any library raises it.
        where: directory that is written to; an error of rights counts for files in it only. None counts none.
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno in FULL or (one.errno in GONE and where is not None and _is_below(one.filename, where)):
                return os.strerror(one.errno)
        elif (found := OS_ERROR.search(str(one))) and int(found[1] or found[2]) in (*FULL, errno.EROFS):
            return os.strerror(int(found[1] or found[2]))
        elif isinstance(one, RuntimeError) and any(words in str(one) for words in TORCH):
            limited = resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
            return os.strerror(errno.EFBIG if limited else errno.ENOSPC)
    return None


def not_written(reason: str, where: Path, kept: str, flag: str = "--output") -> NotWritten:
    """The error that says what could not be written, how much is free there, and what is kept.

    Args:
        reason: from `reason_of`.
        where: directory that is written to.
        kept: sentence about the state.
        flag: that names the directory.
    """
    needed = _needed.get(where.resolve())
    more = "" if needed is None else f", and about {_words(needed)} are needed"
    return NotWritten(f"{flag} '{where}' cannot be written: {reason}; {_room(where)}{more}. {kept}")


def check_room(where: Path, needed: int) -> None:
    """Refuse a run whose disk clearly has too little room for what it is going to write.

    Args:
        where: directory of the run, or where it will be. What is in it already is counted as room.
        needed: bytes that the run holds at least, at its largest.

    Raises:
        UserError: with both numbers.
    """
    _needed[where.resolve()] = needed
    there = sum(file.stat().st_size for file in where.rglob("*") if file.is_file() and not file.is_symlink())
    free = _free(where)
    if free is not None and free + there < needed:
        raise UserError(
            f"--output '{where}': the run writes about {_words(needed)}, but {_room(where)}; make room, or name a directory "
            "on another disk."
        )


def _free(where: Path) -> int | None:
    """Bytes that are free on the disk of a directory, which need not be there yet; None if that is not known."""
    try:
        return shutil.disk_usage(_existing(where)).free
    except OSError:
        return None


def _words(count: int) -> str:
    """A number of bytes with its unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


def _room(where: Path) -> str:
    free, place = _free(where), _existing(where)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    said = f"its disk ('{place}') has {'an unknown room' if free is None else _words(free)} free"
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev != place.stat().st_dev and (left := _free(temporary)) is not None and left < SCARCE:
        said += f", that of temporary files ('{temporary}') {_words(left)}"
    return said if limit == resource.RLIM_INFINITY else f"{said}, and a file may have {_words(limit)} at most"


def _existing(where: Path) -> Path:
    return next(place for place in (where, *where.absolute().parents) if place.exists())


def _is_below(file: object, where: Path) -> bool:
    if not isinstance(file, (str, bytes, os.PathLike)):
        return False
    return where.resolve() in (Path(os.fsdecode(file)).absolute().parent.resolve() / "x").parents


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        yield one
        one = one.__cause__ or one.__context__
