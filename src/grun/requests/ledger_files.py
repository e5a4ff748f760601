"""The files of a ledger: names, reading, lock, checksums, and the cleanup after a killed process."""

from __future__ import annotations

__all__ = [
    "ADDING",
    "DATA",
    "FORMAT",
    "LOCK",
    "RECORD",
    "REQUESTS",
    "WORK",
    "downloaded",
    "intact",
    "is_own",
    "locked",
    "read_record",
    "read_rows",
    "tidy",
    "undo",
]

import errno
import logging
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from grun.core.errors import UserError
from grun.core.hub import is_cached, nearest_folder, reachable
from grun.core.records import Example
from grun.core.storage.atomic_files import is_unfinished, is_unfinished_folder, parsed_json, read_json, sha256
from grun.core.storage.directories.locks import lock

logger = logging.getLogger("grun")
FORMAT = 1
RECORD, LOCK, WORK, REQUESTS = "ledger.json", ".lock", ".work", "requests"
DATA = "data.json"
ADDING = ".adding"  # in the folder of a request that the record may not name yet


def is_own(file: Path) -> bool:
    """Check whether an `add` may have made this file before it wrote the record, be it running or killed."""
    return file.name in (LOCK, WORK) or is_unfinished(file, RECORD)


def read_record(ledger: Path) -> dict[str, Any]:
    """The content of a ledger's record.

    Raises:
        UserError: if there is no record, or one that this version cannot read.
    """
    try:
        content = (ledger / RECORD).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        advice = "restore it from a backup" if (ledger / REQUESTS).exists() else "`grun request add` makes a new one"
        raise UserError(f"--ledger '{ledger}': there is no ledger in it; {advice}.") from error
    except OSError as error:
        raise UserError(f"--ledger '{ledger}' cannot be read: {error.strerror or error}.") from error
    record = parsed_json(content)
    if not isinstance(record, dict):
        raise UserError(f"--ledger '{ledger}': its {RECORD} is damaged; restore it from a backup.")
    if record.get("format") != FORMAT:
        raise UserError(
            f"--ledger '{ledger}' has format {record.get('format')}, but this version of grun knows format {FORMAT}: "
            "install the version of grun that wrote it, or a newer one."
        )
    return record


def read_rows(file: Path) -> list[Example]:
    """The rows of a request from the file in which they were kept."""
    return [Example(**{name: _tuples(value) for name, value in row.items()}) for row in read_json(file)]


def _tuples(value: Any) -> Any:
    """JSON lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def locked(ledger: Path) -> IO[str]:
    """The lock file of a ledger, open and locked until it is closed; waits while another process holds the lock.

    Raises:
        OSError: if the directory cannot be made or written.
    """
    ledger.mkdir(parents=True, exist_ok=True)
    if not os.access(ledger, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return lock(ledger / LOCK, lambda: logger.info("Another process is changing %s; waiting for it.", ledger))


def tidy(ledger: Path, known: Collection[str]) -> None:
    """Remove the unfinished files of killed `add` commands; the caller holds the lock.

    Args:
        ledger: directory of the ledger.
        known: ids of the requests in the record.
    """
    for file in ledger.iterdir():
        if is_unfinished(file, RECORD):
            file.unlink(missing_ok=True)
    for unfinished in filter(is_unfinished_folder, (ledger / REQUESTS).glob(".*")):
        shutil.rmtree(unfinished, ignore_errors=True)
    for marker in (ledger / REQUESTS).glob(f"*/{ADDING}"):
        if marker.parent.name in known:
            marker.unlink(missing_ok=True)
        else:
            shutil.rmtree(marker.parent, ignore_errors=True)


def undo(ledger: Path, made: Collection[Path]) -> None:
    """Remove a new ledger whose first request was refused; the caller holds the lock.

    Args:
        ledger: directory of the ledger.
        made: folders that were made for it, the innermost first.
    """
    if any(file for file in ledger.rglob("*") if file.is_file() and file.name not in (RECORD, LOCK)):
        return
    with suppress(OSError):
        (ledger / RECORD).unlink(missing_ok=True)
        for folder in (ledger / WORK, ledger / REQUESTS):
            if folder.is_dir():
                folder.rmdir()
        (ledger / LOCK).unlink(missing_ok=True)
        for folder in made:
            folder.rmdir()


def intact(id: str, file: Path, digest: str) -> Path:
    """The file of a request, after it was compared with its checksum.

    Raises:
        UserError: naming the file, if it is missing, cannot be read or was changed.
    """
    try:
        found = sha256(file)
    except OSError as error:
        state = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror or error})"
        raise UserError(f"request '{id}' is damaged: {file} {state}; restore it from a backup.") from error
    if found != digest:
        raise UserError(f"request '{id}' is damaged: {file} was changed (checksum); restore it from a backup.")
    return file


def downloaded(repository: str) -> Path:
    """The directory with the newest state of a ledger in a hub repository.

    Raises:
        UserError: if the repository cannot be downloaded.
    """
    from huggingface_hub import constants, snapshot_download  # most ledgers are folders, and need not wait for it
    from huggingface_hub.errors import HfHubHTTPError

    if (
        not constants.is_offline_mode() and not reachable() and not is_cached(repository)
    ):  # which would be asked for long
        raise UserError(
            f"--ledger '{repository}': there is no such directory, and no hub repository could be downloaded: the hub cannot "
            f"be reached, and its cache holds nothing of that name.{nearest_folder(repository)}"
        )
    try:
        return Path(snapshot_download(repository))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ledger '{repository}': there is no such directory, and no hub repository could be downloaded: {reason}"
        ) from error
