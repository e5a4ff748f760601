"""One process at a time writes to a directory, and what it cannot finish is no obstacle to the next command."""

from __future__ import annotations

__all__ = ["check_writable", "claimed", "claims_output", "keeps"]

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from grun.core.errors import Interrupted, UserError
from grun.core.process.environment import is_first_process
from grun.core.storage.atomic_files import read_json
from grun.core.storage.directories import disk, written
from grun.core.storage.directories.layout import LOCK, RECORD
from grun.core.storage.directories.locks import Busy, lock, unlock
from grun.core.storage.replacing import discard, is_folder
from grun.core.storage.unfinished import remove_unfinished

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
T = TypeVar("T")
TRIES = 20  # another process may remove the directory that it has made


class _HasOutput(Protocol):
    @property
    def output(self) -> str: ...


C = TypeVar("C", bound=_HasOutput)


def claims_output(job: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
    """A job that has claimed the directory which its settings name as `output`; see `claimed`."""

    @functools.wraps(job)
    def claiming(config: C, /, *args: P.args, **more: P.kwargs) -> T:
        with claimed(config.output):
            return job(config, *args, **more)

    return claiming


def keeps(what: str) -> Callable[[F], F]:
    """A decorator for jobs: if a signal stops one, the error says what is kept in its `output` and how to go on.

    Args:
        what: that is kept once the run was started.
    """

    def decorate(job: F) -> F:
        @functools.wraps(job)
        def wrapped(config: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return job(config, *args, **kwargs)
            except KeyboardInterrupt as error:
                path = Path(str(config.output)).expanduser()
                started = (path / RECORD).is_file()
                place = f"stopped; {what} in {path}" if started else f"stopped before anything was written to {path}"
                raise Interrupted.saying(error, f"{place}. Run the same command to go on.") from error

        return cast(F, wrapped)

    return decorate


@contextmanager
def claimed(path: str | Path, command: str | None = None, flag: str = "--output") -> Iterator[None]:
    """Inside, no other process that claims this directory writes to it.

    A refused command leaves the directory as it was before: what it has made is removed, unless it went on with an earlier
    run. Of several processes on one job, only the first claims.

    Args:
        path: the directory, which need not be there yet.
        command: job whose directory it is; None to read it from the record that the job writes.
        flag: that names the directory.

    Raises:
        UserError: if another process is writing there, or nothing can be written there.
        NotWritten: if its disk is full or goes away.
    """
    if not is_first_process():
        yield
        return
    where = Path(path).expanduser()
    check_writable(where, flag)
    made, held = _taken(where, flag)
    try:
        yield
    except UserError:
        if written.begun_here(where):
            discard(where, command or _command(where))
        raise
    except Exception as error:
        if (reason := disk.reason_of(error, where)) is None:
            raise
        remove_unfinished(where)
        raise disk.not_written(reason, where, _kept(where, command), flag) from error
    finally:
        written.end(where)
        _released(where, made, held)


def check_writable(where: Path, flag: str = "--output") -> None:
    """Refuse a place in which no directory can be made or written.

    Raises:
        UserError: naming the flag.
    """
    if where.exists() and not where.is_dir():
        raise UserError(f"{flag} '{where}' is a file, expected a directory; name another one.")
    if where.is_symlink() and not where.exists():
        raise UserError(f"{flag} '{where}' is a link to '{os.readlink(where)}', which is not there; name another one.")
    existing = next(p for p in (where, *where.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} '{where}' cannot be written: no permission to write in '{existing}'.")


def _taken(where: Path, flag: str) -> tuple[list[Path], IO[str]]:
    """The folders that had to be made for the lock, the innermost first, and the lock."""
    made = [folder for folder in (where, *where.absolute().parents) if not folder.exists()]
    for _ in range(TRIES):
        try:
            where.mkdir(parents=True, exist_ok=True)
            return made, lock(where / LOCK)
        except FileNotFoundError:  # another process has just removed what it had made
            continue
        except Busy as error:
            raise UserError(
                f"{error} is writing in {flag} '{where}'; wait for it, or name another directory."
            ) from error
        except OSError as error:
            _remove_empty(made)
            if reason := disk.reason_of(error):
                raise disk.not_written(reason, where, "Nothing was begun.", flag) from error
            raise UserError(f"{flag} '{where}' cannot be written: {error.strerror or error}.") from error
    raise UserError(f"{flag} '{where}' cannot be written: {os.strerror(errno.ENOENT)}.")


def _released(where: Path, made: list[Path], held: IO[str]) -> None:
    with suppress(OSError):
        (where / LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        below = list(where.rglob("*")) if made else []
        if all(is_folder(entry) for entry in below):  # a trainer that was refused makes folders
            _remove_empty(sorted(below, key=lambda folder: len(folder.parts), reverse=True))
            _remove_empty(made)
    unlock(held)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # something was written there
            folder.rmdir()


def _command(where: Path) -> str:
    """The job whose run a directory holds; empty if it holds none."""
    record = read_json(where / RECORD)
    return str(record.get("command", "")) if isinstance(record, dict) else ""


def _kept(where: Path, command: str | None) -> str:
    if command is None and not (where / RECORD).exists():
        return "Nothing was begun; make room, or name a directory on another disk."
    if command == "compare":
        return "Make room and run the same command again."
    return f"What is done is kept in '{where}'; make room there and run the same command again, which goes on."
