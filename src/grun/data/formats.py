"""Rows in the formats of files: JSON lines and arrays, CSV, Parquet."""

from __future__ import annotations

__all__ = ["KINDS", "Row", "kind_by_content", "rows_of"]

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grun.core.errors import UserError
from grun.data.content import decoded

LONGEST_CELL = 2**31 - 1
JSON_NAMES = {"list": "list", "str": "text", "int": "number", "float": "number", "bool": "true or false"}


@dataclass(frozen=True)
class Row:
    """One row: its cells by column name, and its place ("forget.jsonl, row 12")."""

    values: Mapping[str, Any]
    where: str


def rows_of(content: bytes, kind: str, source: str) -> list[Row]:
    """The rows of a file.

    Args:
        content: of the file.
        kind: ending of its name, one of `KINDS`.
        source: its name, for messages.

    Raises:
        UserError: if it is broken, or of another kind; names the row.
    """
    return KINDS[kind](content, source) if content.strip() else []


def kind_by_content(content: bytes) -> str:
    """The kind of a file whose name does not say it: Parquet, JSON where it begins with a bracket, else CSV."""
    if content.startswith(b"PAR1"):
        return ".parquet"
    return ".jsonl" if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else ".csv"


def _read_json(content: bytes, source: str) -> list[Row]:
    text = decoded(content, source)
    if text.lstrip().startswith("["):
        try:
            items = _parsed(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{source}, line {error.lineno}: broken JSON ({error.msg}, column {error.colno}); expected an array."
            ) from error
        except ValueError as error:
            raise UserError(f"{source}: {error}.") from error
        return [_json_row(item, f"{source}, row {number}") for number, item in enumerate(items, 1)]
    rows = []
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):  # not splitlines(): it also splits at U+2028
        if line.strip():
            where = f"{source}, row {number}"
            rows.append(_json_row(_parsed_line(line, where), where))
    return rows


def _parsed_line(line: str, where: str) -> Any:
    try:
        return _parsed(line)
    except json.JSONDecodeError as error:
        what = f"broken JSON ({error.msg}, column {error.colno})"
        raise UserError(f"{where}: {what}; expected one JSON object per line.") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from error


def _parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: in words, if it is nested too deeply, has a number of too many digits, or names a column twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_columns_once)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply; expected texts, and lists of texts") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has too many digits; write it as text, in quotes") from error
        raise


def _columns_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{_twice(name for name, _ in pairs)}; give every column once")
    return found


def _twice(names: Iterable[str]) -> str:
    """Words that name the first of the names that is there more than once."""
    counts = Counter(names)
    return f"the column '{next(name for name, count in counts.items() if count > 1)}' is there twice"


def _json_row(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        kind = "null" if item is None else JSON_NAMES[type(item).__name__]
        raise UserError(f"{where}: found a JSON {kind}, expected an object with named columns.")
    return Row(item, where)


def _read_csv(content: bytes, source: str) -> list[Row]:
    text = decoded(content, source)
    if text.lstrip()[:2] in ('{"', "[{"):
        raise UserError(f"{source}: is JSON, expected CSV; give its name the ending .jsonl.")
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = max(",;\t", key=header.count)
    limit = csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return _csv_rows([record for record in reader if record], source)
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}: broken CSV ({error}); check its quotes.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(records: Sequence[Sequence[str]], source: str) -> list[Row]:
    names = [name.strip() for name in records[0]] if records else []
    _check_once(names, source)
    rows = []
    for number, cells in enumerate(records[1:], 2):
        where = f"{source}, row {number}"
        if len(cells) != len(names):
            raise UserError(f"{where}: {len(cells)} cells, expected {len(names)} as in the header; check its quotes.")
        rows.append(Row({name: _csv_cell(cell) for name, cell in zip(names, cells, strict=True)}, where))
    return rows


def _check_once(names: Sequence[str], source: str) -> None:
    named = [name for name in names if name]  # spreadsheets may have empty columns
    if len(set(named)) < len(named):
        raise UserError(f"{source}: {_twice(named)}; give every column once.")


def _csv_cell(cell: str) -> Any:
    """The cell's text, or a list if it holds a JSON array of texts: CSV has no lists of its own."""
    if cell.startswith('["') and cell.endswith('"]'):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _read_parquet(content: bytes, source: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    if not content.startswith(b"PAR1"):
        text = decoded(content, source)  # says what it is instead, if that is known
        hint = "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
        raise UserError(f"{source}: not a readable Parquet file: it holds {hint}.")
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_once([str(name) for name in file.schema_arrow.names], source)
        table = file.read()
        table.validate(full=True)
        items = table.to_pylist()
    except UserError:
        raise
    except Exception as error:  # a damaged file may lead the reader to any of its own errors and of Python's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        words = "not a readable Parquet file: it was cut off, or is damaged"
        raise UserError(f"{source}: {words} ({reason:.200}). Copy it again.") from error
    return [Row(values, f"{source}, row {number}") for number, values in enumerate(items, 1)]


KINDS: dict[str, Callable[[bytes, str], list[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
