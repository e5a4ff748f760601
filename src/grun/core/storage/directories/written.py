"""The list that a directory keeps of the files which grun wrote into it, with their checksums.

`begin` opens the list of a directory. From then on, until `end`, every file that this process writes whole below it (see
`atomic_files`) is entered before it takes its place. So a file that is not in the list was written by somebody else, and one
with another content was changed.
"""

from __future__ import annotations

__all__ = ["LIST", "Written", "begin", "begun_here", "end", "note", "note_log", "read_list", "sha256"]

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LIST = ".grun-files"  # no suffix: whoever looks for rows (*.jsonl) does not find it
CHUNK = 1 << 24
_begun: dict[Path, bool] = {}  # directories by their real path; True for those that hold nothing from before


@dataclass(frozen=True)
class Written:
    """A state in which a file was written.

    Attributes:
        file: path below the directory of the list.
        sha256: checksum; None for a log, which grows.
        size, mtime_ns: as the file system has them; a file that still has both is not read again.
    """

    file: str
    sha256: str | None
    size: int
    mtime_ns: int

    def is_in(self, file: Path) -> bool:
        """True if a file is in this state."""
        found = file.stat()
        if self.sha256 is None or (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns):
            return True
        return found.st_size == self.size and sha256(file) == self.sha256


def sha256(file: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def begin(root: Path, *, new: bool, adopted: Sequence[str] = ()) -> None:
    """Open the list of a directory.

    Args:
        root: the directory; it exists.
        new: nothing is there from before, so that a refused command may remove everything again.
        adopted: files below it that an earlier version wrote, which kept no list.
    """
    real = root.resolve()
    _begun[real] = new
    _enter(real, {name: root / name for name in adopted})


def begun_here(root: Path) -> bool:
    """True if this process began the list of a directory that held nothing before."""
    return _begun.get(root.resolve(), False)


def end(root: Path) -> None:
    """Close the list of a directory; nothing more is entered."""
    _begun.pop(root.resolve(), None)


def note(target: Path, content: Path) -> None:
    """Enter what is about to be written, if it lies below a directory whose list is open.

    Args:
        target: file or folder that is replaced.
        content: what will be there, under its temporary name.
    """
    real = target.parent.resolve() / target.name
    root = _root_of(real)
    if root is None:
        return
    name = real.relative_to(root).as_posix()
    if content.is_dir():
        parts = (file for file in sorted(content.rglob("*")) if file.is_file())
        _enter(root, {f"{name}/{file.relative_to(content).as_posix()}": file for file in parts})
    else:
        _enter(root, {name: content})


def note_log(file: Path) -> None:
    """Enter a file that another process is going to write, whatever will be in it."""
    real = file.parent.resolve() / file.name
    if (root := _root_of(real)) is not None:
        _append(root, [Written(real.relative_to(root).as_posix(), None, 0, 0)])


def read_list(root: Path) -> dict[str, list[Written]] | None:
    """The states in which files below a directory were written, by their path in it; None if it has no list."""
    try:
        lines = (root / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[str, list[Written]] = {}
    for line in lines:
        try:
            state = Written(**json.loads(line))
        except (ValueError, TypeError):  # cut off by a kill; what it names has not taken its place
            continue
        found.setdefault(state.file, []).append(state)
    return found


def _root_of(real: Path) -> Path | None:
    return next((folder for folder in real.parents if folder in _begun), None)


def _enter(root: Path, files: Mapping[str, Path]) -> None:
    states = {name: file.stat() for name, file in files.items()}
    _append(root, [Written(name, sha256(files[name]), at.st_size, at.st_mtime_ns) for name, at in states.items()])


def _append(root: Path, states: Sequence[Written]) -> None:
    with (root / LIST).open("a+b") as stream:
        cut_off = stream.tell() > 0 and os.pread(stream.fileno(), 1, stream.tell() - 1) != b"\n"
        lines = "".join(json.dumps(asdict(state), ensure_ascii=False) + "\n" for state in states)
        stream.write(("\n" * cut_off + lines).encode("utf-8", "surrogateescape"))
