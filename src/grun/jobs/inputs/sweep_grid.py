"""The runs of a sweep: one for each combination of the values that are varied, and one for each model that they start from."""

from __future__ import annotations

__all__ = ["Cell", "cells_of"]

import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from grun.core.config.checks import shown
from grun.core.config.jobs import DataConfig, EvaluateConfig, JobConfig, SweepConfig, UnlearnConfig
from grun.core.config.schema import from_text
from grun.core.errors import UserError
from grun.core.process.environment import with_default_data
from grun.core.provenance import PROVENANCE
from grun.core.python_objects import is_pipe
from grun.core.storage.atomic_files import read_json
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.run_directory import settings_difference
from grun.core.storage.stored_records import mapping_in
from grun.evaluation.report.sweep_table import Finished
from grun.jobs.inputs.first_checks import check_evaluation, check_unlearning
from grun.jobs.inputs.unlearning import filled, load_unlearning_rows, usual_settings

OWN = ("output", "overwrite")  # settings of a run that the sweep sets itself
UNNAMED = "evaluation"  # output of settings that have no directory yet
MOST_RUNS = 1_000
LONGEST_NAME = 150  # characters of a folder's name; longer ones end with a digest
ANOTHER_DIRECTORY = "name another directory with --output."
ANEW = "delete the directory of that run, and the same command repeats it"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        varied: the settings that tell it from the others.
        target: name of the run that measures the model that it starts from.
        unlearn: the job; None for the target model alone, which is only measured.
        evaluate: how its result is measured.
        folder: of everything it writes.
    """

    varied: Mapping[str, str]
    target: str
    unlearn: UnlearnConfig | None
    evaluate: EvaluateConfig
    folder: Path

    @property
    def is_done(self) -> bool:
        """Whether its result was measured.

        Raises:
            UserError: if that was with other settings or on other data.
        """
        record = read_json(self.folder / "evaluation" / "run.json")
        if not isinstance(record, dict) or record.get("complete") is not True:
            return False
        jobs: dict[str, tuple[JobConfig, JobConfig | None]] = {"evaluation": (self.evaluate, None)}
        if self.unlearn is not None:
            jobs["unlearn"] = filled(self.unlearn), usual_settings(self.unlearn)
        for name, (job, usual) in jobs.items():
            was = mapping_in(self.folder / name / "settings.json", ANEW)
            changed = settings_difference(was, job, usual)
            if changed:
                raise UserError(f"run {self.folder.name} was done with other settings ({changed}); {ANOTHER_DIRECTORY}")
        if self.unlearn is not None:
            done = mapping_in(self.folder / "unlearn" / "run.json", ANEW)
            if done.get("data") != fingerprint(load_unlearning_rows(self.unlearn).parts):
                raise UserError(f"run {self.folder.name} was done on other data; {ANOTHER_DIRECTORY}")
        return True

    def read(self) -> Finished:
        """The results, once it is done.

        Raises:
            UserError: naming a file of the run that is damaged.
        """
        file = self.folder / "evaluation" / "metrics.json"
        measured = mapping_in(file, ANEW)
        facts = {name: measured[name] for name in PROVENANCE if name in measured}
        if self.unlearn is not None:
            run = self.folder / "unlearn"
            facts = mapping_in(run / "metrics.json", ANEW) | mapping_in(run / "run.json", ANEW)
        subject = "before" if self.unlearn is None else "after"
        try:
            scores = {
                split: {metric: _number(found[subject]["value"]) for metric, found in part["metrics"].items()}
                for split, part in measured["splits"].items()
            }
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"'{file}' is damaged: it has no values of '{subject}' by split and metric; {ANEW}."
            ) from error
        return Finished(dict(self.varied), self.target, scores, facts)


def cells_of(config: SweepConfig, output: Path) -> list[Cell]:
    """All runs of a sweep: the target models, which are only measured, then the grid in its order.

    Raises:
        UserError: naming the run, if its settings are wrong.
    """
    grid = _grid(config)
    runs: list[Cell] = []
    targets: list[Cell] = []
    for values in itertools.product(*grid.values()):
        varied = dict(zip(grid, values, strict=True))
        name = _folder_name(varied)
        folder = output / "runs" / name
        settings = {key: _filled(text, varied) for key, text in config.set.items()} | varied
        job = with_default_data(from_text(UnlearnConfig, settings, f"run {name}"))
        job = replace(job, output=str(folder / "unlearn"))
        try:
            check_unlearning(job)
        except UserError as error:
            raise UserError(f"run {name}: {error}") from error
        for other in runs:
            same = other.unlearn is not None and replace(job, output=other.unlearn.output) == other.unlearn
            if other.folder == folder or same:
                raise UserError(
                    f"--vary: runs {shown(other.folder.name)} and {shown(name)} are the same; drop one of them."
                )
        alone = _evaluation(job, config, varied, name)
        for source in (*job.forget, *job.retain, *job.neighbours, *(one.partition("=")[2] for one in alone.data)):
            if is_pipe(source):
                raise UserError(
                    f"run {name}: '{source}' is a pipe, but every run reads its data for itself; give a file."
                )
        result = replace(alone, output=str(folder / "evaluation"), adapter=job.output, before=False)
        target = next((one for one in targets if replace(one.evaluate, output=alone.output) == alone), None)
        if target is None:
            own = output / "runs" / f"target-{len(targets)}"
            target = Cell({}, own.name, None, replace(alone, output=str(own / "evaluation")), own)
            targets.append(target)
        runs.append(Cell(varied, target.target, job, result, folder))
    return [*targets, *runs]


def _grid(config: SweepConfig) -> dict[str, list[str]]:
    """The values of every setting that is varied.

    Raises:
        UserError: for a grid without runs, with too many, or that says something twice.
    """
    grid = {name: _values(text) for name, text in config.vary.items()}
    if not grid:
        raise UserError("--vary is missing: give what to vary, as --vary objective=npo,idk --vary seed=0,1,2.")
    seen: set[str] = set()
    for name in (*grid, *config.set):
        setting = name.replace("-", "_")
        if setting in OWN:
            raise UserError(f"--vary/--set {name}: every run has its own; name the sweep's directory with --output.")
        if setting in seen:
            raise UserError(f"--vary/--set {name}: the setting is given twice; keep one of them.")
        seen.add(setting)
    for name, values in grid.items():
        if not values:
            raise UserError(f"--vary {name} has no values: give them as {name}=a,b.")
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"--vary {name} has the value {shown(value)} twice; drop one of them.")
    runs = math.prod(map(len, grid.values()))
    if runs > MOST_RUNS:
        raise UserError(f"--vary asks for {runs:,} runs, expected at most {MOST_RUNS:,}; give fewer values.")
    return grid


def _number(value: Any) -> float | None:
    """A value of a metric.

    Raises:
        TypeError: for anything but a number or None.
    """
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    raise TypeError(type(value).__name__)


def _evaluation(job: UnlearnConfig, config: SweepConfig, varied: Mapping[str, str], name: str) -> EvaluateConfig:
    """How the target of a run is measured: on the data of the run unless told otherwise."""
    shared = {f.name for f in fields(DataConfig)}
    given = {key: _filled(text, varied) for key, text in config.evaluate.items()}
    asked = from_text(EvaluateConfig, given, f"run {name}, --evaluate")
    own = {key: getattr(job, key) for key in shared if key not in given}
    if not asked.benchmark and not asked.data and not job.benchmark:
        own["data"] = [f"{side}={file}" for side in ("forget", "retain") for file in getattr(job, side)[:1]]
    evaluation = with_default_data(replace(asked, **own, output=UNNAMED, model=job.model))
    try:
        check_evaluation(evaluation)
    except UserError as error:
        raise UserError(f"run {name}, --evaluate: {error}") from error
    return evaluation


def _values(text: str) -> list[str]:
    """The values of one setting, between semicolons where there are any (layers=1,3;2,3), else between commas."""
    return [value.strip() for value in text.split(";" if ";" in text else ",") if value.strip()]


def _filled(text: str, varied: Mapping[str, str]) -> str:
    """A setting in which `{seed}` and the like stand for what is varied."""
    for name, value in varied.items():
        text = text.replace("{" + name + "}", value)
    return text


def _folder_name(varied: Mapping[str, str]) -> str:
    whole = ",".join(f"{name}={value}" for name, value in varied.items())
    name = re.sub(r"[^\w.=,+-]", "_", whole)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME // 4]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"
