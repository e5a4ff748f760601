"""Evidence on disk: an interrupted evaluation resumes from it, and other evaluations compare with it."""

from __future__ import annotations

__all__ = ["EvidenceStore", "read_or_made", "row_key"]

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from grun.core.distributed import is_main, wait
from grun.core.errors import UserError
from grun.core.records import Begun, Example, RowEvidence
from grun.core.storage.atomic_files import write_text
from grun.core.storage.cache import keep, read_kept

logger = logging.getLogger("grun")
SUFFIX = ".jsonl"
DIFFERENT_DATA = "it was computed on different data; use a new --output, or a --retain-log of the same rows."


class Damaged(ValueError):
    """A file of evidence cannot be read."""


@dataclass(frozen=True)
class EvidenceStore:
    """A folder with one JSON Lines file per split; each line holds the evidence and the hash of one row.

    Attributes:
        folder: evidence of one subject (the model before or after unlearning) of one evaluation.
        cache: evidence of the same subject from all evaluations; None reads and writes no cache.
        is_foreign: the folder is that of another evaluation; evidence that cannot be read there is an error.
    """

    folder: Path
    cache: Path | None = None
    is_foreign: bool = False

    def read(self, split: str, examples: Sequence[Example], asked: str = "") -> tuple[RowEvidence, ...] | None:
        """Evidence of a split; None if there is none.

        Args:
            split: name of the split.
            examples: its rows.
            asked: text that names the measured quantities; evidence in the cache is found by it.

        Raises:
            UserError: if the folder has evidence of different rows under that name, with the first of them; or damaged
                evidence of another evaluation. One's own counts as missing then.
        """
        file = self.folder / f"{split}{SUFFIX}"
        try:
            if file.is_file():
                return _read(file, split, examples)
        except Damaged as error:
            if self.is_foreign:
                raise UserError(f"{error}; copy it again, or evaluate that model again.") from error
            logger.warning("%s; the split is measured again.", error)
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


def read_or_made(
    store: EvidenceStore | None,
    split: str,
    examples: Sequence[Example],
    asked: str,
    made: Callable[[], Iterable[RowEvidence]],
) -> tuple[RowEvidence, ...]:
    """Evidence of a split from a store, or what `made` gives, which is in the store afterwards.

    All processes of a job call it together; each makes all of the evidence, and one writes it.
    """
    found = None if store is None else store.read(split, examples, asked)
    rows = tuple(made()) if found is None else found
    if store is not None and is_main():
        store.write(split, rows, asked)
    wait()
    return rows


def _read(file: Path, split: str, examples: Sequence[Example]) -> tuple[RowEvidence, ...]:
    """The evidence in a file.

    Raises:
        UserError: if it is of other rows.
        Damaged: if it cannot be read.
    """
    lines = _lines(file)
    if len(lines) != len(examples):
        raise UserError(f"'{file}' holds {len(lines)} rows, but split '{split}' has {len(examples)}; {DIFFERENT_DATA}")
    for number, (line, example) in enumerate(zip(lines, examples, strict=True), 1):
        if line["row"] != row_key(example):
            expected = f"expected '{example.prompt[:60]}', found another row"
            raise UserError(f"'{file}', row {number}: {expected}; {DIFFERENT_DATA}")
    return tuple(_row(line, example) for line, example in zip(lines, examples, strict=True))


def _lines(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"'{file}' cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if text and not text.endswith("\n"):
        raise Damaged(f"'{file}' is damaged: it was cut off")
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise Damaged(f"'{file}' is damaged: row {number} is no JSON") from error
        if (wrong := _wrong_field(found[-1])) is not None:
            raise Damaged(f"'{file}' is damaged: row {number} has no usable '{wrong}'")
    return found


def _wrong_field(line: Any) -> str | None:
    """The first entry of a line that is not what `_line` writes; None if there is none."""
    if not isinstance(line, dict) or not isinstance(line.get("row"), str):
        return "row"
    for name, is_usable in FIELDS.items():
        if name not in line and name in ADDED:
            continue
        if not is_usable(line.get(name)):
            return name
    counts = {len(line[name]) for name in ("token_is_argmax", "token_z") if line.get(name)}
    return "token_logps" if counts - {len(line["token_logps"])} else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


FIELDS: dict[str, Callable[[Any], bool]] = {
    "token_logps": _are_numbers,
    "generated": _or_none(lambda value: isinstance(value, str)),
    "gold_start": _or_none(lambda value: isinstance(value, str)),
    "gate_logits": _or_none(_are_numbers),
    "gate_values": _or_none(_are_numbers),
    "gate_thresholds": _or_none(_are_numbers),
    "truncated": lambda value: isinstance(value, bool),
    "token_is_argmax": lambda value: isinstance(value, list) and all(isinstance(one, bool) for one in value),
    "token_z": _are_numbers,
    "paraphrased_logps": _are_numbers,
    "perturbed_logps": lambda value: isinstance(value, list) and all(map(_are_numbers, value)),
    "generated_base_logps": _or_none(_are_numbers),
    "gradient_norm": _or_none(_is_number),
    "refused": _or_none(lambda value: isinstance(value, str)),
}
ADDED = ("gate_thresholds", "refused")  # entries that earlier versions did not write


def row_key(example: Example) -> str:
    """Hash of a row's prompt and answer."""
    begun = [example.begin] if isinstance(example, Begun) else []
    content = json.dumps([example.turns, example.prompt, *begun, example.answer], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _line(row: RowEvidence) -> dict[str, Any]:
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "example"}
    for name in ADDED:
        if values[name] is None:
            del values[name]  # a file of a version that did not know it stays the same
    return {"row": row_key(row.example), **values}


def _row(line: dict[str, Any], example: Example) -> RowEvidence:
    known = {f.name for f in fields(RowEvidence)}
    return RowEvidence(example=example, **{name: _frozen(value) for name, value in line.items() if name in known})


def _frozen(value: Any) -> Any:
    """JSON lists as tuples."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
