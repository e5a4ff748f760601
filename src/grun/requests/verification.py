"""`grun request verify`: files against checksums, rows against fingerprints, and the forget probability measured again."""

from __future__ import annotations

__all__ = ["Verification", "verify"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.schema import from_mapping
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.fingerprints import fingerprint_of_rows
from grun.data.examples import read_examples
from grun.jobs.inputs.own_answers import with_own_answers
from grun.models.row_encoder import RowEncoder
from grun.requests.active import as_trained, base_of, check_base, identity, in_force
from grun.requests.ledger import ACTIVE, WITHDRAWN, LedgerState, Request, say_uncovered

TOLERATED = 0.05  # how much larger a forget probability may be than when the request was added


@dataclass(frozen=True)
class Verification:
    """The result of verifying one request.

    Attributes:
        id: id of the request.
        ok: False if something is wrong with it.
        state: active or suspended.
        reason: the fault if it is not ok, or the reason why an active request was not measured; empty otherwise.
        forget_probability: answer probability of its rows with everything in force; None if it was not measured.
        was: the forget probability when the request was added; None if it was not measured now.
    """

    id: str
    ok: bool
    state: str
    reason: str = ""
    forget_probability: float | None = None
    was: float | None = None

    def __str__(self) -> str:
        if self.forget_probability is not None:
            words = f"forget probability {self.forget_probability:.3f}, {self.was:.3f} when it was added"
            return f"ok ({words})" if self.ok else f"is not forgotten as it was: {words}."
        if not self.ok:
            return self.reason
        return f"ok ({self.state}; not measured: {self.reason})" if self.reason else f"ok ({self.state})"


@dataclass(frozen=True)
class _Checked:
    """The result of comparing a request with its record.

    Attributes:
        verification: the result without a measurement.
        folder: directory of its adapter; None if something is wrong.
        rows: its rows; empty if something is wrong or there are none.
    """

    verification: Verification
    folder: Path | None = None
    rows: Sequence[Example] = ()


def verify(
    ledger: str,
    model: str | None = None,
    data: Mapping[str, Sequence[str]] | None = None,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, Verification]:
    """Check every request that was not withdrawn, and measure those in force.

    Files are compared with their checksums and, where rows are given or were kept, these with the fingerprint. With a model
    the forget probability is measured again; it must not be more than `TOLERATED` larger than when the request was added.

    Args:
        ledger: directory of the ledger.
        model: the base model.
        data: files of rows, by request.
        device: device to measure on.
        trust_remote_code: run model code that comes with a hub repository.

    Returns:
        The results by id, in the order of the ledger.

    Raises:
        UserError: for another base model, an unknown request, or data that cannot be read.
    """
    now, given = LedgerState.read(ledger, hub=True), dict(data or {})
    for id in given:
        if now.get(id).state == WITHDRAWN:
            raise UserError(f"--data names request '{id}', which is withdrawn: there is nothing to verify.")
    if model is not None:
        check_base(now, identity(model, trust_remote_code))
    requests = [request for request in now.requests.values() if request.state != WITHDRAWN]
    checked = {request.id: _checked(now, request, given.get(request.id, ())) for request in requests}
    found = {id: one.verification for id, one in checked.items()}
    intact = {id: one.folder for id, one in checked.items() if id in now.active and one.folder is not None}
    known = {id: checked[id].rows for id in intact if checked[id].rows}
    say_uncovered(now)
    damaged = next((id for id in now.active if id not in intact), None)
    if model is None or damaged is not None:
        reason = "--model is missing" if model is None else f"'{damaged}' is not as it should be"
        return found | {id: replace(found[id], reason=reason) for id in known}
    if not known:
        return found
    here = {"model": model, "device": device, "trust_remote_code": trust_remote_code}
    settings = {
        id: from_mapping(UnlearnConfig, {**now.requests[id].settings, **here}, f"request '{id}'") for id in known
    }
    base = base_of(next(iter(settings.values())))
    encoders = {id: RowEncoder.of(base.model, base.tokenizer, settings[id]) for id in known}
    known = {id: with_own_answers(replace(base, encoder=encoders[id]), rows) for id, rows in known.items()}
    adapted = in_force(now, intact, base)
    for id, examples in known.items():
        encoder = encoders[id]
        is_now = encoder.probability(adapted, encoder.encode(as_trained(examples, encoder)))
        was = now.requests[id].forget_probability
        found[id] = replace(found[id], ok=is_now <= was + TOLERATED, forget_probability=is_now, was=was)
    return found


def _checked(ledger: LedgerState, request: Request, files: Sequence[str]) -> _Checked:
    """Compare the files of a request with their checksums, and its rows, read from `files` or kept, with the fingerprint."""

    def failed(reason: str) -> _Checked:
        return _Checked(Verification(request.id, False, request.state, reason))

    columns = request.settings["columns"]
    rows = [row for file in files for row in read_examples(file, columns=columns)]
    try:
        folder, kept = ledger.adapter(request.id), ledger.data(request.id)
        ledger.features(request.id)
    except UserError as error:
        return failed(str(error))
    rows = rows or kept or []
    if rows and fingerprint_of_rows(rows) != request.fingerprint:
        return failed("the rows are not those that the request was made for (fingerprint).")
    unmeasured = request.state == ACTIVE and not rows
    reason = "its rows were not kept, and --data does not give them" if unmeasured else ""
    return _Checked(Verification(request.id, True, request.state, reason), folder, rows)
