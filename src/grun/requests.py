"""`grun request`: learn an adapter for a removal request, and say what is in force.

Every adapter is learnt against the base model alone, whatever else is in force, so that withdrawing a request leaves all
others as they are. Nothing is lost by that where the gates in force are shut for the rows of the new request, because then
they do nothing there; how many rows they are open for is measured and written down.
"""

from __future__ import annotations

__all__ = ["add", "calibrate", "change", "export", "say_uncovered", "verify"]

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from grun.adapters import with_presets
from grun.caching import content_of_folder
from grun.calibration import ADAPTER, calibrated, gate_logits, promised, prompts_of, say, share_open, usual_place
from grun.config import UnlearnConfig
from grun.errors import UserError
from grun.files import atomic_directory
from grun.gate_features import held_gates
from grun.ledger import ACTIVE, WITHDRAWN, Ledger, Request, event, new_id
from grun.models import load_adapter, load_model_and_tokenizer, model_folder
from grun.readers import read_examples
from grun.records import Example
from grun.request_config import CalibrateRequestsConfig, RequestConfig
from grun.rows import RowEncoder
from grun.runs import fingerprint
from grun.settings import from_mapping
from grun.sides import chunk_running_text, load_sides
from grun.signals import adapters_off, longest_row
from grun.stacking import write_stack
from grun.templates import resolve_template
from grun.unlearn import FEATURES, unlearn

logger = logging.getLogger("grun")
READS = ("gate_layer", "gate_reads", "layers")  # settings that decide what gates read
EXPORTED = ("adapter_config.json", "adapter_model.safetensors")
REFERENCE_SCALE = 0.6  # times n + 1
TOLERATED = 0.05


def add(config: RequestConfig) -> str:
    """Learn an adapter for the rows of a new request, put it into force, and measure everything that is.

    Returns:
        The id of the request.

    Raises:
        UserError: for wrong input, another base model than the ledger's, or data that a request was made for already.
    """
    wanted = with_presets(config)
    if config.adapt != "grun" or wanted.gate == "none":
        raise UserError(
            f"--adapt is {config.adapt}, --gate is {wanted.gate}: only gated adapters (grun) can be stacked."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`grun request add` runs in one process: a ledger is changed by one at a time.")
    data = load_sides(config)
    found = {"fingerprint": fingerprint({"forget": data.forget}), "rows": len(data.forget)}
    ledger = Ledger.read_or_new(config.ledger)
    base = identity(config.model, config.trust_remote_code)
    _check_base(ledger, base, config.model)
    with ledger.changing() as now:
        _check_base(now, base, config.model)
        now = dataclasses.replace(now, base=now.base or base)
        now.save()  # from here on what is missing was lost
        id = new_id(now, config.id)
        for known in now.requests.values():
            if known.state != WITHDRAWN and known.data["fingerprint"] == found["fingerprint"]:
                raise UserError(f"--forget holds the data of request '{known.id}', which is {known.state} already.")
        settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(UnlearnConfig)}
        settings["shut_for"] = [*config.shut_for, *_kept_features(now, wanted)]
        key = json.dumps([settings, fingerprint(vars(data))], sort_keys=True)
        work = now.work(hashlib.sha256(key.encode()).hexdigest()[:16])
        adapter = unlearn(UnlearnConfig(**{**settings, "output": str(work)}))
        metrics = json.loads((work / "metrics.json").read_text(encoding="utf-8"))
        folders = {**{name: now.adapter(name) for name in now.active}, id: adapter}
        metrics["in_force"] = _measured(now, folders, config, data.forget, data.validation or data.retain)
        settings = json.loads((work / "settings.json").read_text(encoding="utf-8"))
        request = Request(id, config.why, ACTIVE, [event(ACTIVE)], found, config.objective, settings, {}, metrics)
        now.with_request(
            request,
            adapter,
            data=data.forget if config.keep_data else None,
            features=work / FEATURES if config.keep_features else None,
        )
        shutil.rmtree(work, ignore_errors=True)
    say_uncovered(Ledger.read(config.ledger))
    return id


def change(ledger: str, id: str, what: str) -> Request:
    """Suspend, resume or withdraw a request.

    Raises:
        UserError: if there is no such request, or it is not in a state from which this is possible.
    """
    Ledger.read(ledger).get(id)
    with Ledger.read(ledger).changing() as now:
        changed = now.with_state(id, what)
    say_uncovered(changed)
    return changed.get(id)


def export(ledger: str, output: str, scale: float | None = None, reference_scale: bool = False) -> Path:
    """Write everything that is in force as one adapter directory, which `PeftModel.from_pretrained` loads.

    Args:
        ledger: directory of the ledger.
        output: directory to write; must be new or hold an adapter.
        scale: factor of all edits; None for 1.
        reference_scale: take 0.6 n + 0.6 for n requests, as the reference implementation does.

    Raises:
        UserError: if nothing is in force, or an adapter is damaged.
    """
    now, target = Ledger.read(ledger, hub=True), Path(output).expanduser()
    if not now.active:
        raise UserError(f"--ledger '{ledger}' has no active request, so there is nothing to export.")
    if target.is_file() or (target.is_dir() and any(file.name not in EXPORTED for file in target.iterdir())):
        raise UserError(f"'{output}' holds something else; name a new directory, or one that an export made.")
    factor = REFERENCE_SCALE * (len(now.active) + 1) if reference_scale else scale
    try:
        with atomic_directory(target) as directory:
            _write_in_force(now, {id: now.adapter(id) for id in now.active}, directory, factor)
    except OSError as error:
        raise UserError(f"'{output}' cannot be written: {error.strerror or error}.") from error
    say_uncovered(now)
    return target


def say_uncovered(ledger: Ledger) -> None:
    """Warn that the guarantee for normal prompts does not hold for everything in force."""
    if ledger.uncovered:
        logger.warning(
            "The calibration of %s does not cover %s: run `grun request calibrate` again.",
            (ledger.calibration or {})["when"],
            ", ".join(ledger.uncovered),
        )


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
        now.get(id)
    if model is not None:
        _check_base(now, identity(model, trust_remote_code), model)
    found: dict[str, str] = {}
    known: dict[str, list[Example]] = {}
    for id, request in now.requests.items():
        if request.state == WITHDRAWN:
            continue
        columns = request.settings["columns"]
        rows = [row for file in given.get(id, ()) for row in read_examples(file, columns=columns)] or now.data(id)
        try:
            now.adapter(id)
        except UserError as error:
            found[id] = str(error)
            continue
        if rows and fingerprint({"forget": rows}) != request.data["fingerprint"]:
            found[id] = "the rows are not those that the request was made for (fingerprint)."
            continue
        found[id] = f"ok ({request.state})"
        if rows and request.state == ACTIVE:
            known[id] = rows
    intact = {id: now.adapter(id) for id in now.active if found[id].startswith("ok")}
    say_uncovered(now)
    if model is None or not known or len(intact) < len(now.active):
        return found
    here = {"model": model, "device": device, "trust_remote_code": trust_remote_code}
    settings = {
        id: from_mapping(UnlearnConfig, {**now.requests[id].settings, **here}, f"request '{id}'") for id in known
    }
    adapted, tokenizer = _loaded(now, intact, next(iter(settings.values())))
    for id, examples in known.items():
        encoder = _encoder(adapted, tokenizer, settings[id])
        is_now = encoder.probability(adapted, encoder.encode(_as_trained(examples, encoder)))
        was = now.requests[id].metrics["in_force"]["new"]["probability"]
        words = f"forget probability {is_now:.3f}, {was:.3f} when it was added"
        found[id] = f"ok ({words})" if is_now <= was + TOLERATED else f"is not forgotten as it was: {words}."
    return found


def identity(name: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """What tells a base model from others, without loading its weights.

    Raises:
        UserError: if it cannot be found.
    """
    folder = model_folder(name)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"--model '{name}' cannot be loaded: {' '.join(str(error).split())}") from error
    text = config.get_text_config()
    return {
        "name": name,
        "content": content_of_folder(folder) or getattr(config, "_commit_hash", None),
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
    }


def _check_base(ledger: Ledger, base: Mapping[str, Any], name: str) -> None:
    """Raise if a ledger is of another base model; where its folder is does not matter."""
    if ledger.base and any(ledger.base[key] != base[key] for key in ("content", "hidden_size", "num_layers")):
        raise UserError(
            f"--model '{name}' is another model than that of --ledger '{ledger.path}' ('{ledger.base['name']}'): their files "
            "differ. Every ledger is of one base model; name another ledger."
        )


def _write_in_force(ledger: Ledger, folders: Mapping[str, Path], target: Path, scale: float | None = None) -> None:
    known = {id: request.thresholds for id, request in ledger.requests.items() if request.thresholds is not None}
    write_stack(folders, target, scale=scale, thresholds={id: torch.tensor(own) for id, own in known.items()})


def _kept_features(ledger: Ledger, wanted: UnlearnConfig) -> list[str]:
    """Files of features that requests in force have kept, of gates that read what this one will read."""
    found = []
    for id, request in ledger.active.items():
        if not ledger.features(id).is_file():
            continue
        if wanted.fit_gate_first and all(request.settings[name] == getattr(wanted, name) for name in READS):
            found.append(str(ledger.features(id)))
        else:
            logger.warning("What was kept of request %s is left out: its gate reads something else.", id)
    return found


def _as_trained(examples: Sequence[Example], rows: RowEncoder) -> list[Example]:
    """Rows as training has seen them: running text in pieces."""
    return chunk_running_text(examples, rows.tokenizer, rows.max_length)


def _encoder(model: Any, tokenizer: PreTrainedTokenizerBase, config: Any) -> RowEncoder:
    template = resolve_template(config.template, tokenizer)
    return RowEncoder(tokenizer, template, longest_row(model, config.max_length), config.batch_size, model.device)


def _loaded(ledger: Ledger, folders: Mapping[str, Path], config: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model with some adapters in force, and its tokenizer."""
    base, tokenizer = load_model_and_tokenizer(
        config.model, dtype=config.dtype, device=config.device, trust_remote_code=config.trust_remote_code
    )
    with tempfile.TemporaryDirectory() as folder:
        _write_in_force(ledger, folders, Path(folder))
        return load_adapter(base, folder), tokenizer


def _measured(
    ledger: Ledger,
    folders: Mapping[str, Path],
    config: RequestConfig,
    forget: Sequence[Example],
    normal: Sequence[Example],
) -> dict[str, Any]:
    """Answer probabilities before and after with everything in force, and how often each request's gates open.

    `new` are the rows of the new request, `normal` those to keep that training did not see, and every earlier request whose
    data was kept is there under its id.
    """
    model, tokenizer = _loaded(ledger, folders, config)
    rows = _encoder(model, tokenizer, config)
    sets = {"new": list(forget), "normal": list(normal)}
    sets |= {earlier: kept for earlier in ledger.active if (kept := ledger.data(earlier))}
    found: dict[str, Any] = {}
    for name, whole in sets.items():
        examples = _as_trained(whole, rows)
        encoded = rows.encode(examples)
        with adapters_off(model):
            before = rows.probability(model, encoded)
        logits_NG = gate_logits(model, rows, examples)
        held = held_gates(model, ADAPTER)
        threshold_G = torch.stack([layer.gates[part].threshold.cpu() for layer, part in held])
        opened = {}
        for request in folders:
            own = [i for i, (_, part) in enumerate(held) if part.partition("/")[2] == request]
            opened[request] = share_open(logits_NG[:, own], threshold_G[own])["share"]
        found[name] = {
            "rows": len(encoded),
            "probability_before": before,
            "probability": rows.probability(model, encoded),
            "open": opened,
        }
    return found


def calibrate(config: CalibrateRequestsConfig) -> dict[str, Any]:
    """Set the thresholds of everything in force so that at most a share `alpha` of normal prompts opens any gate.

    Gates are placed by the thresholds that they were learnt with, which know nothing of these prompts. Requests that are added
    or resumed later are not covered until this is done again; those that are suspended or withdrawn only lower the share.

    Returns:
        What was found, as `grun calibrate` writes it; kept in the ledger.

    Raises:
        UserError: as `grun calibrate` does; if no request is active.
    """
    guarantee, normal = promised(config)
    forget = prompts_of(config.forget, config)
    with Ledger.read(config.ledger).changing() as now:
        _check_base(now, identity(config.model, config.trust_remote_code), config.model)
        if not now.active:
            raise UserError(f"--ledger '{config.ledger}' has no active request, so there is nothing to calibrate.")
        own = dataclasses.replace(
            now, requests={id: dataclasses.replace(r, thresholds=None) for id, r in now.active.items()}
        )
        model, tokenizer = _loaded(own, {id: now.adapter(id) for id in now.active}, config)
        rows = _encoder(model, tokenizer, config)
        held = held_gates(model, ADAPTER)
        before_G = torch.stack([layer.gates[part].threshold.cpu() for layer, part in held])
        threshold_G, found = calibrated(gate_logits(model, rows, normal), usual_place(before_G), guarantee)
        if forget:
            found["forget_open"] = share_open(gate_logits(model, rows, forget), threshold_G)
        found |= {"requests": list(now.active), **event("calibrated")}
        changed = {}
        for id, request in now.active.items():
            mine = [float(t) for t, (_, part) in zip(threshold_G, held, strict=True) if part.partition("/")[2] == id]
            changed[id] = dataclasses.replace(request, thresholds=mine)
        dataclasses.replace(now, calibration=found).with_changed(changed)
    say(found)
    return found
