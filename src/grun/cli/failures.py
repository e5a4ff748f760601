"""What a command that failed says, in one line, and its exit code."""

from __future__ import annotations

__all__ = ["DIVERGED", "FAILED", "WRONG_INPUT", "kind_of", "told"]

import sys
from pathlib import Path
from typing import Any

import typer

from grun.core.errors import NotWritten, RunsFailed, TrainingDiverged, UserError
from grun.core.storage.directories import disk

FAILED, WRONG_INPUT, DIVERGED = 1, 2, 3
UsageError: Any = typer.BadParameter.__base__  # typer brings its own copy of click, whose names are private
KINDS = {FAILED: "failed", WRONG_INPUT: "wrong input", DIVERGED: "diverged"}
CODES = ((UserError, WRONG_INPUT), (TrainingDiverged, DIVERGED), ((RunsFailed, NotWritten), FAILED))


def kind_of(code: int) -> str:
    """What an exit code means, for the JSON document of a command that failed."""
    return KINDS[code]


def told(error: Exception) -> tuple[str, int] | None:
    """The message of an error for people, and the exit code; None for an error of the program itself.

    Args:
        error: that ended a command.
    """
    _end_progress_bars()
    if isinstance(error, UsageError):
        return str(error.format_message()), WRONG_INPUT
    for kind, code in CODES:
        if isinstance(error, kind):
            return str(error), code
    if (reason := disk.reason_of(error)) is not None:  # outside of every directory that a command has claimed
        named = getattr(error, "filename", None)
        where = Path(str(named)).parent if named else Path.cwd()
        return str(
            disk.not_written(reason, where, "Make room and run the same command again.", "the directory")
        ), FAILED
    return None


def _end_progress_bars() -> None:
    """End the lines of progress bars that an error has left open, so that the message stands on a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
