"""The records of `ledger.json`, checked when they are read: a ledger may come from a repository, or from a merge."""

from __future__ import annotations

__all__ = [
    "ACTIVE",
    "ADAPTER_FILES",
    "ID",
    "SUSPENDED",
    "WITHDRAWN",
    "BaseModel",
    "LedgerCalibration",
    "Request",
    "checked_base",
    "checked_calibration",
    "checked_requests",
    "event",
]

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any

ACTIVE, SUSPENDED, WITHDRAWN = "active", "suspended", "withdrawn"
STATES = (ACTIVE, SUSPENDED, WITHDRAWN)
ID = r"[a-z0-9][a-z0-9-]*"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
BASE = {"name": str, "content": (str, type(None)), "hidden_size": int, "num_layers": int}


@dataclass(frozen=True)
class BaseModel:
    """The model that the adapters of a ledger were learnt on.

    Attributes:
        name: hub id or folder; it may move.
        content: hash of its files, or the commit of a hub repository; None if neither is known.
        hidden_size, num_layers: shape of the model.
    """

    name: str
    content: str | None
    hidden_size: int
    num_layers: int

    def is_same(self, other: BaseModel) -> bool:
        """Check whether both are the same model, in whatever folder it is."""
        return replace(self, name="") == replace(other, name="")


@dataclass(frozen=True)
class LedgerCalibration:
    """The last calibration of the requests in force.

    Attributes:
        alpha, delta: the guarantee (see `grun.models.gates.guarantee.Guarantee`).
        dtype: dtype that it holds in.
        when: time (UTC, ISO 8601).
        requests: ids of the requests that it covers.
        record: the whole entry of `ledger.json`, with the numbers of prompts.
    """

    alpha: float
    delta: float
    dtype: str
    when: str
    requests: tuple[str, ...]
    record: dict[str, Any]

    @classmethod
    def of(cls, record: dict[str, Any]) -> LedgerCalibration:
        """The calibration that an entry of `ledger.json` records."""
        alpha, delta, dtype, when = (record[name] for name in ("alpha", "delta", "dtype", "when"))
        return cls(alpha, delta, dtype, when, tuple(record["requests"]), record)

    @property
    def miss_bound(self) -> float | None:
        """Upper bound of the share of prompts to forget in other words that open no gate; None if none was measured."""
        missed = self.record.get("paraphrases_missed")
        return None if missed is None else float(missed["bound"])

    def missing(self, active: Collection[str]) -> list[str]:
        """Requests that the bound on misses was measured with, and that are not `active`: without them it does not hold."""
        return [] if self.miss_bound is None else [id for id in self.requests if id not in active]


@dataclass(frozen=True)
class Request:
    """One removal request.

    Attributes:
        id: lower-case letters, digits and dashes.
        why: reason for the request, as free text.
        state: active, suspended or withdrawn.
        history: events with their times (UTC, ISO 8601), oldest first: `{"when", "what"}`.
        data: fingerprint (SHA-256 of prompts and answers) and number of rows.
        objective: objective with which the adapter was trained.
        settings: settings of the run that trained it.
        files: SHA-256 of every file of the adapter.
        metrics: metrics of the run, and `in_force`: measured with everything in force when the request was added.
        thresholds: thresholds of its gates from a calibration of the whole ledger; None for those of the adapter.
        kept: SHA-256 of the files with its rows and with the gate features of its prompts, if they were kept.
    """

    id: str
    why: str
    state: str
    history: list[dict[str, str]]
    data: dict[str, Any]
    objective: str
    settings: dict[str, Any]
    files: dict[str, str]
    metrics: dict[str, Any]
    thresholds: list[float] | None = None
    kept: dict[str, str] = field(default_factory=dict)

    @property
    def since(self) -> str:
        """Time (UTC, ISO 8601) at which it came into its present state."""
        return self.history[-1]["when"]

    @property
    def rows(self) -> int:
        """Number of its rows."""
        return int(self.data["rows"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its rows, whatever their order."""
        return str(self.data["fingerprint"])

    @property
    def forget_probability_before(self) -> float:
        """Answer probability of its rows under the base model, measured when it was added."""
        return float(self.metrics["in_force"]["new"]["probability_before"])

    @property
    def forget_probability(self) -> float:
        """Answer probability of its rows with everything in force, measured when it was added."""
        return float(self.metrics["in_force"]["new"]["probability"])


def event(what: str) -> dict[str, str]:
    """An entry of a history with the present time (UTC)."""
    return {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "what": what}


def checked_requests(given: Any) -> dict[str, Request]:
    """Requests by id, in their order.

    Raises:
        ValueError: naming the request and the field that is wrong.
    """
    found: dict[str, Request] = {}
    for number, record in enumerate(_of(given, list, "requests"), 1):
        request = _request(_of(record, dict, f"request {number}"), f"request {number}")
        if request.id in found:
            raise ValueError(f"two requests are called '{request.id}'")
        found[request.id] = request
    return found


def checked_base(given: Any, *, needed: bool) -> BaseModel | None:
    """The base model; None if there is none yet and it is not `needed`.

    Raises:
        ValueError: naming the field that is wrong.
    """
    base: dict[str, Any] = _of(given, dict, "base")
    if not base and not needed:
        return None
    return BaseModel(**{name: _of(base.get(name), kind, f"base: {name}") for name, kind in BASE.items()})


def checked_calibration(given: Any) -> LedgerCalibration | None:
    """The last calibration; None if there was none.

    Raises:
        ValueError: naming the field that is wrong.
    """
    if given is None:
        return None
    found: dict[str, Any] = _of(given, dict, "calibration")
    for name in ("when", "dtype"):
        _of(found.get(name), str, f"calibration: {name}")
    for name in ("alpha", "delta"):
        _number(found.get(name), f"calibration: {name}")
    for id in _of(found.get("requests"), list, "calibration: requests"):
        _of(id, str, "calibration: requests")
    if found.get("miss_rate") is not None:
        _number(found["miss_rate"], "calibration: miss_rate")
    if (missed := found.get("paraphrases_missed")) is not None:
        for name in ("missed", "prompts", "share", "bound"):
            _number(_of(missed, dict, "calibration: paraphrases_missed").get(name), f"calibration: {name}")
    return LedgerCalibration.of(found)


def _request(record: Mapping[str, Any], where: str) -> Request:
    known = {f.name for f in fields(Request)}
    if missing := sorted(known - {"thresholds", "kept"} - record.keys()):
        raise ValueError(f"{where} has no {missing[0]}")
    if unknown := sorted(record.keys() - known):
        raise ValueError(f"{where} has an unknown '{unknown[0]}'")
    if not re.fullmatch(ID, str(_of(record["id"], str, f"{where}: id"))):
        raise ValueError(f"{where}: id is '{record['id']}', expected lower-case letters, digits and dashes")
    where = f"request '{record['id']}'"
    if record["state"] not in STATES:
        raise ValueError(f"{where}: state is '{record['state']}', expected {', '.join(STATES)}")
    for name in ("why", "objective"):
        _of(record[name], str, f"{where}: {name}")
    for entry in _of(record["history"], list, f"{where}: history") or [None]:
        for name in ("when", "what"):
            _of(_of(entry, dict, f"{where}: history").get(name), str, f"{where}: history: {name}")
    data = _of(record["data"], dict, f"{where}: data")
    _of(data.get("fingerprint"), str, f"{where}: data: fingerprint")
    _of(data.get("rows"), int, f"{where}: data: rows")
    settings = _of(record["settings"], dict, f"{where}: settings")
    _of(settings.get("columns"), dict, f"{where}: settings: columns")
    for name in ("files", "kept"):
        for file, digest in _of(record.get(name, {}), dict, f"{where}: {name}").items():
            parts = PurePosixPath(file).parts
            if not parts or file.startswith("/") or ".." in parts:
                raise ValueError(f"{where}: {name} names '{file}', expected a file inside its folder")
            _of(digest, str, f"{where}: {name}: {file}")
    for file in ADAPTER_FILES:
        if file not in record["files"]:
            raise ValueError(f"{where}: files does not name {file}")
    new: Any = _of(record["metrics"], dict, f"{where}: metrics")
    for name in ("in_force", "new"):
        new = _of(new.get(name), dict, f"{where}: metrics: {name}")
    for name in ("probability_before", "probability"):
        _number(new.get(name), f"{where}: metrics: {name}")
    if record.get("thresholds") is not None:
        for value in _of(record["thresholds"], list, f"{where}: thresholds") or [None]:
            _number(value, f"{where}: thresholds")
    return Request(**record)


def _of(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = [one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)) if one is not type(None)]
        raise ValueError(f"{where} is {type(value).__name__}, expected {names[0]}")
    return value


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where} is {value}, expected a finite number")
