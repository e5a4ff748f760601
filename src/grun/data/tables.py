"""Tables of rows from files, folders and the hub; columns get their meaning in `grun.data.examples`."""

from __future__ import annotations

__all__ = ["Row", "read_rows"]

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.python_objects import PREFIX, python_object

LONGEST_CELL = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row: its cells by column name, and its place ("forget.jsonl, row 12")."""

    values: Mapping[str, Any]
    where: str


def read_rows(source: str) -> list[Row]:
    """All rows of a file, of a folder with a dataset, or of a hub id (`name:config:split`).

    Raises:
        UserError: if the source is missing, unreadable or broken; names the file and the row.
    """
    if (given := python_object(source)) is not None:
        return list(given)
    if source.startswith(PREFIX):
        raise UserError(f"{source} stands for rows that were given as Python objects; give them again, or name a file.")
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, source)
    looks_local = path.suffix.lower() in _FILE_READERS or source.startswith((".", "/", "~"))
    if looks_local and not Path(source.partition(":")[0]).expanduser().is_dir():
        raise UserError(f"{source}: no such file or folder. Check the path (working directory: {Path.cwd()}).")
    return _read_dataset(source)


def _read_file(path: Path, source: str) -> list[Row]:
    reader = _FILE_READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(_FILE_READERS))
        raise UserError(f"{source}: unknown kind of file '{path.suffix}', expected one of {known}.")
    try:
        if path.stat().st_size == 0:
            return []
        return reader(path, source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror or error}). Check its permissions.") from error


def _decode(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; save the file in UTF-8.") from error


def _read_json(path: Path, source: str) -> list[Row]:
    text = _decode(path, source)
    if text.lstrip().startswith("["):
        return _read_json_array(text, source)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): it also splits at U+2028 inside strings
        if line.strip():
            where = f"{source}, row {number}"
            rows.append(_json_row(_parse_line(line, where), where))
    return rows


def _read_json_array(text: str, source: str) -> list[Row]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source}, line {error.lineno}: broken JSON ({error.msg}, column {error.colno}); expected an array."
        ) from error
    return [_json_row(item, f"{source}, row {number}") for number, item in enumerate(items, 1)]


def _parse_line(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        what = f"broken JSON ({error.msg}, column {error.colno})"
        raise UserError(f"{where}: {what}; expected one JSON object per line.") from error


def _json_row(item: Any, where: str) -> Row:
    if not isinstance(item, dict):
        raise UserError(f"{where}: found a JSON {type(item).__name__}, expected an object with named columns.")
    return Row(item, where)


def _read_csv(path: Path, source: str) -> list[Row]:
    text = _decode(path, source)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return _csv_rows([record for record in reader if record], source)
    except csv.Error as error:
        raise UserError(f"{source}: broken CSV ({error}); check its quotes.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(records: list[list[str]], source: str) -> list[Row]:
    names = [name.strip() for name in records[0]] if records else []
    rows = []
    for number, cells in enumerate(records[1:], 2):
        where = f"{source}, row {number}"
        if len(cells) != len(names):
            raise UserError(f"{where}: {len(cells)} cells, expected {len(names)} as in the header; check its quotes.")
        rows.append(Row({name: _csv_cell(cell) for name, cell in zip(names, cells, strict=True)}, where))
    return rows


def _csv_cell(cell: str) -> Any:
    """The cell's text, or a list if it holds a JSON array of texts: CSV has no lists of its own."""
    if cell.startswith('["') and cell.endswith('"]'):
        try:
            return json.loads(cell)
        except json.JSONDecodeError:
            return cell
    return cell


def _read_parquet(path: Path, source: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{source}: not a readable Parquet file ({_first_line(error)}).") from error
    return [Row(values, f"{source}, row {number}") for number, values in enumerate(table.to_pylist(), 1)]


def _read_dataset(source: str) -> list[Row]:
    name, config, split = (source.split(":") + ["", ""])[:3]
    found = _load_dataset(name, config or None, source)
    if not split:
        split = "train" if "train" in found else next(iter(found))
        if len(found) > 1 and split != "train":
            raise UserError(f"{source}: which split? It has {', '.join(found)}. Write {name}:{config}:{split}.")
    if split not in found:
        raise UserError(f"{source}: no split '{split}'; it has {', '.join(found)}.")
    return [Row(values, f"{source}, row {number}") for number, values in enumerate(found[split], 1)]


def _load_dataset(name: str, config: str | None, source: str) -> Mapping[str, Any]:
    """All splits of a folder or hub id."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source}: reading a folder or hub id needs the package 'datasets'; install it.") from error
    folder = Path(name).expanduser()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))
        if (folder / "dataset_info.json").is_file():
            return {"train": datasets.load_from_disk(str(folder))}
        return datasets.load_dataset(str(folder) if folder.is_dir() else name, config)
    except Exception as error:  # many libraries may fail here, each with errors of its own
        raise UserError(
            f"{source}: neither a file nor a dataset that can be loaded ({type(error).__name__}: {_first_line(error)})."
        ) from error
    finally:
        datasets.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


_FILE_READERS: dict[str, Callable[[Path, str], list[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
