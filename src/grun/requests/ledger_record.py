"""What `ledger.json` says of one request, checked when it is read: a ledger may come from a repository, or from a merge."""

from __future__ import annotations

__all__ = [
    "ACTIVE",
    "ADAPTER_FILES",
    "ID",
    "SUSPENDED",
    "WITHDRAWN",
    "Request",
    "checked_base",
    "checked_calibration",
    "checked_requests",
]

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any

ACTIVE, SUSPENDED, WITHDRAWN = "active", "suspended", "withdrawn"
STATES = (ACTIVE, SUSPENDED, WITHDRAWN)
ID = r"[a-z0-9][a-z0-9-]*"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
BASE = {"name": str, "content": (str, type(None)), "hidden_size": int, "num_layers": int}


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
        kept: SHA-256 of the files with its rows and with what gates read of them, where these were to be kept.
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


def checked_requests(given: Any) -> dict[str, Request]:
    """Requests by id, in order.

    Raises:
        ValueError: saying what is wrong with which.
    """
    found: dict[str, Request] = {}
    for number, record in enumerate(_of(given, list, "requests"), 1):
        request = _request(_of(record, dict, f"request {number}"), f"request {number}")
        if request.id in found:
            raise ValueError(f"two requests are called '{request.id}'")
        found[request.id] = request
    return found


def checked_base(given: Any) -> dict[str, Any]:
    """The base model's identity; empty where there is none yet.

    Raises:
        ValueError: saying what is wrong with it.
    """
    base: dict[str, Any] = _of(given, dict, "base")
    for name, kind in BASE.items() if base else ():
        _of(base.get(name), kind, f"base: {name}")
    return base


def checked_calibration(given: Any) -> dict[str, Any] | None:
    """The last calibration, if there was one.

    Raises:
        ValueError: saying what is wrong with it.
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
    return found


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
