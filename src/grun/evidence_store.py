"""Evidence on disk: an interrupted evaluation goes on where it stopped, and another one can compare with it."""

from __future__ import annotations

__all__ = ["EvidenceStore"]

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grun.errors import UserError
from grun.files import write_text
from grun.records import Example, RowEvidence

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class EvidenceStore:
    """A folder with one file per split; a line per row, which names its row by a hash of prompt and answer.

    Attributes:
        folder: of one subject (a model, before or after).
    """

    folder: Path

    def read(self, split: str, examples: Sequence[Example]) -> tuple[RowEvidence, ...] | None:
        """Evidence of a split; None if there is none.

        Raises:
            UserError: if it is of other rows, naming the first.
        """
        file = self.folder / f"{split}{SUFFIX}"
        if not file.is_file():
            return None
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if len(lines) != len(examples):
            raise UserError(
                f"'{file}' holds {len(lines)} rows, but split '{split}' has {len(examples)}: it is of other rows."
            )
        for number, (line, example) in enumerate(zip(lines, examples, strict=True), 1):
            if line["row"] != _key(example):
                raise UserError(f"'{file}', row {number}: it is of another row than '{example.prompt[:60]}'.")
        return tuple(_row(line, example) for line, example in zip(lines, examples, strict=True))

    def write(self, split: str, rows: Sequence[RowEvidence]) -> None:
        """Keep the evidence of a split, all of it or nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / f"{split}{SUFFIX}", "".join(json.dumps(_line(row)) + "\n" for row in rows))


def _key(example: Example) -> str:
    content = json.dumps([example.turns, example.prompt, example.answer], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _line(row: RowEvidence) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "example"}
    return {"row": _key(row.example), **values}


def _row(line: dict[str, Any], example: Example) -> RowEvidence:
    known = {f.name for f in fields(RowEvidence)}
    return RowEvidence(example=example, **{name: _frozen(value) for name, value in line.items() if name in known})


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
