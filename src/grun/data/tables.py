"""Tables of rows from files, pipes, folders and the hub; columns get their meaning in `grun.data.examples`."""

from __future__ import annotations

__all__ = ["Row", "read_rows"]

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grun.core.errors import UserError
from grun.core.hub import check_repository, nearest_folder
from grun.core.python_objects import PREFIX, is_pipe, python_object
from grun.data.content import read_content, state_of
from grun.data.formats import KINDS, Row, kind_by_content, rows_of

MOST_ENTRIES = 10_000  # files and folders below a folder with rows


def read_rows(source: str) -> list[Row]:
    """All rows of a file or pipe, of a folder with a dataset, or of a hub id (`name:config:split`).

    Raises:
        UserError: if the source is missing, unreadable or broken; names the file and the row.
    """
    if (given := python_object(source)) is not None:
        return list(given)
    if source.startswith(PREFIX):
        raise UserError(f"{source} stands for rows that were given as Python objects; give them again, or name a file.")
    if not source.strip():
        raise UserError("the name of a file with rows is empty; name a file, a folder or a hub id.")
    state = state_of(source)
    if state is not None and not stat.S_ISDIR(state.st_mode):
        content = read_content(source)
        return rows_of(content, _kind(source, content), source)
    if state is not None:
        return _read_dataset(source, source, "", "")
    name, config, split = (source.split(":") + ["", ""])[:3]
    folder = state_of(name)
    is_folder = folder is not None and stat.S_ISDIR(folder.st_mode)
    looks_local = Path(source).suffix.lower() in KINDS or source.startswith((".", "/", "~"))
    if looks_local and not is_folder:
        where = f"working directory: {Path.cwd()}"
        raise UserError(f"{source}: no such file or folder. Check the path ({where}).{nearest_folder(name)}")
    return _read_dataset(source, name, config, split)


def _kind(source: str, content: bytes) -> str:
    """The kind of a file by the ending of its name, or by its content where there is no ending."""
    suffix = "" if is_pipe(source) else Path(source).suffix.lower()
    if suffix in KINDS:
        return suffix
    if suffix:
        raise UserError(f"{source}: unknown kind of file '{suffix}', expected one of {', '.join(sorted(KINDS))}.")
    return kind_by_content(content)


def _read_dataset(source: str, name: str, config: str, split: str) -> list[Row]:
    found = _load_dataset(name, config or None, source)
    if not split:
        split = "train" if "train" in found else next(iter(found), "")
        if len(found) > 1 and split != "train":
            raise UserError(f"{source}: which split? It has {', '.join(found)}. Write {name}:{config}:{split}.")
    if split not in found:
        raise UserError(f"{source}: no split '{split}'; it has {', '.join(found) or 'none'}.")
    try:
        found[split].data.validate(full=True)  # a damaged table may lead readers out of their memory
        return [Row(values, f"{source}, row {number}") for number, values in enumerate(found[split], 1)]
    except Exception as error:  # rows are decoded when they are looked at
        raise UserError(f"{source}: its rows cannot be read, the dataset is damaged ({_first_line(error)}).") from error


def _load_dataset(name: str, config: str | None, source: str) -> Mapping[str, Any]:
    """All splits of a folder or hub id."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source}: reading a folder or hub id needs the package 'datasets'; install it.") from error
    from huggingface_hub import is_offline_mode  # where it is on, libraries do not wait for the hub

    folder = Path(name).expanduser()
    is_online = folder.is_dir() or is_offline_mode() or check_repository(name, source, "dataset")
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder), keep_in_memory=True)
        if (folder / "dataset_info.json").is_file():
            return {"train": datasets.load_from_disk(str(folder), keep_in_memory=True)}
        if folder.is_dir():
            _check_extent(folder, source)
        with _offline(not is_online):
            return datasets.load_dataset(str(folder.resolve()) if folder.is_dir() else name, config)
    except UserError:
        raise
    except Exception as error:  # many libraries may fail here, each with errors of its own
        raise UserError(
            f"{source}: neither a file nor a dataset that can be loaded ({type(error).__name__}: {_first_line(error)})."
            f"{'' if folder.is_dir() else nearest_folder(name)}"
        ) from error
    finally:
        datasets.enable_progress_bars()


def _check_extent(folder: Path, source: str) -> None:
    """Refuse a folder that holds much else, such as a home: the library would look through all of it."""
    entries = 0
    for _, folders, files in os.walk(folder):
        entries += len(folders) + len(files)
        if entries > MOST_ENTRIES:
            raise UserError(
                f"{source}: is a folder with more than {MOST_ENTRIES:,} files and folders in it, expected one that holds "
                "rows only; give the file or the folder that they are in."
            )


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Context in which libraries look into the cache of the hub only, if that is wanted."""
    import datasets.config
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
