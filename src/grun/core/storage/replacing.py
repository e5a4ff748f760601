"""What may be deleted of a directory: only what grun wrote into it and nobody changed since."""

from __future__ import annotations

__all__ = [
    "check_place",
    "check_unchanged",
    "delete",
    "discard",
    "files_of_run",
    "given_paths",
    "is_folder",
    "open_list",
    "reading",
]

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.process.environment import cache_directory
from grun.core.storage.atomic_files import read_json
from grun.core.storage.directories.layout import CONFIG, LAYOUTS, LOCK, RECORD, Layout
from grun.core.storage.directories.locks import is_held
from grun.core.storage.directories.written import LIST, Written, begin, read_list

LAST = (CONFIG, RECORD, LIST)  # deleted last and in this order: until then the same command goes on
CLOCKS_DIFFER = 2.0  # seconds
NOTHING = "nothing was deleted."
_also_read: ContextVar[tuple[str, ...]] = ContextVar("also_read", default=())


@contextmanager
def reading(*files: object) -> Iterator[None]:
    """Inside, a command reads these files, which no setting names; nothing that holds them is deleted."""
    token = _also_read.set((*_also_read.get(), *(str(file) for file in files if file is not None)))
    try:
        yield
    finally:
        _also_read.reset(token)


def given_paths(config: Any) -> dict[str, Path]:
    """Everything in a job's settings that is a file or folder, by the text that names it; not its output."""
    found: dict[str, Path] = {}
    for f in dataclasses.fields(config):
        if f.name != "output":
            for text in _texts(getattr(config, f.name)):
                for part in dict.fromkeys((text, text.partition("=")[2])):
                    with suppress(OSError, ValueError, RuntimeError):  # too long for a name, say
                        if part and (path := Path(part).expanduser()).exists():
                            found[part] = path
    return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def check_place(where: Path, inputs: Mapping[str, Path]) -> None:
    """Refuse to delete what is in a directory that is, or holds, something that is needed.

    Args:
        where: the directory.
        inputs: files and folders that the command reads, by the text that names them.

    Raises:
        UserError: for the working directory, the home directory, a root, or an input of the command.
    """
    real = where.resolve()
    needed: dict[str, Path] = {"the working directory": Path.cwd()}
    with suppress(RuntimeError):
        needed["the home directory"] = Path.home()
    needed |= {f"'{name}', which the command reads": path for name, path in inputs.items()}
    needed |= {f"'{name}', which the command reads": Path(name) for name in _also_read.get()}
    needed["the cache of grun (GRUN_CACHE_DIR)"] = cache_directory()
    if real == Path(real.anchor):
        raise UserError(f"--output '{where}' is the root of a file system, which --overwrite never empties; {NOTHING}")
    for what, path in needed.items():
        for place in (path.resolve(), path.absolute(), path.absolute().parent.resolve() / path.name):
            if real == place or real in place.parents:
                verb = "is" if real == place else "holds"
                raise UserError(
                    f"--output '{where}' {verb} {what}, so --overwrite cannot delete it; name another directory; {NOTHING}"
                )


def files_of_run(where: Path, command: str, shown: Path | None = None) -> list[Path]:
    """All files of a run in the order in which they may be deleted, those of runs inside it first.

    Links are never followed. A run of an earlier version has no list; the names that its job writes are taken instead.

    Args:
        where: directory of the run.
        command: job that wrote it.
        shown: directory that messages name; None for `where`.

    Raises:
        UserError: naming a file that grun did not write, or one that was changed since.
    """
    layout, shown = LAYOUTS.get(command), shown or where
    if layout is None:
        raise UserError(f"--output '{shown}' holds a run of '{command}', which is no job of grun; {NOTHING}")
    if shown != where and is_held(where / LOCK):
        raise UserError(f"another process is writing in '{where}', below --output '{shown}'; wait for it.")
    listed = read_list(where)
    inside: list[Path] = []
    own: list[Path] = []
    for entry in _entries(where, layout):
        name = entry.relative_to(where).as_posix()
        if is_folder(entry):
            inside += files_of_run(entry, str(layout.run_at(name)), shown)
        elif name != LOCK or shown != where:
            _check(entry, name, where, listed, layout, shown)
            own.append(entry)
    return [*inside, *sorted(own, key=lambda file: _rank(file, where))]


def check_unchanged(where: Path, names: Sequence[str]) -> None:
    """Refuse to write files again that somebody else has written or changed.

    Args:
        where: directory whose list names them; a directory without a list is of an earlier version.
        names: of the files.

    Raises:
        UserError: naming the first of them.
    """
    listed = read_list(where)
    for name in names if listed is not None else ():
        file = where / name
        states = listed.get(name, ()) if listed else ()
        if os.path.lexists(file) and (file.is_symlink() or not any(state.is_in(file) for state in states)):
            raise UserError(
                f"'{file}' was changed since grun wrote it, and would be written again; move it elsewhere, or name another "
                "directory with --output."
            )


def open_list(where: Path, command: str, *, new: bool) -> None:
    """Open the list of a directory; what a job of an earlier version has written there, without a list, is entered first.

    Args:
        where: the directory.
        command: job that wrote what is there.
        new: see `written.begin`.
    """
    begin(where, new=new, adopted=[] if read_list(where) is not None else _known_files(where, command))


def _known_files(where: Path, command: str) -> list[str]:
    """Files in a directory that a job writes, by their paths in it."""
    if (layout := LAYOUTS.get(command)) is None:
        return []
    names = [entry.relative_to(where).as_posix() for entry in _entries(where, layout) if not is_folder(entry)]
    return [name for name in names if layout.is_known(name) and not (where / name).is_symlink()]


def delete(files: Sequence[Path], root: Path) -> None:
    """Delete files of a directory in their order, then the folders below it that are empty by that."""
    for file in files:
        file.unlink(missing_ok=True)
    folders = {folder for file in files for folder in file.parents if root in folder.parents}
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):  # it holds something else
            folder.rmdir()


def discard(root: Path, command: str) -> None:
    """Delete what a refused command has written, as far as nobody else has changed it."""
    with suppress(UserError, OSError):
        delete(files_of_run(root, command), root)


def _entries(where: Path, layout: Layout) -> Iterator[Path]:
    """All files below a directory, links among them, and the folders of runs, into which this does not look."""

    def below(folder: Path) -> Iterator[Path]:
        for entry in sorted(folder.iterdir()):
            if not is_folder(entry) or layout.run_at(entry.relative_to(where).as_posix()):
                yield entry
            else:
                yield from below(entry)

    return below(where)


def is_folder(entry: Path) -> bool:
    """True for a folder, and not for a link to one."""
    return entry.is_dir() and not entry.is_symlink()


def _rank(file: Path, where: Path) -> int:
    return LAST.index(file.name) if file.parent == where and file.name in LAST else -1


def _check(
    file: Path, name: str, where: Path, listed: Mapping[str, Sequence[Written]] | None, layout: Layout, shown: Path
) -> None:
    """Raise if a file is not grun's, or was changed."""
    if file.is_symlink() or not file.is_file():
        known = False
    else:
        known = name in (LIST, LOCK) or layout.is_unlisted(name)
        known = known or (layout.is_known(name) if listed is None else name in listed)
    if not known:
        raise UserError(
            f"--output '{shown}' holds '{file.relative_to(shown)}', which grun did not write; move it elsewhere, or name "
            f"another directory; {NOTHING}"
        )
    states = [] if listed is None else listed.get(name, [])
    unchanged = any(state.is_in(file) for state in states) or (not states and not _is_newer(file, where, layout, name))
    if not unchanged:
        raise UserError(
            f"--output '{shown}' holds '{file.relative_to(shown)}', which was changed since grun wrote it; move it elsewhere, "
            f"or name another directory; {NOTHING}"
        )


def _is_newer(file: Path, where: Path, layout: Layout, name: str) -> bool:
    """True for rows of a run of an earlier version that were written after it was complete: somebody has corrected them."""
    record = where / RECORD
    if not layout.holds_rows(name) or not record.is_file() or not (read_json(record) or {}).get("complete"):
        return False
    return os.stat(file).st_mtime > os.stat(record).st_mtime + CLOCKS_DIFFER
