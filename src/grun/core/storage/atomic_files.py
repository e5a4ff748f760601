"""Files and folders that are there whole or not at all, whenever a process is killed."""

from __future__ import annotations

__all__ = [
    "atomic_directory",
    "atomic_file",
    "checksums",
    "is_unfinished",
    "is_unfinished_folder",
    "open_to_others",
    "parsed_json",
    "read_json",
    "remove_leftovers",
    "sha256",
    "write_json",
    "write_text",
]

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grun.core.storage.directories import written
from grun.core.storage.directories.written import sha256

UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(\.\w{8})?\.tmp(?P<aside>\.old)?")
EARLIER = r"\.[^.]+\.\w+(\.old)?"  # of folders that versions without process numbers left


def write_text(file: Path, text: str) -> None:
    """Write a text file, all of it or nothing. Halves of characters, as names of files may have, are written as numbers."""
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    """The value of a JSON file's content; None if it was cut off or damaged."""
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        return None


def checksums(folder: Path) -> dict[str, str]:
    """Checksums of all files below a folder, by their path in it."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`; the file written there replaces it once the block has ended without an error.

    Its rights are those that the umask leaves to a new file, and it is entered into the list of its directory (see `written`).
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        open_to_others(temporary)
        written.note(target, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_unfinished(file: Path, name: str) -> bool:
    """True if a kill within `atomic_file` may have left this of a file of that name."""
    return re.fullmatch(rf"\.{re.escape(name)}\.\d+\.tmp", file.name) is not None


def is_unfinished_folder(folder: Path) -> bool:
    """True if a kill within `atomic_directory` may have left this."""
    by_name = UNFINISHED.fullmatch(folder.name) or re.fullmatch(EARLIER, folder.name)
    return by_name is not None and folder.is_dir() and not folder.is_symlink()


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target` that replaces it once the block has ended without an error.

    An existing directory is moved aside first, so that a kill leaves it or the new one, perhaps under another name. Files in
    it that the new one does not have are taken over, so that nothing is lost that somebody else put there.
    """
    target = target.resolve()  # `.` has no name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        open_to_others(temporary)
        written.note(target, temporary)
        aside = Path(f"{temporary}.old")
        if target.exists():
            _take_over(target, temporary)
            target.replace(aside)
        temporary.replace(target)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_to_others(path: Path) -> None:
    """Give a file, or a folder with all that is in it, the rights that the umask leaves; libraries keep some to the owner."""
    mask = _umask()
    for one in (path, *(path.rglob("*") if path.is_dir() else ())):
        if not one.is_symlink():
            with suppress(OSError):  # a file system without rights, or somebody else's file
                one.chmod((0o777 if one.is_dir() else 0o666) & ~mask)


def _take_over(old: Path, new: Path) -> None:
    """Put what only the old directory has into the new one; the old one stays whole."""
    for file in sorted(old.rglob("*")):
        there = new / file.relative_to(old)
        if os.path.lexists(there) or (file.is_dir() and not file.is_symlink()):
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            there.symlink_to(os.readlink(file))
        else:
            try:
                there.hardlink_to(file)
            except OSError:  # a file system without links
                shutil.copy2(file, there)


def remove_leftovers(folder: Path) -> None:
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
    """The mask of this process; reading it does not change it, since another thread may be making files."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
