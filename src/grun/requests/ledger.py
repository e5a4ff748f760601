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
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from grun.core.errors import UserError, nearest
from grun.core.records import Example
from grun.core.storage import atomic_files as files
from grun.core.storage.run_directory import FEATURES
from grun.requests.ledger_files import ADDING, DATA, LOCK, RECORD, REQUESTS, WORK, downloaded, intact, is_own, tidy
from grun.requests.ledger_record import (
    ACTIVE,
    SUSPENDED,
    WITHDRAWN,
    BaseModel,
    LedgerCalibration,
    Request,
    checked_base,
    checked_calibration,
    checked_requests,
)

logger = logging.getLogger("grun")
FORMAT = 1
HUB_ID = r"[\w.-]+/[\w.-]+"
CHANGES = {"suspend": (ACTIVE, SUSPENDED), "resume": (SUSPENDED, ACTIVE), "withdraw": (None, WITHDRAWN)}


@dataclass(frozen=True)
class Ledger:
    """A ledger as it was when it was read.

    Attributes:
        path: its directory.
        base: the base model; None until a request is added.
        requests: by id, in the order in which they were added.
        calibration: the last calibration by `grun request calibrate`; None if there was none.
    """

    path: Path
    base: BaseModel | None
    requests: dict[str, Request]
    calibration: LedgerCalibration | None = None

    @classmethod
    def read(cls, path: str | Path, *, hub: bool = False) -> Ledger:
        """The ledger in a directory; with `hub` also one in a hub repository, of which the newest state is downloaded.

        Raises:
            UserError: if there is none, or one that this version cannot read.
        """
        where = Path(path).expanduser()
        if hub and not where.exists() and re.fullmatch(HUB_ID, str(path)):
            where = downloaded(str(path))
        try:
            content = (where / RECORD).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            advice = "restore it from a backup" if (where / REQUESTS).exists() else "`grun request add` makes a new one"
            raise UserError(f"--ledger '{where}': there is no ledger in it; {advice}.") from error
        except OSError as error:
            raise UserError(f"--ledger '{where}' cannot be read: {error.strerror or error}.") from error
        record = files.parsed_json(content)
        if not isinstance(record, dict):
            raise UserError(f"--ledger '{where}': its {RECORD} is damaged; restore it from a backup.")
        if record.get("format") != FORMAT:
            raise UserError(
                f"--ledger '{where}' has format {record.get('format')}, but this version of grun knows format {FORMAT}: "
                "install the version of grun that wrote it, or a newer one."
            )
        try:
            requests = checked_requests(record.get("requests"))
            base = checked_base(record.get("base"), needed=bool(requests))
            return cls(where, base, requests, checked_calibration(record.get("calibration")))
        except ValueError as error:
            raise UserError(
                f"--ledger '{where}': its {RECORD} is damaged ({error}); restore it from a backup."
            ) from error

    @classmethod
    def read_or_new(cls, path: str | Path) -> Ledger:
        """The same; a ledger without a base model and requests where nothing is yet."""
        where = Path(path).expanduser()
        try:
            strangers = where.exists() and (not where.is_dir() or any(not is_own(p) for p in where.iterdir()))
            there = (where / RECORD).exists()  # looked at last: strangers are only strange without a record
        except OSError as error:
            raise UserError(f"--ledger '{where}' cannot be read: {error.strerror or error}.") from error
        if there:
            return cls.read(where)
        if strangers:
            raise UserError(
                f"--ledger '{where}' holds something else; name a ledger, or a directory that is new or empty."
            )
        return cls(where, None, {})

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
            try:
                tidy(self.path, now.requests)
            except OSError as error:
                raise self._not_written(error) from error
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
        return [] if self.calibration is None else [id for id in self.active if id not in self.calibration.requests]

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
            intact(id, folder / name, digest)
        return folder

    def data(self, id: str) -> list[Example] | None:
        """The rows of a request, if they were kept.

        Raises:
            UserError: if their file is missing or was changed.
        """
        if (digest := self.requests[id].kept.get(DATA)) is None:
            return None
        kept = files.read_json(intact(id, self.folder(id) / DATA, digest))
        return [Example(**{name: _tuples(value) for name, value in row.items()}) for row in kept]

    def work(self, key: str) -> Path:
        """Where an adapter is being learnt; a run that was interrupted goes on there, if it is the same (`key`)."""
        return self.path / WORK / key

    def features(self, id: str) -> Path | None:
        """The file with what gates read of a request's prompts, if it was kept.

        Raises:
            UserError: if it is missing or was changed.
        """
        digest = self.requests[id].kept.get(FEATURES)
        return None if digest is None else intact(id, self.folder(id) / FEATURES, digest)

    def with_request(
        self, request: Request, adapter: Path, *, data: Sequence[Example] | None, features: Path | None
    ) -> Ledger:
        """The ledger with one more request, whose adapter (data, features) is copied in; call it inside `changing`.

        Raises:
            UserError: if it cannot be written.
        """
        target = self.folder(request.id)
        try:
            with files.atomic_directory(target) as directory:
                shutil.copytree(adapter, directory / "adapter")
                if data is not None:
                    files.write_json(directory / DATA, [asdict(row) for row in data])
                if features is not None:
                    shutil.copyfile(features, directory / FEATURES)
                own = files.checksums(directory / "adapter")
                kept = {name: files.sha256(file) for name in (DATA, FEATURES) if (file := directory / name).is_file()}
                (directory / ADDING).touch()
            changed = self.with_changed({request.id: replace(request, files=own, kept=kept)})
            (target / ADDING).unlink()
        except OSError as error:
            raise self._not_written(error) from error
        return changed

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
            raise UserError(
                f"request '{id}' is {request.state} since {request.since}, so there is nothing to {change}."
            )
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
        record = {
            "format": FORMAT,
            "base": {} if self.base is None else asdict(self.base),
            "requests": requests,
            "calibration": None if self.calibration is None else self.calibration.record,
        }
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
    if ledger.calibration is not None and ledger.uncovered:
        logger.warning(
            "The calibration of %s does not cover %s: run `grun request calibrate` again.",
            ledger.calibration.when,
            ", ".join(ledger.uncovered),
        )


def _tuples(value: Any) -> Any:
    """Lists, which JSON makes of tuples, as tuples again."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def event(what: str) -> dict[str, str]:
    """An entry of a history, now."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "what": what}
