"""Evidence on disk: an interrupted evaluation resumes from it, and other evaluations compare with it."""

from __future__ import annotations

__all__ = ["EvidenceStore", "row_key"]

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.records import Example, RowEvidence
from grun.core.storage.atomic_files import write_text
from grun.core.storage.cache import keep, read_kept

SUFFIX = ".jsonl"
UNREADABLE = (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError)
DIFFERENT_DATA = "it was computed on different data; use a new --output, or a --retain-log of the same rows."


@dataclass(frozen=True)
class EvidenceStore:
    """A folder with one JSON Lines file per split; each line holds the evidence and the hash of one row.

    Attributes:
        folder: evidence of one subject (the model before or after unlearning) of one evaluation.
        cache: evidence of the same subject from all evaluations; None reads and writes no cache.
    """

    folder: Path
    cache: Path | None = None

    def read(self, split: str, examples: Sequence[Example], asked: str = "") -> tuple[RowEvidence, ...] | None:
        """Evidence of a split; None if there is none.

        Args:
            split: name of the split.
            examples: its rows.
            asked: text that names the measured quantities; evidence in the cache is found by it.

        Raises:
            UserError: if the folder has evidence of different rows under that name; names the first. If it is damaged.
        """
        file = self.folder / f"{split}{SUFFIX}"
        if file.is_file():
            try:
                return _read(file, split, examples)
            except UNREADABLE as error:
                raise UserError(f"'{file}' is damaged; delete it, and it is measured again.") from error
        cached = self._cached(examples, asked)
        return None if cached is None else read_kept(cached, lambda file: _read(file, split, examples))

    def write(self, split: str, rows: Sequence[RowEvidence], asked: str = "") -> None:
        """Write the evidence of a split, all of it or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(_line(row)) + "\n" for row in rows)
        write_text(self.folder / f"{split}{SUFFIX}", text)
        cached = self._cached([row.example for row in rows], asked)
        if (
            cached is not None
            and read_kept(cached, lambda file: _read(file, split, [row.example for row in rows])) is None
        ):
            keep(cached, lambda file: write_text(file, text))

    def _cached(self, examples: Sequence[Example], asked: str) -> Path | None:
        """The file in the cache, named by a hash of the rows and of `asked`."""
        if self.cache is None:
            return None
        content = json.dumps([asked, [dataclasses.asdict(row) | {"source": ""} for row in examples]], sort_keys=True)
        return self.cache / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}{SUFFIX}"


def _read(file: Path, split: str, examples: Sequence[Example]) -> tuple[RowEvidence, ...]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    if len(lines) != len(examples):
        raise UserError(f"'{file}' holds {len(lines)} rows, but split '{split}' has {len(examples)}; {DIFFERENT_DATA}")
    for number, (line, example) in enumerate(zip(lines, examples, strict=True), 1):
        if line["row"] != row_key(example):
            expected = f"expected '{example.prompt[:60]}', found another row"
            raise UserError(f"'{file}', row {number}: {expected}; {DIFFERENT_DATA}")
    return tuple(_row(line, example) for line, example in zip(lines, examples, strict=True))


def row_key(example: Example) -> str:
    """Hash of a row's prompt and answer."""
    content = json.dumps([example.turns, example.prompt, example.answer], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _line(row: RowEvidence) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "example"}
    if row.gate_thresholds is None:
        del values["gate_thresholds"]  # a file of a version that did not know it stays the same
    return {"row": row_key(row.example), **values}


def _row(line: dict[str, Any], example: Example) -> RowEvidence:
    known = {f.name for f in fields(RowEvidence)}
    return RowEvidence(example=example, **{name: _frozen(value) for name, value in line.items() if name in known})


def _frozen(value: Any) -> Any:
    """JSON lists as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
