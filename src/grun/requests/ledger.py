"""A ledger of removal requests: their data, reasons and history, and which of them are in force.

A ledger is a directory. `ledger.json` records everything and is replaced as a whole, so that a reader sees the state before or
after a change, whenever a process is killed; changes hold a lock. `requests/ID/adapter` is the adapter of a request. Its data
are kept only if that is asked for; otherwise there is only their fingerprint.
"""

from __future__ import annotations

__all__ = ["ACTIVE", "SUSPENDED", "WITHDRAWN", "LedgerState", "Request", "change", "event", "say_uncovered"]

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from grun.core.errors import NotWritten, UserError, nearest
from grun.core.records import Example
from grun.core.storage import atomic_files as files
from grun.core.storage.directories.disk import not_written, reason_of
from grun.core.storage.directories.layout import FEATURES
from grun.requests.ledger_files import (
    ADDING,
    DATA,
    FORMAT,
    RECORD,
    REQUESTS,
    WORK,
    downloaded,
    intact,
    is_own,
    locked,
    read_record,
    read_rows,
    tidy,
    undo,
)
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
    event,
)

logger = logging.getLogger("grun")
HUB_ID = r"[\w.-]+/[\w.-]+"
CHANGES = {"suspend": (ACTIVE, SUSPENDED), "resume": (SUSPENDED, ACTIVE), "withdraw": (None, WITHDRAWN)}


@dataclass(frozen=True)
class LedgerState:
    """The state of a ledger at the time at which it was read.

    Attributes:
        path: directory of the ledger.
        base: the base model; None until a request is added.
        requests: by id, in the order in which they were added.
        calibration: the last calibration by `grun request calibrate`; None if there was none.
    """

    path: Path
    base: BaseModel | None
    requests: dict[str, Request]
    calibration: LedgerCalibration | None = None

    @classmethod
    def read(cls, path: str | Path, *, hub: bool = False) -> LedgerState:
        """The ledger in a directory; with `hub`, also the newest state of one in a hub repository, which is downloaded.

        Raises:
            UserError: if there is no ledger, or one that this version cannot read.
        """
        where = Path(path).expanduser()
        if hub and not where.exists() and re.fullmatch(HUB_ID, str(path)):
            where = downloaded(str(path))
        record = read_record(where)
        try:
            requests = checked_requests(record.get("requests"))
            base = checked_base(record.get("base"), needed=bool(requests))
            return cls(where, base, requests, checked_calibration(record.get("calibration")))
        except ValueError as error:
            raise UserError(
                f"--ledger '{where}': its {RECORD} is damaged ({error}); restore it from a backup."
            ) from error

    @classmethod
    def read_or_new(cls, path: str | Path) -> LedgerState:
        """The ledger in a directory; an empty ledger if the directory is new or empty.

        Raises:
            UserError: if the directory holds other files, or a ledger that this version cannot read.
        """
        where = Path(path).expanduser()
        try:
            strangers = where.exists() and (not where.is_dir() or any(not is_own(p) for p in where.iterdir()))
            there = (where / RECORD).exists()  # last: an `add` in progress may just have written it
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
    def changing(self) -> Iterator[LedgerState]:
        """Context that holds the lock of the ledger and gives its present state.

        Raises:
            UserError: if the ledger cannot be written.
            NotWritten: if its disk is full.
        """
        made = [folder for folder in (self.path, *self.path.absolute().parents) if not folder.exists()]
        try:
            lock = locked(self.path)
        except OSError as error:
            raise self._not_written(error) from error
        with lock:
            new = not (self.path / RECORD).exists()
            try:
                now = LedgerState.read_or_new(self.path)
                tidy(self.path, now.requests)
                yield now
            except OSError as error:
                if reason_of(error, self.path) is None:
                    raise
                raise self._not_written(error) from error
            except UserError:
                if new:
                    undo(self.path, made)
                raise

    def _not_written(self, error: OSError) -> UserError | NotWritten:
        if reason := reason_of(error):
            kept = "The ledger is as it was before; make room and run the same command again."
            return not_written(reason, self.path, kept, "--ledger")
        return UserError(f"--ledger '{self.path}' cannot be written: {error.strerror or error}.")

    @property
    def active(self) -> dict[str, Request]:
        """The requests in force."""
        return {id: request for id, request in self.requests.items() if request.state == ACTIVE}

    @property
    def uncovered(self) -> list[str]:
        """Requests in force that the last calibration does not cover; none if there was no calibration."""
        return [] if self.calibration is None else [id for id in self.active if id not in self.calibration.requests]

    def get(self, id: str) -> Request:
        """The request with an id.

        Raises:
            UserError: if there is no request with this id.
        """
        if id not in self.requests:
            known = f"It has: {', '.join(self.requests)}." if self.requests else "It is empty."
            raise UserError(f"--ledger '{self.path}' has no request '{id}'.{nearest(id, self.requests)} {known}")
        return self.requests[id]

    def folder(self, id: str) -> Path:
        """The directory of a request."""
        return self.path / REQUESTS / id

    def adapter(self, id: str) -> Path:
        """The directory of a request's adapter, after its files were compared with their checksums.

        Raises:
            UserError: naming the file that is missing or was changed.
        """
        folder = self.folder(id) / "adapter"
        for name, digest in self.requests[id].files.items():
            intact(id, folder / name, digest)
        return folder

    def data(self, id: str) -> list[Example] | None:
        """The rows of a request; None if they were not kept.

        Raises:
            UserError: if their file is missing or was changed.
        """
        if (digest := self.requests[id].kept.get(DATA)) is None:
            return None
        return read_rows(intact(id, self.folder(id) / DATA, digest))

    def work(self, key: str) -> Path:
        """The directory in which an adapter is learnt; an interrupted run with the same `key` resumes there."""
        return self.path / WORK / key

    def features(self, id: str) -> Path | None:
        """The file with the gate features of a request's prompts; None if they were not kept.

        Raises:
            UserError: if the file is missing or was changed.
        """
        digest = self.requests[id].kept.get(FEATURES)
        return None if digest is None else intact(id, self.folder(id) / FEATURES, digest)

    def with_request(
        self, request: Request, adapter: Path, *, data: Sequence[Example] | None, features: Path | None
    ) -> LedgerState:
        """Add a request and copy its files into the ledger; call it inside `changing`.

        Args:
            request: the request, without `files` and `kept`.
            adapter: directory of its adapter.
            data: rows to keep; None keeps none.
            features: file of gate features to keep; None keeps none.

        Returns:
            The changed ledger.

        Raises:
            UserError: if the ledger cannot be written.
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

    def with_state(self, id: str, change: str) -> LedgerState:
        """Change the state of a request; call it inside `changing`.

        Args:
            id: id of the request.
            change: `suspend`, `resume` or `withdraw`.

        Returns:
            The changed ledger.

        Raises:
            UserError: if the request is in a state in which this is not possible.
        """
        request = self.get(id)
        before, after = CHANGES[change]
        if request.state == after or (before is not None and request.state != before) or request.state == WITHDRAWN:
            raise UserError(
                f"request '{id}' is {request.state} since {request.since}, so there is nothing to {change}."
            )
        changed = replace(request, state=after, history=[*request.history, event(after)])
        return self.with_changed({id: changed})

    def with_changed(self, requests: Mapping[str, Request]) -> LedgerState:
        """Replace the records of some requests, write the ledger, and return it; call it inside `changing`."""
        changed = replace(self, requests={**self.requests, **requests})
        changed.save()
        return changed

    def save(self) -> None:
        """Write the record, all of it or nothing."""
        requests = [asdict(request) for request in self.requests.values()]
        base = {} if self.base is None else asdict(self.base)
        calibration = None if self.calibration is None else self.calibration.record
        record = {"format": FORMAT, "base": base, "requests": requests, "calibration": calibration}
        try:
            files.write_json(self.path / RECORD, record)
        except OSError as error:
            raise self._not_written(error) from error


def change(ledger: str, id: str, what: str) -> Request:
    """Suspend, resume or withdraw a request.

    Args:
        ledger: directory of the ledger.
        id: id of the request.
        what: `suspend`, `resume` or `withdraw`.

    Returns:
        The changed request.

    Raises:
        UserError: if there is no such request, or it is in a state in which this is not possible.
    """
    found = LedgerState.read(ledger)
    found.get(id)
    with found.changing() as now:
        changed = now.with_state(id, what)
    say_uncovered(changed)
    return changed.get(id)


def say_uncovered(ledger: LedgerState) -> None:
    """Warn if the guarantee for normal prompts, or the bound on misses, does not hold for what is in force."""
    if (found := ledger.calibration) is None:
        return
    again = "run `grun request calibrate` again"
    if uncovered := ", ".join(ledger.uncovered):
        logger.warning("The calibration of %s does not cover %s: %s.", found.when, uncovered, again)
    if missing := ", ".join(found.missing(ledger.active)):
        words = "The bound of %s on prompts to forget that open no gate was measured with %s, now out of force: %s."
        logger.warning(words, found.when, missing, again)
