"""The directory of an export: replaced as a whole, and only if an export wrote all that is in it."""

from __future__ import annotations

__all__ = ["exported"]

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grun.core.errors import UserError
from grun.core.storage import disk, written
from grun.core.storage.atomic_files import atomic_directory, read_json
from grun.core.storage.claims import check_writable
from grun.core.storage.layout import LOCK
from grun.core.storage.locks import Busy, lock, unlock
from grun.requests.ledger_record import ADAPTER_FILES


@contextmanager
def exported(target: Path) -> Iterator[Path]:
    """A directory to write an export to, which replaces `target` once the block has ended without an error.

    A lock beside it keeps other exports out. Its list says later that an export wrote these files.

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
            written.seal(directory)
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
    """Raise unless a directory is new, empty, or holds only what an export wrote."""
    if not target.is_dir():
        return
    listed = written.read_list(target)
    earlier = listed is None and _is_earlier_export(target)
    for file in sorted(target.iterdir()):
        states = (listed or {}).get(file.name, [])
        own = file.name in ADAPTER_FILES if earlier else any(state.is_in(file) for state in states)
        if file.is_symlink() or not (own or file.name == written.LIST):
            raise UserError(
                f"'{target}' holds something else: '{file.name}', which no export wrote or which was changed since; name a "
                "new directory, or one that an export made."
            )


def _is_earlier_export(target: Path) -> bool:
    """True for what an earlier version exported, which kept no list: a stack, and not that of a run."""
    config = read_json(target / ADAPTER_FILES[0])
    is_stack = isinstance(config, dict) and config.get("peft_type") == "GRUN" and bool(config.get("members"))
    return is_stack and not (target.parent / "run.json").exists()
