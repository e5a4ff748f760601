"""Checkpoints of a trainer: which are complete, and removal of those that are not, or no longer needed."""

from __future__ import annotations

__all__ = ["complete_checkpoints", "remove_checkpoint", "remove_checkpoints", "remove_unfinished"]

import re
from contextlib import suppress
from pathlib import Path

from grun.core.storage.directories.layout import CHECKPOINTS, TRAINER_STATE, Layout
from grun.core.storage.replacing import delete, is_folder


def complete_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run by their steps, the newest last."""
    return [folder for folder in _folders(run) if (folder / TRAINER_STATE).exists()]


def remove_unfinished(run: Path) -> None:
    """Delete checkpoints that were not written to the end; what the trainer did not write stays."""
    for folder in _folders(run):
        if not (folder / TRAINER_STATE).exists():
            remove_checkpoint(run, folder)


def remove_checkpoints(run: Path) -> None:
    """Delete all checkpoints of a run; what the trainer did not write stays."""
    remove_checkpoint(run, run / CHECKPOINTS)


def _folders(run: Path) -> list[Path]:
    found = [f for f in (run / CHECKPOINTS).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    return sorted((f for f in found if f.is_dir()), key=lambda folder: int(folder.name.rpartition("-")[2]))


def remove_checkpoint(run: Path, folder: Path) -> None:
    """Delete what the trainer wrote below a folder of a run; several processes may do so at once."""
    if not is_folder(run / CHECKPOINTS) or not is_folder(folder):
        return
    with suppress(OSError):
        below = list(folder.rglob("*"))
        own = [f for f in below if not f.is_symlink() and Layout.is_unlisted(f.relative_to(run).as_posix())]
        delete([file for file in own if file.is_file()], run)
        for empty in sorted((folder, *filter(is_folder, below)), key=lambda f: len(f.parts), reverse=True):
            with suppress(OSError):
                empty.rmdir()
