"""Attacks on the weights, carried out: the model is measured as each attack has left it."""

from __future__ import annotations

__all__ = ["Found", "Requantized", "by_weights"]

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from grun.core.config.attacking import AttackConfig
from grun.core.distributed import is_main, wait
from grun.core.process.progress import Progress
from grun.core.records import Evidence, RowEvidence
from grun.core.registry import Entry
from grun.core.storage.atomic_files import write_text
from grun.evaluation.attacks import Attack, AttackMaterial, Probe
from grun.evaluation.attacks.asking import asked as as_row
from grun.evaluation.attacks.opened import NotPossible, Opened
from grun.evaluation.attacks.separation import Groups, separated
from grun.evaluation.measuring.evidence_store import EvidenceStore
from grun.evaluation.measuring.measure import measure
from grun.evaluation.measuring.row_evidence import measure_rows
from grun.evaluation.measuring.settings import MeasureSettings, Subject
from grun.jobs.attacks.figures import AFTER, BEFORE, RECOGNITION
from grun.jobs.attacks.material import Asked, Prepared
from grun.models.row_encoder import RowEncoder

PROBES = ".found.jsonl"  # end of the name of the file with what an attack asked
BATCH_SIZE = 8
Measured = Sequence[tuple[Subject, MeasureSettings]]
Requantized = Callable[[str, str], AbstractContextManager[nn.Module]]  # by the label of a subject, and the width


@dataclass(frozen=True)
class Found:
    """What attacks on the weights found.

    Attributes:
        asked: all that was asked, and what was not.
        evidence: by subject and attack, of what was asked before as well.
        told: see `Figures`.
    """

    asked: Prepared
    evidence: dict[str, dict[str, Evidence]]
    told: dict[str, dict[str, dict[str, Groups]]]


@dataclass(frozen=True)
class _Job:
    """What all attacks of a run share."""

    config: AttackConfig
    material: AttackMaterial
    measured: Measured
    requantized: Requantized

    @property
    def attacked(self) -> str:
        """Label of the model that is attacked: the one after unlearning, or the only one."""
        labels = [subject.label for subject, _ in self.measured]
        return AFTER if AFTER in labels else BEFORE

    def opened(self, label: str) -> tuple[Opened, Subject, MeasureSettings] | None:
        """A model for an attack, by its label; None if there is none."""
        pairs = {subject.label: (subject, settings) for subject, settings in self.measured}
        if label not in pairs:
            return None
        subject, settings = pairs[label]
        device = next(subject.model.parameters()).device
        encoder = RowEncoder(subject.tokenizer, settings.template, settings.max_length, BATCH_SIZE, device)
        adapted = isinstance(pairs[self.attacked][0].model, PeftModel) and pairs[self.attacked][0].adapters
        steps = self.config.search_steps
        requantized = partial(self.requantized, label)
        return Opened(subject.model, encoder, subject.adapters, adapted, steps, requantized), subject, settings


def by_weights(
    config: AttackConfig,
    chosen: Sequence[Entry[Attack]],
    material: AttackMaterial,
    measured: Measured,
    requantized: Requantized,
    before: tuple[Prepared, Mapping[str, Mapping[str, Evidence]]],
) -> Found:
    """Carry out the attacks on the weights, one after the other; what an earlier run has measured is read.

    Args:
        config: of the job.
        chosen: all attacks that were asked for.
        material: the rows, with answers.
        measured: the models.
        requantized: see `Opened`; by the label of the subject first.
        before: what was asked already and what is skipped, and the evidence.
    """
    asked, known = before
    job = _Job(config, material, measured, requantized)
    evidence = {label: dict(own) for label, own in known.items()}
    told: dict[str, dict[str, dict[str, Groups]]] = {label: {} for label in evidence}
    for entry in chosen:
        if entry.info["access"] != "weights" or entry.name in asked.skipped or not measured:
            continue
        try:
            probes = () if _recognise(job, entry, told) else _asked(job, entry, evidence)
        except NotPossible as error:
            asked = replace(asked, skipped=asked.skipped | {entry.name: str(error)})
            continue
        one = Asked(entry.name, entry.info["measures"], entry.info["access"], probes)
        asked = replace(asked, asked=asked.asked | {entry.name: one})
    return Found(asked, evidence, told)


def _labels(job: _Job, entry: Entry[Attack]) -> list[str]:
    """Labels of the models that undergo an attack: the attacked one first, then those to compare it with."""
    return list(dict.fromkeys([job.attacked, *entry.info.get("references", ())]))


def _recognise(job: _Job, entry: Entry[Attack], told: dict[str, dict[str, dict[str, Groups]]]) -> bool:
    """Tell rows apart if the attack is one that does; its result is in `told` then."""
    if entry.info["measures"] != RECOGNITION:
        return False
    material = job.material
    for label in _labels(job, entry):
        if (found := job.opened(label)) is not None:
            features: Any = entry.target(material, found[0])
            told[label][entry.name] = separated(features, material.forget, material.unknown, job.config.seed)
    return True


def _asked(job: _Job, entry: Entry[Attack], evidence: dict[str, dict[str, Evidence]]) -> tuple[Probe, ...]:
    """The probes of an attack; the evidence of all models that undergo it is in `evidence` then."""
    probes: tuple[Probe, ...] = ()
    for label in _labels(job, entry):
        if (found := job.opened(label)) is None:
            continue
        own, rows = _measured(job, entry, *found)
        probes = probes or own
        if own == probes:
            evidence[label][entry.name] = Evidence(entry.name, rows)
    examples = {entry.name: tuple(probe.example for probe in probes)}
    for label in entry.info.get("asks", ()):
        if label != job.attacked and (found := job.opened(label)) is not None:
            evidence[label] |= measure(found[1], examples, found[2], forget_split=None)
    return probes


def _measured(
    job: _Job, entry: Entry[Attack], opened: Opened, subject: Subject, settings: MeasureSettings
) -> tuple[tuple[Probe, ...], tuple[RowEvidence, ...]]:
    """What an attack asked of a model, and what was measured; from the files of the run if it is there."""
    assert subject.store is not None
    store = EvidenceStore(subject.store.folder)  # without a cache: its rows do not say what was done to the model
    file = store.folder / f"{entry.name}{PROBES}"
    probes = _kept(file, job.material)
    rows = None if probes is None else store.read(entry.name, [probe.example for probe in probes])
    wait()  # nobody writes before all have looked
    if probes is None or rows is None:
        probes, rows = _carried_out(partial(entry.target, job.material, opened), entry.name, subject, settings)
        if is_main():
            _keep(file, probes)
            store.write(entry.name, rows)
    wait()
    return probes, rows


def _carried_out(
    attack: Callable[[], Any], name: str, subject: Subject, settings: MeasureSettings
) -> tuple[tuple[Probe, ...], tuple[RowEvidence, ...]]:
    """Carry an attack out, and measure the model as every trial leaves it."""
    probes: list[Probe] = []
    rows: list[RowEvidence] = []
    trials: Iterator[Any]
    with closing(attack()) as trials:
        for trial in trials:
            examples = [probe.example for probe in trial.probes]
            what = f"{name} {subject.label} {trial.probes[0].variant if trial.probes else ''}".strip()
            with Progress(what, len(examples), "row", shown=is_main()) as progress:
                changed = replace(subject, model=trial.model or subject.model, adapters=trial.adapters, store=None)
                rows += measure_rows(changed, examples, settings, progress.update)
            probes += trial.probes
    if not probes:
        raise NotPossible("no row gives a probe")
    return tuple(probes), tuple(rows)


def _keep(file: Path, probes: Sequence[Probe]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"row": one.row, "variant": one.variant, "prompt": one.example.prompt} for one in probes]
    write_text(file, "".join(json.dumps(line) + "\n" for line in lines))


def _kept(file: Path, material: AttackMaterial) -> tuple[Probe, ...] | None:
    """The probes that an interrupted run wrote; None if there are none that can be read."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return tuple(
            Probe(as_row(material.forget[line["row"]], prompt=line["prompt"]), line["row"], line["variant"])
            for line in lines
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
