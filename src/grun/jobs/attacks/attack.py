"""`grun attack`: ask in many ways for what was forgotten, and for ordinary things beside it."""

from __future__ import annotations

__all__ = ["attack"]

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from grun.core.config.attacking import AttackConfig
from grun.core.distributed import is_main, join_processes, wait
from grun.core.errors import UserError
from grun.core.records import Evidence
from grun.core.storage.claims import claims_output, keeps
from grun.core.storage.content_hash import content_of_path
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import RunDirectory
from grun.evaluation.attacks import AttackMaterial
from grun.evaluation.attacks.opened import NotPossible
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.evaluation.scores import needs_of_metrics
from grun.jobs.attacks.calling import called_evidence
from grun.jobs.attacks.drawing import drawn_evidence, drawn_probes
from grun.jobs.attacks.figures import AFTER, METRICS, Figures
from grun.jobs.attacks.material import PLAIN, Prepared, answered, check_needs, chosen_attacks, load_material, prepared
from grun.jobs.attacks.opened import Requantized, by_weights
from grun.jobs.attacks.recognition import told_apart
from grun.jobs.attacks.records import write_found
from grun.jobs.attacks.served import Served, served_evidence
from grun.jobs.evaluate import EVIDENCE, loaded_for, store_of, subjects_of, whole_model
from grun.jobs.inputs.first_checks import MISSING_MODEL
from grun.models.loading.loaded import LoadedModel, content_if_given
from grun.models.loading.pretrained import adapter_folder, load_adapter

logger = logging.getLogger("grun")
RETAIN_ONLY = "retain_only"
Evidences = dict[str, dict[str, Evidence]]
Measured = list[tuple[Subject, MeasureSettings]]


@keeps("the attacks that are measured are kept")
@claims_output
def attack(config: AttackConfig, *, adapter: Path | None = None, show: bool = True) -> Path:
    """Run attacks: measure the model before unlearning and after it on the probes of every attack.

    Writes `attacks.json` (figures with 95 % intervals, and what was left out), `probes.jsonl` (every probe with its answers),
    `table.md` and `evidence/`, from which an interrupted run goes on.

    Args:
        config: of the job.
        adapter: directory of an adapter that stands for the ledger which the settings name.
        show: print the table.

    Returns:
        The directory of the run.

    Raises:
        UserError: for wrong input.
    """
    _check(config)
    named = config.adapter if adapter is None else str(adapter)
    chosen, material = chosen_attacks(config), load_material(config)
    check_needs(config, chosen, material)
    join_processes(config.device)
    run = RunDirectory.open(config.output, config, "attack", config.overwrite, data=_content(config, material, named))
    wait()
    if run.is_complete:
        logger.info("%s is complete already; nothing to do.", run.path)
        return run.path
    started = time.monotonic()
    base = loaded_for(config.model, config) if config.model else None
    material = answered(material, base)
    asked = prepared(config, chosen, material, base)
    subjects = [] if base is None else _subjects(config, base, run.path, named)
    served = None if config.address is None else _reached(config, asked)
    if is_main():
        run.start()
    wait()
    asked, evidence = _by_asking(config, asked, subjects)
    opened = by_weights(config, chosen, material, subjects, _requantized(config, named), (asked, evidence))
    asked, evidence = opened.asked, opened.evidence
    if is_main():
        if served is not None:
            store = EvidenceStore(run.path / EVIDENCE / AFTER)
            asked, evidence = _answered_by_all(asked, evidence | {AFTER: served_evidence(served, asked.splits, store)})
        told = told_apart(asked, evidence, subjects, config.seed)
        told = {label: own | opened.told.get(label, {}) for label, own in told.items()}
        found = Figures(asked.asked, evidence, told)
        facts = {name: getattr(config, name) for name in ("model", "adapter", "ledger", "address", "retain_only")}
        shown = write_found(run.path, found, asked, facts, config.seed)
        run.mark_complete(time.monotonic() - started)
        if show:
            shown()
    wait()
    return run.path


def _by_asking(config: AttackConfig, asked: Prepared, subjects: Measured) -> tuple[Prepared, Evidences]:
    """What models answer when they are asked, as usual, by calls of one's own, and many times; with what is asked then."""
    evidence = {one.label: measure(one, asked.splits, settings, forget_split=None) for one, settings in subjects}
    asked = drawn_probes(config, asked) if config.samples else asked
    drawn = [own for own in asked.asked.values() if own.best]
    for one, settings in subjects:
        evidence[one.label] |= {own.name: called_evidence(one, own, settings) for own in asked.called}
        evidence[one.label] |= {own.name: drawn_evidence(one, own, settings, config) for own in drawn}
    return asked, evidence


def _content(config: AttackConfig, material: AttackMaterial, adapter: str | None) -> str:
    """A fingerprint of the rows, their names, the adapter, and a model that was given as an object."""
    parts = {"forget": material.forget, "ordinary": material.ordinary, "\n".join(material.names): ()}
    rows = fingerprint(parts | ({"unknown": material.unknown} if material.unknown else {}))
    edits = "" if adapter is None else content_of_path(str(whole_model(adapter) or adapter_folder(adapter))) or adapter
    given = (content_if_given(name) for name in (config.model, config.retain_only) if name is not None)
    return rows + edits + "".join(given)


def _subjects(config: AttackConfig, base: LoadedModel, folder: Path, adapter: str | None) -> Measured:
    """The models that are measured, each with the settings for it."""
    found = [(one, _settings(config, base)) for one in subjects_of(config, base, folder, adapter)]
    if config.retain_only is not None:
        other = loaded_for(config.retain_only, config)
        store = store_of(config, other, folder)(RETAIN_ONLY)
        subject = Subject(other.model, other.tokenizer, RETAIN_ONLY, adapters=False, store=store)
        found.append((subject, _settings(config, other)))
    return found


def _requantized(config: AttackConfig, adapter: str | None) -> Requantized:
    """A function that loads a model again, by the label of its subject, with base weights of fewer bits."""

    @contextmanager
    def load(label: str, width: str) -> Iterator[nn.Module]:
        whole = whole_model(adapter) if adapter is not None and label == AFTER else None
        try:
            base = loaded_for(str(whole) if whole else config.model, replace(config, quantize=width))
        except UserError as error:
            raise NotPossible(str(error)) from error
        yield base.model if whole or adapter is None or whole_model(adapter) else load_adapter(base.model, adapter)

    return load


def _settings(config: AttackConfig, model: LoadedModel) -> MeasureSettings:
    return MeasureSettings(
        template=model.template,
        needs=needs_of_metrics(METRICS),
        tokens_per_batch=config.tokens_per_batch,
        max_new_tokens=config.max_new_tokens,
        max_length=model.max_length,
    )


def _answered_by_all(asked: Prepared, evidence: Evidences) -> tuple[Prepared, Evidences]:
    """Probes and evidence without what the address refused, which others may have answered.

    Raises:
        UserError: if it refused all plain questions.
    """
    kept = {
        name: [i for i in range(len(rows)) if all(own[name].rows[i].generated is not None for own in evidence.values())]
        for name, rows in asked.splits.items()
    }
    if not kept[PLAIN]:
        raise UserError("--address refuses every question as it is; look at the server's log for the reason.")
    left = {
        subject: {
            name: replace(one, rows=tuple(one.rows[i] for i in kept[name])) for name, one in own.items() if kept[name]
        }
        for subject, own in evidence.items()
    }
    return asked.only(kept), left


def _reached(config: AttackConfig, asked: Prepared) -> Served:
    """The model at the address, once it has taken a question, before anything is written."""
    served = Served.of(config)
    served.answer(asked.splits[PLAIN][0])
    return served


def _check(config: AttackConfig) -> None:
    """Refuse settings that contradict each other."""
    if not config.model and config.address is None:
        raise UserError(MISSING_MODEL)
    given = [name for name in ("adapter", "ledger", "address") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} were both given; attack one of them.")
    if config.address is None and config.served_model is not None:
        raise UserError("--served-model was given without --address; give both, or neither.")
    if config.samples and config.address is not None:
        raise UserError("--samples was given with --address, whose answers are not drawn; leave one of them out.")
    if config.retain_only is not None and not config.model:
        raise UserError("--retain-only needs --model, the model that it is compared with.")
