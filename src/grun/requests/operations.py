"""`grun request`: learn an adapter for a removal request, calibrate and export everything in force.

Every adapter is learnt against the base model alone, so that withdrawing a request leaves all others as they are. This costs
nothing as long as the gates in force are shut for the rows of the new request, because they then do nothing there. The share
of rows for which they open is measured and recorded.
"""

from __future__ import annotations

__all__ = ["add", "calibrate_active", "export"]

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import shutil
from functools import cache
from itertools import count
from pathlib import Path

from grun.core.config.jobs import UnlearnConfig
from grun.core.config.requests import CalibrateRequestsConfig, RequestConfig
from grun.core.errors import UserError
from grun.core.provenance import provenance
from grun.core.storage.fingerprints import fingerprint, fingerprint_of_rows
from grun.core.storage.run_directory import FEATURES, holds_run
from grun.core.storage.stored_records import mapping_in
from grun.jobs.calibrate import say
from grun.jobs.inputs.calibration import calibration_prompts, unseen
from grun.jobs.inputs.expansion.expand import topic_rows
from grun.jobs.inputs.unlearning import filled, load_unlearning_rows, usual_settings
from grun.jobs.unlearn import unlearn
from grun.models.adaptations import NO_TOPICS, with_presets
from grun.models.gates.calibration import calibrated, learnt_places, logits_of_prompts
from grun.models.gates.features import gates_by_member
from grun.models.tuner.config import is_member_name
from grun.requests.active import base_of, check_base, identity, loaded, measured, say_crossing, write_in_force
from grun.requests.exports import exported
from grun.requests.ledger import ACTIVE, WITHDRAWN, LedgerState, Request, event, say_uncovered
from grun.requests.ledger_record import ID, BaseModel, LedgerCalibration

logger = logging.getLogger("grun")
READS = ("gate_layer", "gate_reads", "layers", "topic_layer")  # settings that determine the features of gates
REFERENCE_SCALE = 0.6  # times n + 1
LONGEST_ID = 100  # characters; an id is the name of a folder


def add(config: RequestConfig) -> str:
    """Learn an adapter for the rows of a new request, put it into force, and measure everything in force.

    Returns:
        The id of the request.

    Raises:
        UserError: for wrong input, another base model than the ledger's, or rows of an earlier request.
    """
    wanted = with_presets(config)
    if config.adapt != "grun" or wanted.gate == "none":
        what = f"--adapt is {config.adapt}" if config.adapt != "grun" else "--gate is none"
        raise UserError(f"{what}, but only gated adapters (grun) can be stacked.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`grun request add` runs in one process: a ledger is changed by one at a time.")
    if not config.forget and not config.benchmark and config.topic is None:
        raise UserError(
            "FILES is missing: name the rows to forget (grun request add rows.jsonl ...), or --topic, or --benchmark."
        )
    _check_text(config.why)
    topic = cache(lambda: topic_rows(config, None))
    data = load_unlearning_rows(config, topic)
    found = {"fingerprint": fingerprint_of_rows(data.forget), "rows": len(data.forget)}
    ledger = LedgerState.read_or_new(config.ledger)
    base = _checked_base(config, ledger)
    with ledger.changing() as now:
        check_base(now, base)
        now = dataclasses.replace(now, base=now.base if now.requests else base)
        now.save()  # a record that is missing from here on was lost
        id = _new_id(now, config.id)
        for known in now.requests.values():
            if known.state != WITHDRAWN and known.fingerprint == found["fingerprint"]:
                raise UserError(f"The rows are those of request '{known.id}', which is {known.state} already.")
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(UnlearnConfig)}
        settings["shut_for"] = [*config.shut_for, *_kept_features(now, wanted)]
        work = _work(now, UnlearnConfig(**settings), fingerprint(data.parts))
        job = UnlearnConfig(**{**settings, "output": str(work)})
        adapter = unlearn(job, topic=None if config.topic is None else topic())
        metrics = mapping_in(work / "metrics.json", f"delete {work} and run the same command")
        folders = {**{name: now.adapter(name) for name in now.active}, id: adapter}
        in_force = measured(now, folders, config, data.forget, data.validation or data.retain)
        metrics |= provenance()
        metrics["in_force"] = {name: dataclasses.asdict(one) for name, one in in_force.items()}
        settings = mapping_in(work / "settings.json", f"delete {work} and run the same command")
        request = Request(id, config.why, ACTIVE, [event(ACTIVE)], found, config.objective, settings, {}, metrics)
        changed = now.with_request(
            request,
            adapter,
            data=data.forget if config.keep_data else None,
            features=work / FEATURES if config.keep_features else None,
        )
        shutil.rmtree(work, ignore_errors=True)
    say_crossing(id, in_force)
    say_uncovered(changed)
    return id


def _checked_base(config: RequestConfig, ledger: LedgerState) -> BaseModel:
    """The base model of a request, which is that of the ledger; one that cannot be used leaves no new ledger behind."""
    base = identity(config.model, config.trust_remote_code)
    check_base(ledger, base)
    if not Path(config.ledger).exists():
        base_of(config)
    return base


def export(ledger: str, output: str, scale: float | None = None, reference_scale: bool = False) -> Path:
    """Write everything in force as one adapter directory, which `PeftModel.from_pretrained` loads.

    Args:
        ledger: directory of the ledger.
        output: directory to write; must be new, empty, or hold what an export wrote.
        scale: factor of all edits; None for 1.
        reference_scale: take 0.6 n + 0.6 for n requests, as the reference implementation does.

    Raises:
        UserError: if nothing is in force, an adapter is damaged, or the directory cannot be written or holds other files.
    """
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"--scale is {scale}, expected a finite number of at least 0.")
    now, target = LedgerState.read(ledger, hub=True), Path(output).expanduser()
    if not now.active:
        raise UserError(f"--ledger '{ledger}' has no active request, so there is nothing to export.")
    factor = REFERENCE_SCALE * (len(now.active) + 1) if reference_scale else scale
    with exported(target) as directory:
        write_in_force(now, {id: now.adapter(id) for id in now.active}, directory, factor)
    say_uncovered(now)
    return target


def _kept_features(ledger: LedgerState, wanted: UnlearnConfig) -> list[str]:
    """Feature files of requests in force whose gates have the same reading as the new one."""
    found = []
    for id, request in ledger.active.items():
        if (features := ledger.features(id)) is None:
            continue
        if wanted.fit_gate_first and all(
            request.settings.get(name, NO_TOPICS) == getattr(wanted, name) for name in READS
        ):
            found.append(str(features))
        else:
            logger.warning("The features kept of request %s are left out: its gate reads other layers or tokens.", id)
    return found


def _work(ledger: LedgerState, job: UnlearnConfig, data: str) -> Path:
    """The directory in which an adapter is learnt: that of an interrupted `add` of the same rows with the same settings.

    Args:
        ledger: that the adapter is for.
        job: settings of the run, presets not filled in.
        data: fingerprint of its rows.
    """
    key = json.dumps([dataclasses.asdict(job), data], sort_keys=True)
    work = ledger.work(hashlib.sha256(key.encode()).hexdigest()[:16])
    if work.exists():
        return work
    wanted, usual = filled(job), usual_settings(job)  # an older version, with fewer settings, had another key
    others = sorted(work.parent.glob("*"))
    return next((one for one in others if holds_run(one, wanted, "unlearn", data=data, usual=usual)), work)


def _check_text(why: str) -> None:
    try:
        why.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--why is not valid UTF-8 at character {error.start + 1}; expected text.") from error


def _new_id(ledger: LedgerState, asked: str | None) -> str:
    """The id of a new request: the one asked for, or the next number.

    Raises:
        UserError: if the id is taken or malformed.
    """
    if asked is None:
        numbered = (f"r{number:04d}" for number in count(len(ledger.requests) + 1))
        return next(id for id in numbered if id not in ledger.requests and not ledger.folder(id).exists())
    if not re.fullmatch(ID, asked) or not is_member_name(asked):
        raise UserError(f"--id is '{asked}', expected lower-case letters, digits and dashes (and not a reserved word).")
    if len(asked) > LONGEST_ID:
        raise UserError(f"--id has {len(asked)} characters, expected at most {LONGEST_ID}; shorten it.")
    if asked in ledger.requests:
        raise UserError(f"--id '{asked}' is taken: it is {ledger.requests[asked].state}. Choose another one.")
    if ledger.folder(asked).exists():
        raise UserError(f"--id '{asked}': {ledger.folder(asked)} is there, but not in the ledger. Choose another id.")
    return asked


def calibrate_active(config: CalibrateRequestsConfig) -> LedgerCalibration:
    """Set the thresholds of everything in force so that at most a share `alpha` of normal prompts opens any gate.

    The places of the gates are the thresholds that they were learnt with, which do not depend on these prompts. Requests that
    are added or resumed later are not covered until the next calibration; suspending or withdrawing only lowers the share. The
    bound on prompts to forget that open no gate holds as long as every request that it was measured with is in force.

    Returns:
        The calibration as recorded in the ledger.

    Raises:
        UserError: as `grun calibrate` does; if no request is active.
    """
    prompts = calibration_prompts(config)
    with LedgerState.read(config.ledger).changing() as now:
        check_base(now, identity(config.model, config.trust_remote_code))
        if not now.active:
            raise UserError(f"--ledger '{config.ledger}' has no active request, so there is nothing to calibrate.")
        prompts = unseen(prompts, {id: request.settings for id, request in now.active.items()})
        model, rows = loaded(now, {id: now.adapter(id) for id in now.active}, config)
        found = calibrated(
            model, rows, prompts.normal, learnt_places(model), prompts.guarantee, paraphrases=prompts.paraphrases
        )
        if prompts.forget:
            found = found.with_forget(logits_of_prompts(model, rows, prompts.forget))
        record = found.as_json()
        for name in ("thresholds", "places", "deviations"):
            del record[name]  # of gates in the order of the stack; every request has its own thresholds
        record |= {"requests": list(now.active), **event("calibrated"), **provenance()}
        calibration = LedgerCalibration.of(record)
        changed = {
            id: dataclasses.replace(now.get(id), thresholds=[found.thresholds[gate] for gate in own])
            for id, own in gates_by_member(model).items()
        }
        dataclasses.replace(now, calibration=calibration).with_changed(changed)
    say(found)
    return calibration
