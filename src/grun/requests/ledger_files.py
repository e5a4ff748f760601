"""What lies in the directory of a ledger, whoever was killed in it."""

from __future__ import annotations

__all__ = ["ADDING", "DATA", "LOCK", "RECORD", "REQUESTS", "WORK", "downloaded", "intact", "is_own", "tidy"]

import shutil
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from grun.core.errors import UserError
from grun.core.storage.atomic_files import is_unfinished, sha256

RECORD, LOCK, WORK, REQUESTS = "ledger.json", ".lock", ".work", "requests"
DATA = "data.json"
ADDING = ".adding"  # in the folder of a request that the record may not name yet


def is_own(file: Path) -> bool:
    """Whether an `add` that is at work, or was killed, may have made this before there is a record."""
    return file.name in (LOCK, WORK) or is_unfinished(file, RECORD)


def tidy(ledger: Path, known: Collection[str]) -> None:
    """Remove what an `add` that was killed has left; to be called by the one who holds the lock.

    Args:
        ledger: its directory.
        known: ids of the requests that the record names.
    """
    for file in ledger.iterdir():
        if is_unfinished(file, RECORD):
            file.unlink(missing_ok=True)
    for unfinished in (ledger / REQUESTS).glob(".*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for marker in (ledger / REQUESTS).glob(f"*/{ADDING}"):
        if marker.parent.name in known:
            marker.unlink(missing_ok=True)
        else:
            shutil.rmtree(marker.parent, ignore_errors=True)


def intact(id: str, file: Path, digest: str) -> Path:
    """The file of a request, if it is as it was when it was written.

    Raises:
        UserError: naming it.
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
    """The newest state of a ledger in a hub repository.

    Raises:
        UserError: if there is none.
    """
    try:
        return Path(snapshot_download(repository))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ledger '{repository}': there is no such directory, and no hub repository could be downloaded: {reason}"
        ) from error
