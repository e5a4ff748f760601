"""`grun request verify`: whether a ledger is as it was left, and what it made a model forget is still forgotten."""

from __future__ import annotations

__all__ = ["verify"]

from collections.abc import Mapping, Sequence
from pathlib import Path

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.schema import from_mapping
from grun.core.errors import UserError
from grun.core.records import Example
from grun.core.storage.fingerprints import fingerprint_of_rows
from grun.data.examples import read_examples
from grun.models.row_encoder import RowEncoder
from grun.requests.active import as_trained, check_base, identity, loaded
from grun.requests.ledger import ACTIVE, WITHDRAWN, Ledger, say_uncovered

TOLERATED = 0.05  # how much larger a forget probability may be than when the request was added


def verify(
    ledger: str,
    model: str | None = None,
    data: Mapping[str, Sequence[str]] | None = None,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Check every request that was not withdrawn, and measure what is in force.

    Files are compared with their checksums and, where rows are given or were kept, these with the fingerprint. With a model
    the forget probability is measured again; it must not be more than `TOLERATED` larger than when the request was added.

    Args:
        ledger: directory of the ledger.
        model: the base model.
        data: files of rows, by request.
        device, trust_remote_code: as in the other commands.

    Returns:
        What was found, by request: beginning with `ok`, or what is wrong.

    Raises:
        UserError: for another base model, an unknown request, or data that cannot be read.
    """
    now, given = Ledger.read(ledger, hub=True), dict(data or {})
    for id in given:
        if now.get(id).state == WITHDRAWN:
            raise UserError(f"--data names request '{id}', which is withdrawn: there is nothing to verify.")
    if model is not None:
        check_base(now, identity(model, trust_remote_code), model)
    found: dict[str, str] = {}
    intact: dict[str, Path] = {}
    known: dict[str, list[Example]] = {}
    for id, request in now.requests.items():
        if request.state == WITHDRAWN:
            continue
        columns = request.settings["columns"]
        rows = [row for file in given.get(id, ()) for row in read_examples(file, columns=columns)]
        try:
            folder, kept = now.adapter(id), now.data(id)
            now.features(id)
        except UserError as error:
            found[id] = str(error)
            continue
        rows = rows or kept or []
        if rows and fingerprint_of_rows(rows) != request.data["fingerprint"]:
            found[id] = "the rows are not those that the request was made for (fingerprint)."
            continue
        found[id] = f"ok ({request.state})"
        if request.state == ACTIVE:
            intact[id] = folder
            if rows:
                known[id] = rows
            else:
                found[id] = "ok (active; not measured: its rows were not kept, and --data does not give them)"
    say_uncovered(now)
    damaged = next((id for id in now.active if id not in intact), None)
    if model is None or damaged is not None:
        reason = "--model is missing" if model is None else f"'{damaged}' is not as it should be"
        return found | {id: f"ok (active; not measured: {reason})" for id in known}
    if not known:
        return found
    here = {"model": model, "device": device, "trust_remote_code": trust_remote_code}
    settings = {
        id: from_mapping(UnlearnConfig, {**now.requests[id].settings, **here}, f"request '{id}'") for id in known
    }
    adapted, encoder = loaded(now, intact, next(iter(settings.values())))
    for id, examples in known.items():
        encoder = RowEncoder.of(adapted, encoder.tokenizer, settings[id])
        is_now = encoder.probability(adapted, encoder.encode(as_trained(examples, encoder)))
        was = now.requests[id].metrics["in_force"]["new"]["probability"]
        words = f"forget probability {is_now:.3f}, {was:.3f} when it was added"
        found[id] = f"ok ({words})" if is_now <= was + TOLERATED else f"is not forgotten as it was: {words}."
    return found
