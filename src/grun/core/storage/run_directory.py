"""Run directories: what a job was asked to do, what it used and found; a kill at any moment loses nothing."""

from __future__ import annotations

__all__ = ["FEATURES", "RunDirectory", "settings_difference"]

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import grun
from grun.core.config.jobs import JobConfig
from grun.core.config.schema import flag
from grun.core.errors import UserError
from grun.core.storage import atomic_files as files

RECORD = "run.json"
CONFIG = "settings.json"
CHECKPOINTS = "checkpoints"
FEATURES = "gate_features.safetensors"  # what gates read of the forget prompts, if it was to be kept
PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "datasets")
WHEREABOUTS = ("output", "overwrite", "device", "cache", "cache_dir")  # settings that do not change what a run computes


@dataclass
class RunDirectory:
    """The directory of one run.

    It holds `settings.json` (the resolved settings, which `--config` reads again), `run.json` (command, versions, fingerprint
    of the data, whether the run is complete), `checkpoints/` until the run is complete, and what the job writes.

    Attributes:
        path: the directory.
        record: what `run.json` holds, or will hold once the run was started.
        config: what `settings.json` holds, or will hold.
        is_complete: the same run was finished here before.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    is_complete: bool = False
    _replaced: bool = False

    @classmethod
    def open(
        cls, path: str | Path, config: JobConfig, command: str, overwrite: bool = False, *, data: str = ""
    ) -> RunDirectory:
        """Look at a directory without changing it: it must be new, empty, or hold this very run (which is then resumed).

        Args:
            path: where the run is, or is to be.
            config: the resolved settings.
            command: name of the job ("unlearn").
            overwrite: another run may be there; `start` deletes it.
            data: fingerprint of the data that the job reads.

        Raises:
            UserError: if something else is there, or nothing can be written there.
        """
        where = Path(path).expanduser()
        _check_writable(where)
        settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "overwrite"}
        run = cls(where, {"command": command, "data": data, "complete": False, **_versions()}, settings)
        if not where.exists() or all(_is_leftover(file, settings) for file in where.iterdir()):
            return run
        found = files.read_json(where / RECORD)
        if found is None:
            raise UserError(f"--output '{where}' is not empty and holds no run of grun; name another directory.")
        if overwrite:
            run._replaced = True
            return run
        difference = _difference(found, files.read_json(where / CONFIG) or {}, run)
        if difference:
            raise UserError(
                f"--output '{where}' holds another run ({difference}); name another directory, or give --overwrite to "
                "delete it."
            )
        run.record, run.is_complete = found, bool(found["complete"])
        return run

    def start(self) -> None:
        """Create the directory, or continue what is there.

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
        """The newest complete checkpoint; what a kill left half written is deleted."""
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
        """Record that everything is written, and delete the checkpoints.

        Args:
            seconds: how long the job took (without what it did before it was last interrupted).
        """
        self.record |= {"complete": True, "seconds": round(seconds, 2)}
        self.write_json(RECORD, self.record)
        self.is_complete = True
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)


def settings_difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that changes what a run computes and differs, in words; empty if there is none.

    Args:
        was: what `settings.json` of a run holds.
        now: the settings that are wanted.
    """
    for name, wanted in json.loads(json.dumps(dict(now))).items():
        if name not in WHEREABOUTS and was.get(name) != wanted:
            return f"{flag(name)} was {was.get(name)}, now {wanted}"
    return ""


def _is_leftover(file: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a kill within `start`, which writes the record last, may have left this."""
    if file.name == CONFIG:
        found = files.read_json(file)
        return isinstance(found, dict) and found.keys() == settings.keys()
    return any(files.is_unfinished(file, name) for name in (CONFIG, RECORD))


def _check_writable(where: Path) -> None:
    if where.exists() and not where.is_dir():
        raise UserError(f"--output '{where}' is a file, expected a directory; name another one.")
    existing = next(p for p in (where, *where.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--output '{where}' cannot be written: no permission to write in '{existing}'.")


def _versions() -> dict[str, Any]:
    versions = {"grun": grun.__version__, "python": platform.python_version()}
    return {"versions": versions | {name: metadata.version(name) for name in PACKAGES}}


def _difference(found: Mapping[str, Any], settings: Mapping[str, Any], run: RunDirectory) -> str:
    """What tells the run that was found from the one that is wanted, in words; empty if they are the same."""
    if found.get("command") != run.record["command"]:
        return f"grun {found.get('command')}"
    changed = settings_difference(settings, run.config)
    if changed:
        return changed
    return "" if found.get("data") == run.record["data"] else "the content of its data differs"
