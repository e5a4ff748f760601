"""Rows about a topic as files that a person can read and correct."""

from __future__ import annotations

__all__ = ["DESCRIBED", "FOLDER", "FORGET", "NEIGHBOURS", "TopicRows", "keep_topic", "read_topic", "write_topic"]

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.atomic_files import atomic_directory, read_json, write_json, write_text
from grun.data.examples import checked_text
from grun.data.tables import read_rows

FOLDER = "topic"  # in the directory of a run
RECORD = "expansion.json"
FORGET, DESCRIBED, NEIGHBOURS = "forget.jsonl", "described.jsonl", "neighbours.jsonl"
Written = Mapping[str, Sequence[Mapping[str, str]]]


@dataclass(frozen=True)
class TopicRows:
    """Rows about a topic.

    Attributes:
        files: rows as they are written, by the name of the file.
        record: settings that they depend on, and how many rows came from where.
    """

    files: Written
    record: Mapping[str, Any]

    @property
    def forget(self) -> list[Example]:
        """Questions, and descriptions without the name."""
        return [_example(row, f"{file}, row {i}") for file, i, row in self._numbered(FORGET, DESCRIBED)]

    @property
    def neighbours(self) -> list[Example]:
        """Questions about neighbouring topics."""
        return [_example(row, f"{file}, row {i}") for file, i, row in self._numbered(NEIGHBOURS)]

    def _numbered(self, *names: str) -> list[tuple[str, int, Mapping[str, str]]]:
        return [(name, i, row) for name in names for i, row in enumerate(self.files[name], 1)]


def _example(row: Mapping[str, str], source: str) -> Example:
    return Example(row["question"], row.get("answer", "-"), subject=row.get("subject"), source=source)


def write_topic(rows: TopicRows, folder: Path) -> list[Path]:
    """Write the files of a topic, each as a whole; one without rows is left out.

    Returns:
        The files.
    """
    written = {folder / name: own for name, own in rows.files.items() if own}
    for file, own in written.items():
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own))
    return list(written)


def keep_topic(rows: TopicRows, run: Path) -> None:
    """Write the files of a topic into the directory of a run, all or none, unless they are there."""
    if not (run / FOLDER).exists():
        with atomic_directory(run / FOLDER) as folder:
            write_topic(rows, folder)
            write_json(folder / RECORD, rows.record)


def read_topic(run: Path, wanted: Mapping[str, Any] | None = None) -> TopicRows | None:
    """The rows in the directory of a run.

    Args:
        run: the directory.
        wanted: settings that the rows must have been written with; None for any.

    Returns:
        The rows; None if there are none, or none of these settings.

    Raises:
        UserError: for a row without a question.
    """
    record = read_json(run / FOLDER / RECORD)
    if not isinstance(record, dict) or (wanted is not None and record.get("settings") != dict(wanted)):
        return None
    files = [run / FOLDER / name for name in (FORGET, DESCRIBED, NEIGHBOURS)]
    found = TopicRows({file.name: _read(file) if file.exists() else [] for file in files}, record)
    if not found.files[FORGET]:
        raise UserError(f"'{files[0]}' is missing or empty; restore it, or delete '{files[0].parent}' and run again.")
    return found


def _read(file: Path) -> list[dict[str, str]]:
    """Rows as `write_topic` has written them."""
    rows = read_rows(str(file))
    for row in rows:
        for name, value in (row.values if row.values.get("question") else {"question": None}).items():
            try:
                checked_text(value, row, f"'{name}'")
            except UserError as error:
                raise UserError(f"{error} Give corrected rows as --forget rows.") from error
    return [dict(row.values) for row in rows]
