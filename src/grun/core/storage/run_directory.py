"""Run directories: settings, records and results of a job; a kill at any moment loses nothing."""

from __future__ import annotations

__all__ = ["CHECKPOINTS", "CONFIG", "FEATURES", "RunDirectory", "holds_run", "is_left_over", "settings_difference"]

import dataclasses
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grun.core.config.jobs import JobConfig
from grun.core.config.schema import flag
from grun.core.errors import UserError
from grun.core.process.threads import keep_threads_of
from grun.core.provenance import provenance
from grun.core.python_objects import PIPES
from grun.core.storage import atomic_files as files
from grun.core.storage.claims import check_writable
from grun.core.storage.directories import disk, written
from grun.core.storage.directories.layout import CHECKPOINTS, CONFIG, FEATURES, LOCK, RECORD
from grun.core.storage.replacing import check_place, delete, files_of_run, given_paths, is_folder, open_list
from grun.core.storage.stored_records import REPEAT, check_checkpoint, mapping_in, run_record
from grun.core.storage.unfinished import complete_checkpoints, remove_checkpoint, remove_checkpoints, remove_unfinished

logger = logging.getLogger("grun")
OLDEST = {"output", "seed"}  # settings that every `settings.json` names
# Settings that do not change what a run computes; the content of the data is compared.
WHEREABOUTS = ("output", "overwrite", "device", "cache", "cache_dir", "data_dir")


@dataclass
class RunDirectory:
    """The directory of one run.

    It holds `settings.json` (the resolved settings, which `--config` reads again), `run.json` (command, fingerprint of
    the data, provenance, and whether the run is complete), `checkpoints/` until the run is complete, the files of the job, and
    the list of what was written (see `written`).

    Attributes:
        path: the directory.
        record: content of `run.json`, now or once the run was started.
        config: content of `settings.json`, likewise.
        is_complete: True if the same run was finished here before.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    is_complete: bool = False
    _replaced: str = ""  # command of the run that `start` deletes
    _inputs: Mapping[str, Path] = field(default_factory=dict)
    _intact: Path | None = None  # the checkpoint that was checked

    @classmethod
    def open(
        cls,
        path: str | Path,
        config: JobConfig,
        command: str,
        overwrite: bool = False,
        *,
        data: str | None = "",
        usual: JobConfig | None = None,
    ) -> RunDirectory:
        """Look at a directory without changing results: it must be new, empty, or hold this very run (which is then resumed).

        Args:
            path: directory of the run.
            config: the resolved settings.
            command: name of the job ("unlearn").
            overwrite: another run may be there; `start` deletes what it has written.
            data: fingerprint of the data that the job reads; None if it is not known yet, and any will do.
            usual: see `settings_difference`.

        Raises:
            UserError: if something else is there, nothing can be written there, or what `start` would delete was not all
                written by grun, was changed, or is needed.
        """
        where = Path(path).expanduser()
        check_writable(where)
        settings = _kept(config)
        keep_threads_of({})
        run = cls(where, {"command": command, "data": data, "complete": False, **provenance()}, settings)
        if not where.exists() or is_left_over(where, settings):
            return run
        record = run_record(where / RECORD)
        if record is None:
            raise UserError(f"--output '{where}' is not empty and holds no run of grun; name another directory.")
        if overwrite:
            run._replaced, run._inputs = record["command"], given_paths(config)
            run._to_delete()
            return run
        difference = _difference(record, mapping_in(where / CONFIG, REPEAT), config, run.record, usual)
        if difference:
            raise UserError(
                f"--output '{where}' holds another run ({difference}); name another directory, or give --overwrite to "
                "delete it."
            )
        run.record = record
        run.is_complete = run.record["complete"]
        keep_threads_of(run.record)
        if run.is_complete:
            run._tidy()  # a kill may have come in between
        return run

    def _to_delete(self) -> list[Path]:
        """The files of the run that is replaced, in the order of their deletion."""
        check_place(self.path, self._inputs)
        return files_of_run(self.path, self._replaced)

    def start(self) -> None:
        """Create the directory, or continue the run in it.

        Raises:
            UserError: if it cannot be written, or what is to be deleted is no longer only grun's.
            NotWritten: if the disk is full.
        """
        try:
            if self._replaced:
                delete(self._to_delete(), self.path)
                self._replaced = ""
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / RECORD).exists():
                written.begin(self.path, new=True)
                self.record |= provenance()  # of the number of threads, too, which the loaded model decides on
                self.write_json(CONFIG, self.config)
                self.write_json(RECORD, self.record)
            else:
                open_list(self.path, self.record["command"], new=False)
        except OSError as error:
            if reason := disk.reason_of(error):
                raise disk.not_written(reason, self.path, "Nothing was begun.") from error
            raise UserError(f"--output '{self.path}' cannot be written: {error.strerror}.") from error

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that can be read; half-written and damaged ones are deleted, the latter with a warning."""
        remove_unfinished(self.path)
        for folder in reversed(complete_checkpoints(self.path)):
            if folder == self._intact:
                return folder
            try:
                check_checkpoint(folder)
            except ValueError as error:
                logger.warning("%s is damaged (%s), and deleted: an earlier state is taken.", folder, error)
                remove_checkpoint(self.path, folder)
                continue
            self._intact = folder
            return folder
        return None

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run, all of it or nothing."""
        files.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, all of it or nothing."""
        files.write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """A JSON file that the run wrote earlier, or None."""
        return files.read_json(self.path / name)

    def mark_complete(self, seconds: float) -> None:
        """Record that everything is written, and delete the checkpoints and what killed processes were writing.

        Args:
            seconds: duration of the job, since it was last interrupted.
        """
        self.record |= {"complete": True, "seconds": round(seconds, 2)}
        self.write_json(RECORD, self.record)
        self.is_complete = True
        self._tidy()

    def _tidy(self) -> None:
        """Delete what only an unfinished run needs."""
        remove_checkpoints(self.path)
        files.remove_leftovers(self.path)


def holds_run(path: Path, config: JobConfig, command: str, *, data: str = "", usual: JobConfig | None = None) -> bool:
    """True if a directory holds this very run, complete or not; arguments as of `RunDirectory.open`."""
    record = run_record(path / RECORD)
    if record is None:
        return False
    settings = mapping_in(path / CONFIG, REPEAT)
    return not _difference(record, settings, config, {"command": command, "data": data}, usual)


def settings_difference(was: Mapping[str, Any], now: JobConfig, usual: JobConfig | None = None) -> str:
    """The first setting that changes what a run computes and differs, in words; empty if there is none.

    Args:
        was: content of a run's `settings.json`. A version of the package that did not have a setting yet does not name it.
        now: the settings that are wanted.
        usual: values of settings that `was` does not name; None for the defaults of the class.
    """
    default = _kept(type(now)() if usual is None else usual)
    for name, wanted in _kept(now).items():
        before = was.get(name, default[name])
        if name not in WHEREABOUTS and _named(before) != _named(wanted):
            return f"{flag(name)} was {before}, now {wanted}"
    return ""


def _named(value: Any) -> Any:
    """A setting in which all pipes have one name: their content counts, and a shell gives each another number."""
    if isinstance(value, list):
        return [_named(item) for item in value]
    return re.sub(rf"(^|=)({PIPES})$", r"\1-", value) if isinstance(value, str) else value


def _kept(config: JobConfig) -> dict[str, Any]:
    """The settings as `settings.json` holds them."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "overwrite"}
    kept: dict[str, Any] = json.loads(json.dumps(settings))
    return kept


def is_left_over(where: Path, settings: Mapping[str, Any] | None = None) -> bool:
    """True if a kill before the record was written, or after it was deleted, may have left everything that is there.

    Args:
        where: the directory.
        settings: those of the job that is to begin, as `settings.json` holds them; None if it keeps none.
    """
    listed = written.read_list(where) or {}

    def is_leftover(entry: Path) -> bool:
        if is_folder(entry):
            return all(map(is_leftover, entry.iterdir()))
        name = entry.relative_to(where).as_posix()
        if name == CONFIG and settings is not None and _may_be_ours(entry, settings):
            return True
        unfinished = (files.is_unfinished(entry, part) for part in (CONFIG, RECORD))
        known = name in (LOCK, written.LIST) or any(unfinished)
        return known or (not entry.is_symlink() and any(state.is_in(entry) for state in listed.get(name, ())))

    return not (where / RECORD).exists() and all(map(is_leftover, where.iterdir()))


def _may_be_ours(file: Path, settings: Mapping[str, Any]) -> bool:
    """True for settings of this or an older version, which may lack some; those of another program name others."""
    found = files.read_json(file)
    return isinstance(found, dict) and OLDEST <= found.keys() <= settings.keys()


def _difference(
    found: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: JobConfig,
    wanted: Mapping[str, Any],
    usual: JobConfig | None,
) -> str:
    """The difference between the run that is there and the one that is wanted, in words; empty if they are the same.

    Provenance does not count: another version or machine may go on with a run.

    Args:
        found: record of the run that is there.
        settings: its settings.
        config: settings that are wanted.
        wanted: record with the command and the data that are wanted.
        usual: see `settings_difference`.
    """
    if found.get("command") != wanted["command"]:
        return f"grun {found.get('command')}"
    if changed := settings_difference(settings, config, usual):
        return changed
    return "" if wanted["data"] in (None, found.get("data")) else "the content of its data differs"
