"""Run directories: settings, records and results of a job; a kill at any moment loses nothing."""

from __future__ import annotations

__all__ = ["FEATURES", "RunDirectory", "holds_run", "settings_difference"]

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grun.core.config.jobs import JobConfig
from grun.core.config.schema import flag
from grun.core.errors import UserError
from grun.core.provenance import provenance
from grun.core.storage import atomic_files as files

RECORD = "run.json"
CONFIG = "settings.json"
CHECKPOINTS = "checkpoints"
FEATURES = "gate_features.safetensors"  # that gates read of the forget prompts, with --keep-features
OLDEST = {"output", "seed"}  # settings that every `settings.json` names
WHEREABOUTS = ("output", "overwrite", "device", "cache", "cache_dir")  # settings that do not change what a run computes


@dataclass
class RunDirectory:
    """The directory of one run.

    It holds `settings.json` (the resolved settings, which `--config` reads again), `run.json` (command, fingerprint of
    the data, provenance, and whether the run is complete), `checkpoints/` until the run is complete, and the files of the job.

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
    _replaced: bool = False

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
            overwrite: another run may be there; `start` deletes it.
            data: fingerprint of the data that the job reads; None if it is not known yet, and any will do.
            usual: see `settings_difference`.

        Raises:
            UserError: if something else is there, or nothing can be written there.
        """
        where = Path(path).expanduser()
        _check_writable(where)
        settings = _kept(config)
        run = cls(where, {"command": command, "data": data, "complete": False, **provenance()}, settings)
        if not where.exists() or all(_is_leftover(file, settings) for file in where.iterdir()):
            return run
        found = files.read_json(where / RECORD)
        if found is None:
            raise UserError(f"--output '{where}' is not empty and holds no run of grun; name another directory.")
        if overwrite:
            run._replaced = True
            return run
        difference = _difference(where, found, config, run.record, usual)
        if difference:
            raise UserError(
                f"--output '{where}' holds another run ({difference}); name another directory, or give --overwrite to "
                "delete it."
            )
        run.record, run.is_complete = found, bool(found["complete"])
        if run.is_complete:
            run._tidy()  # a kill may have come in between
        return run

    def start(self) -> None:
        """Create the directory, or continue the run in it.

        Raises:
            UserError: if it cannot be written.
        """
        try:
            if self._replaced:
                shutil.rmtree(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / RECORD).exists():
                self.write_json(CONFIG, self.config)
                self.write_json(RECORD, self.record)
        except OSError as error:
            raise UserError(f"--output '{self.path}' cannot be written: {error.strerror}.") from error

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint; half-written ones are deleted."""
        complete: list[tuple[int, Path]] = []
        for folder in (self.path / CHECKPOINTS).glob("checkpoint-*"):
            if files.read_json(folder / "trainer_state.json") is None:  # the file that is written last
                shutil.rmtree(folder, ignore_errors=True)  # several processes may look at once
            else:
                complete.append((int(folder.name.rpartition("-")[2]), folder))
        return max(complete)[1] if complete else None

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
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        files.remove_unfinished(self.path)


def holds_run(path: Path, config: JobConfig, command: str, *, data: str = "", usual: JobConfig | None = None) -> bool:
    """True if a directory holds this very run, complete or not; arguments as of `RunDirectory.open`."""
    found = files.read_json(path / RECORD)
    return isinstance(found, dict) and not _difference(path, found, config, {"command": command, "data": data}, usual)


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
        if name not in WHEREABOUTS and before != wanted:
            return f"{flag(name)} was {before}, now {wanted}"
    return ""


def _kept(config: JobConfig) -> dict[str, Any]:
    """The settings as `settings.json` holds them."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "overwrite"}
    kept: dict[str, Any] = json.loads(json.dumps(settings))
    return kept


def _is_leftover(file: Path, settings: Mapping[str, Any]) -> bool:
    """True if a kill within `start`, which writes the record last, may have left this file.

    A `settings.json` of an older version may lack settings; one of another program names others.
    """
    if file.name == CONFIG:
        found = files.read_json(file)
        return isinstance(found, dict) and OLDEST <= found.keys() <= settings.keys()
    return any(files.is_unfinished(file, name) for name in (CONFIG, RECORD))


def _check_writable(where: Path) -> None:
    if where.exists() and not where.is_dir():
        raise UserError(f"--output '{where}' is a file, expected a directory; name another one.")
    existing = next(p for p in (where, *where.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output '{where}' cannot be written: no permission to write in '{existing}'.")


def _difference(
    path: Path, found: Mapping[str, Any], config: JobConfig, wanted: Mapping[str, Any], usual: JobConfig | None
) -> str:
    """The difference between the run that is there and the one that is wanted, in words; empty if they are the same.

    Provenance does not count: another version or machine may go on with a run.

    Args:
        path: of the run that is there.
        found: its record.
        config: settings that are wanted.
        wanted: record with the command and the data that are wanted.
        usual: see `settings_difference`.
    """
    if found.get("command") != wanted["command"]:
        return f"grun {found.get('command')}"
    if changed := settings_difference(files.read_json(path / CONFIG) or {}, config, usual):
        return changed
    return "" if wanted["data"] in (None, found.get("data")) else "the content of its data differs"
