"""Files and folders that are there whole or not at all, whenever a process is killed."""

from __future__ import annotations

__all__ = [
    "atomic_directory",
    "atomic_file",
    "checksums",
    "is_unfinished",
    "parsed_json",
    "read_json",
    "remove_unfinished",
    "sha256",
    "write_json",
    "write_text",
]

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK = 1 << 24
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(\.\w{8})?\.tmp(?P<aside>\.old)?")


def write_text(file: Path, text: str) -> None:
    """Write a text file, all of it or nothing."""
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON, all of it or nothing."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if it is missing or was cut off."""
    try:
        return parsed_json(file.read_bytes())
    except OSError:
        return None


def parsed_json(content: bytes) -> Any:
    """The value of a JSON file's content; None if it was cut off."""
    try:
        return json.loads(content.decode())
    except ValueError:
        return None


def sha256(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder, by their path in it."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`; the file written there replaces it once the block has ended without an error."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_unfinished(file: Path, name: str) -> bool:
    """True if a kill within `atomic_file` may have left this of a file of that name."""
    return file.name.startswith(f".{name}.") and file.suffix == ".tmp"


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that replaces it once the block has ended without an error.

    An existing directory is moved aside first, so that a kill leaves it or the new one, perhaps under another name.
    """
    target = target.resolve()  # `.` has no name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        aside = Path(f"{temporary}.old")
        if target.exists():
            target.replace(aside)
        temporary.replace(target)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes have left of files and directories that they were writing, in a folder and below it.

    What was moved aside is deleted only where its successor is there.
    """
    for path in list(folder.rglob(".*")):
        found = UNFINISHED.fullmatch(path.name)
        if found is None or _is_alive(int(found["process"])):
            continue
        if not found["aside"] or (path.parent / found["name"]).exists():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user, or no process at all
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
