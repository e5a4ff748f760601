"""Records that runs wrote, read again: a damaged one is named, and never taken for another run or for none."""

from __future__ import annotations

__all__ = ["CHECKSUMS", "REPEAT", "check_checkpoint", "mapping_in", "run_record", "write_checksums"]

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from grun.core.errors import UserError
from grun.core.storage.atomic_files import checksums, read_json, sha256, write_json
from grun.core.storage.directories.layout import TRAINER_STATE

CHECKSUMS = "checksums.json"  # in a checkpoint: of its other files
OF_THE_RUN = ("../../gates.json",)  # seen from a checkpoint
REPEAT = "restore it from a backup, or delete the directory and run again"
ZIPPED = (".pt", ".pth")  # files that torch writes as archives with checksums of their own


def mapping_in(file: Path, advice: str = "restore it from a backup") -> dict[str, Any]:
    """The content of a JSON file that holds values by name.

    Args:
        file: the file.
        advice: what to do where it is damaged.

    Raises:
        UserError: naming the file, if it is missing, cannot be read or holds something else.
    """
    found = read_json(file)
    if not isinstance(found, dict):
        state = "is damaged" if file.exists() else "is missing"
        raise UserError(f"'{file}' {state}: expected JSON with values by name; {advice}.")
    return found


def run_record(file: Path) -> dict[str, Any] | None:
    """The record of the run in a directory; None if no run was started there.

    Args:
        file: that holds it.

    Raises:
        UserError: naming the file, if it is damaged.
    """
    if not file.exists():
        return None
    found = mapping_in(file, REPEAT)
    kinds = {"command": str, "complete": bool, "data": str}
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise UserError(f"'{file}' is damaged: its '{name}' is {found.get(name)!r:.40}; {REPEAT}.")
    return found


def write_checksums(checkpoint: Path) -> None:
    """Write the checksums of all files of a checkpoint into it, and of those of the run that it belongs to."""
    found = {name: one for name, one in checksums(checkpoint).items() if name != CHECKSUMS}
    found |= {name: sha256(checkpoint / name) for name in OF_THE_RUN if (checkpoint / name).is_file()}
    write_json(checkpoint / CHECKSUMS, found)


def check_checkpoint(checkpoint: Path) -> None:
    """Check the files of a checkpoint: against their checksums, or as far as that goes without them (earlier versions).

    Raises:
        ValueError: naming the file that is damaged, and what is wrong with it.
    """
    expected = read_json(checkpoint / CHECKSUMS)
    if isinstance(expected, dict):
        for name, digest in expected.items():
            file = checkpoint / name
            if not file.is_file() or sha256(file) != digest:
                raise ValueError(f"{name} {'was changed' if file.is_file() else 'is missing'}")
        return
    if (checkpoint / CHECKSUMS).exists():
        raise ValueError(f"{CHECKSUMS} cannot be read")
    _check_state(read_json(checkpoint / TRAINER_STATE))
    for file in sorted(checkpoint.iterdir()):
        try:
            _check_file(file)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file.name} cannot be read") from error


def _check_state(state: Any) -> None:
    if not isinstance(state, dict):
        raise ValueError(f"{TRAINER_STATE} cannot be read")
    kinds = {"global_step": int, "log_history": list, "stateful_callbacks": dict} if state else {}
    for name, kind in kinds.items():
        if not isinstance(state.get(name), kind):
            raise ValueError(f"{TRAINER_STATE} has no usable '{name}'")


def _check_file(file: Path) -> None:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    elif file.suffix in ZIPPED:
        with zipfile.ZipFile(file) as archive:
            if (broken := archive.testzip()) is not None:
                raise ValueError(broken)
    elif file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"))
