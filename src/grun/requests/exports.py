"""The directory of an export: replaced as a whole, and only if an export wrote all that is in it."""

from __future__ import annotations

__all__ = ["exported"]

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grun.core.errors import UserError
from grun.core.storage.atomic_files import atomic_directory, read_json
from grun.core.storage.claims import check_writable
from grun.core.storage.directories import disk
from grun.core.storage.directories.layout import LOCK, RECORD
from grun.core.storage.directories.locks import Busy, lock, unlock
from grun.requests.ledger_record import ADAPTER_FILES


@contextmanager
def exported(target: Path) -> Iterator[Path]:
    """A directory to write an export to, which replaces `target` once the block has ended without an error.

    A lock beside it keeps other exports out.

    Raises:
        UserError: if the target holds something else, cannot be written, or another process writes it.
        NotWritten: if its disk is full.
    """
    check_writable(target, "DIR")
    _check(target)
    real = target.resolve()  # `.` has no name
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        beside = real.parent / f".{real.name}{LOCK}"
        held = lock(beside)
    except Busy as error:
        raise UserError(f"{error} is writing '{target}'; wait for it, or name another directory.") from error
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        with atomic_directory(real) as directory:
            yield directory
            _check(target)  # somebody may have put a file there meanwhile
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and disk.reason_of(error) is None:
            raise
        raise _not_written(target, error) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        unlock(held)


def _not_written(target: Path, error: Exception) -> Exception:
    if (reason := disk.reason_of(error)) is None:
        return UserError(f"'{target}' cannot be written: {getattr(error, 'strerror', None) or error}.")
    return disk.not_written(reason, target, "What was there before is as it was.", "DIR")


def _check(target: Path) -> None:
    """Raise unless a directory is new, empty, or holds nothing but a stack, as exports write it: two files without a list."""
    if not target.is_dir():
        return
    config = read_json(target / ADAPTER_FILES[0])
    is_stack = isinstance(config, dict) and config.get("peft_type") == "GRUN" and bool(config.get("members"))
    is_stack = is_stack and not (target.parent / RECORD).exists()  # that of a run
    for file in sorted(target.iterdir()):
        if file.is_symlink() or not is_stack or file.name not in ADAPTER_FILES:
            raise UserError(
                f"'{target}' holds something else: '{file.name}', which no export wrote; name a new directory, or one that an "
                "export made."
            )
