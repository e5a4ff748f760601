"""A ledger of removal requests: what a model is made to forget, since when and why, and what is in force.

A ledger is a directory. `ledger.json` says everything about it and is replaced as a whole, so that whoever reads it sees the
state before or after a change, whenever a process is killed; changes hold a lock. `requests/ID/adapter` is what was learnt.
The data of a request is not kept unless that is asked for, only its fingerprint.
"""

from __future__ import annotations

__all__ = ["ACTIVE", "SUSPENDED", "WITHDRAWN", "Ledger", "Request", "change", "event", "say_uncovered"]

import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from grun import files
from grun.errors import UserError, nearest
from grun.records import Example
from grun.runs import FEATURES

logger = logging.getLogger("grun")
FORMAT = 1
RECORD, LOCK, WORK, REQUESTS = "ledger.json", ".lock", ".work", "requests"
DATA = "data.json"
ACTIVE, SUSPENDED, WITHDRAWN = "active", "suspended", "withdrawn"
HUB_ID = r"[\w.-]+/[\w.-]+"
CHANGES = {"suspend": (ACTIVE, SUSPENDED), "resume": (SUSPENDED, ACTIVE), "withdraw": (None, WITHDRAWN)}


@dataclass(frozen=True)
class Request:
    """One removal request.

    Attributes:
        id: lower-case letters, digits and dashes.
        why: in the words of whoever made it.
        state: active, suspended or withdrawn.
        history: what happened when (UTC, ISO 8601), oldest first: `{"when", "what"}`.
        data: fingerprint (SHA-256 of prompts and answers) and number of rows.
        objective: what the adapter was trained with.
        settings: of the run that learnt it.
        files: SHA-256 of every file of the adapter.
        metrics: measured when it was added, with everything in force.
        thresholds: of its gates, where they were calibrated for the ledger as a whole; None for the adapter's own.
    """

    id: str
    why: str
    state: str
    history: list[dict[str, str]]
    data: dict[str, Any]
    objective: str
    settings: dict[str, Any]
    files: dict[str, str]
    metrics: dict[str, Any] = field(default_factory=dict)
    thresholds: list[float] | None = None


@dataclass(frozen=True)
class Ledger:
    """A ledger as it was when it was read.

    Attributes:
        path: its directory.
        base: identity of the base model: name, content (a hash), hidden_size, num_layers.
        requests: by id, in the order in which they were added.
        calibration: what `grun request calibrate` promised, and for which requests.
    """

    path: Path
    base: dict[str, Any]
    requests: dict[str, Request]
    calibration: dict[str, Any] | None = None

    @classmethod
    def read(cls, path: str | Path, *, hub: bool = False) -> Ledger:
        """The ledger in a directory; with `hub` also one in a hub repository, of which the newest state is downloaded.

        Raises:
            UserError: if there is none, or one that this version cannot read.
        """
        where = Path(path).expanduser()
        if hub and not where.exists() and re.fullmatch(HUB_ID, str(path)):
            where = _downloaded(str(path))
        record = files.read_json(where / RECORD)
        if not isinstance(record, dict):
            state = f"its {RECORD} is damaged" if (where / RECORD).exists() else "there is no ledger in it"
            advice = "restore it from a backup" if (where / REQUESTS).exists() else "`grun request add` makes a new one"
            raise UserError(f"--ledger '{where}': {state}; {advice}.")
        if record.get("format") != FORMAT:
            raise UserError(
                f"--ledger '{where}' has format {record.get('format')}, but this version of grun knows format {FORMAT}: "
                "install the version of grun that wrote it, or a newer one."
            )
        try:
            requests = {given["id"]: Request(**given) for given in record["requests"]}
            return cls(where, record["base"], requests, record["calibration"])
        except (KeyError, TypeError) as error:
            raise UserError(
                f"--ledger '{where}': its {RECORD} is damaged ({error}); restore it from a backup."
            ) from error

    @classmethod
    def read_or_new(cls, path: str | Path) -> Ledger:
        """The same; a ledger without a base model and requests where nothing is yet."""
        where = Path(path).expanduser()
        if (where / RECORD).exists():
            return cls.read(where)
        if where.exists() and (not where.is_dir() or any(p.name != LOCK for p in where.iterdir())):
            raise UserError(
                f"--ledger '{where}' holds something else; name a ledger, or a directory that is new or empty."
            )
        return cls(where, {}, {})

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """Inside, nobody else changes the ledger; gives it as it is now.

        Raises:
            UserError: if it cannot be written.
        """
        with self._lock() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("Another process is changing %s; waiting for it.", self.path)
                fcntl.flock(lock, fcntl.LOCK_EX)
            now = Ledger.read_or_new(self.path)
            for unfinished in (self.path / REQUESTS).glob(".*"):
                shutil.rmtree(unfinished, ignore_errors=True)  # of an `add` that was killed
            yield now

    def _lock(self) -> IO[str]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return (self.path / LOCK).open("a")
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> UserError:
        return UserError(f"--ledger '{self.path}' cannot be written: {error.strerror or error}.")

    @property
    def active(self) -> dict[str, Request]:
        """The requests in force."""
        return {id: request for id, request in self.requests.items() if request.state == ACTIVE}

    @property
    def uncovered(self) -> list[str]:
        """Requests in force that the last calibration knows nothing of; none if nothing was ever promised."""
        return [] if self.calibration is None else [id for id in self.active if id not in self.calibration["requests"]]

    def get(self, id: str) -> Request:
        """A request.

        Raises:
            UserError: if there is none with this id.
        """
        if id not in self.requests:
            known = f"It has: {', '.join(self.requests)}." if self.requests else "It is empty."
            raise UserError(f"--ledger '{self.path}' has no request '{id}'.{nearest(id, self.requests)} {known}")
        return self.requests[id]

    def folder(self, id: str) -> Path:
        """Where what belongs to a request is."""
        return self.path / REQUESTS / id

    def adapter(self, id: str) -> Path:
        """The directory of a request's adapter, whose files are those that were learnt.

        Raises:
            UserError: naming the file that is missing or was changed.
        """
        folder = self.folder(id) / "adapter"
        for name, digest in self.requests[id].files.items():
            file = folder / name
            if not file.is_file():
                raise UserError(f"request '{id}' is damaged: {file} is missing; restore it from a backup.")
            if files.sha256(file) != digest:
                raise UserError(f"request '{id}' is damaged: {file} was changed (checksum); restore it from a backup.")
        return folder

    def data(self, id: str) -> list[Example] | None:
        """The rows of a request, if they were kept."""
        kept = files.read_json(self.folder(id) / DATA)
        if kept is None:
            return None
        return [Example(**{name: _tuples(value) for name, value in row.items()}) for row in kept]

    def work(self, key: str) -> Path:
        """Where an adapter is being learnt; a run that was interrupted goes on there, if it is the same (`key`)."""
        return self.path / WORK / key

    def features(self, id: str) -> Path:
        """The file with what gates read of a request's prompts; it is there if that was asked for."""
        return self.folder(id) / FEATURES

    def with_request(
        self, request: Request, adapter: Path, *, data: Sequence[Example] | None, features: Path | None
    ) -> Ledger:
        """The ledger with one more request, whose adapter (data, features) is copied in; call it inside `changing`."""
        target = self.folder(request.id)
        with files.atomic_directory(target) as directory:
            shutil.copytree(adapter, directory / "adapter")
            if data is not None:
                files.write_json(directory / DATA, [asdict(row) for row in data])
            if features is not None:
                shutil.copyfile(features, directory / FEATURES)
        own = target / "adapter"
        checksums = {
            str(file.relative_to(own)): files.sha256(file) for file in sorted(own.rglob("*")) if file.is_file()
        }
        return self.with_changed({request.id: replace(request, files=checksums)})

    def with_state(self, id: str, change: str) -> Ledger:
        """The ledger with another state of a request; call it inside `changing`.

        Args:
            id: of the request.
            change: suspend, resume or withdraw.

        Raises:
            UserError: if the request is not in a state from which this is possible.
        """
        request = self.get(id)
        before, after = CHANGES[change]
        if request.state == after or (before is not None and request.state != before) or request.state == WITHDRAWN:
            since = request.history[-1]["when"]
            raise UserError(f"request '{id}' is {request.state} since {since}, so there is nothing to {change}.")
        changed = replace(request, state=after, history=[*request.history, event(after)])
        return self.with_changed({id: changed})

    def with_changed(self, requests: Mapping[str, Request]) -> Ledger:
        """The ledger with other records of some requests."""
        changed = replace(self, requests={**self.requests, **requests})
        changed.save()
        return changed

    def save(self) -> None:
        """Write the record, all of it or nothing."""
        requests = [asdict(request) for request in self.requests.values()]
        record = {"format": FORMAT, "base": self.base, "requests": requests, "calibration": self.calibration}
        try:
            files.write_json(self.path / RECORD, record)
        except OSError as error:
            raise self._not_written(error) from error


def change(ledger: str, id: str, what: str) -> Request:
    """Suspend, resume or withdraw a request.

    Raises:
        UserError: if there is no such request, or it is not in a state from which this is possible.
    """
    found = Ledger.read(ledger)
    found.get(id)
    with found.changing() as now:
        changed = now.with_state(id, what)
    say_uncovered(changed)
    return changed.get(id)


def say_uncovered(ledger: Ledger) -> None:
    """Warn that the guarantee for normal prompts does not hold for everything in force."""
    if ledger.uncovered:
        logger.warning(
            "The calibration of %s does not cover %s: run `grun request calibrate` again.",
            (ledger.calibration or {})["when"],
            ", ".join(ledger.uncovered),
        )


def _downloaded(repository: str) -> Path:
    try:
        return Path(snapshot_download(repository))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--ledger '{repository}': there is no such directory, and no hub repository could be downloaded: {reason}"
        ) from error


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def event(what: str) -> dict[str, str]:
    """An entry of a history, now."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "what": what}
