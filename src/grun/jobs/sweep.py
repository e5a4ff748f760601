"""`grun sweep`: a grid of unlearning runs, carried out in parallel, resumable, with one table at the end."""

from __future__ import annotations

__all__ = ["Cell", "cells_of", "sweep"]

import hashlib
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from grun.core.config.checks import shown
from grun.core.config.jobs import DataConfig, EvaluateConfig, JobConfig, SweepConfig, UnlearnConfig
from grun.core.config.schema import from_text
from grun.core.errors import Interrupted, RunsFailed, UserError
from grun.core.process.environment import with_default_data
from grun.core.process.progress import Progress
from grun.core.provenance import PROVENANCE
from grun.core.python_objects import is_pipe
from grun.core.storage import written
from grun.core.storage.atomic_files import read_json, remove_leftovers, write_json, write_text
from grun.core.storage.claims import claimed
from grun.core.storage.fingerprints import fingerprint
from grun.core.storage.replacing import check_unchanged, open_list
from grun.core.storage.run_directory import is_left_over, settings_difference
from grun.core.storage.stored_records import mapping_in
from grun.evaluation.report.sweep_table import Finished, sweep_table
from grun.evaluation.report.table import show_whole
from grun.jobs.engines import EngineSettings, Outcome, Task, engines
from grun.jobs.inputs.first_checks import check_evaluation, check_unlearning
from grun.jobs.inputs.unlearning import load_unlearning_rows, usual_settings
from grun.models.adaptations import with_presets

logger = logging.getLogger("grun")
MEMORY_SHARE = 0.8  # of the machine's memory, where no budget was given
SETTINGS, RESULTS, TABLE = "sweep.json", "results.json", "table.md"
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
            jobs["unlearn"] = with_presets(self.unlearn), usual_settings(self.unlearn)
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


def sweep(config: SweepConfig) -> Path:
    """Run a sweep; the same command goes on after an interruption, and with more values only runs what is new.

    Writes `table.md` and `results.json` (what every run found), and a folder with everything of each run under `runs`.

    Returns:
        The directory of the sweep.

    Raises:
        UserError: for wrong input, before anything runs: every run's settings are checked, also against what is there.
        RunsFailed: if runs failed; the others are in the table.
        Interrupted: if the user stopped the sweep; what is running saves its state.
    """
    output = Path(config.output).expanduser()
    with claimed(output, "sweep"):
        return _swept(config, output)


def _swept(config: SweepConfig, output: Path) -> Path:
    cells = cells_of(config, output)
    engine = engines.get(config.engine)
    todo = [cell for cell in cells if not cell.is_done]
    _prepare(output, config)
    settings = EngineSettings(
        config.jobs, config.memory or MEMORY_SHARE * psutil.virtual_memory().total / 2**30, config.address
    )
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    tasks = {cell.folder.name: _task(cell, threads) for cell in todo}
    logger.info("%d runs, %d of them done already.", len(cells), len(cells) - len(todo))
    failed: list[str] = []
    try:
        with (
            Progress("sweep", len(todo), "run") as progress,
            _closed_at_once(engine.target(list(tasks.values()), settings)) as outcomes,
        ):
            for outcome in outcomes:
                progress.update()
                if outcome.code:
                    failed.append(outcome.task.name)
                    logger.warning("%s failed: %s", outcome.task.name, _last_line(outcome.task.log))
    except KeyboardInterrupt as error:
        message = f"stopped; what is done is kept in {output}. Run the same command to go on."
        raise Interrupted.saying(error, message) from error
    found = [cell.read() for cell in cells if cell.folder.name not in failed]
    markdown, table = sweep_table(found)
    write_json(output / RESULTS, [asdict(one) for one in found])
    write_text(output / TABLE, markdown)
    remove_leftovers(output)
    show_whole(table)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of {len(cells)} runs failed: {', '.join(failed)}. What each printed is in "
            f"{output}/runs/*/output.log; the same command tries them again."
        )
    return output


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


def _task(cell: Cell, threads: int) -> Task:
    """The process that does a run: its settings lie beside it, so that anyone can repeat it by hand."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    steps = {"unlearn": cell.unlearn, "evaluate": cell.evaluate}
    command = [sys.executable, "-m", "grun.cli.sweep_worker"]
    for name, settings in steps.items():
        if settings is not None:
            write_json(cell.folder / f"{name}.json", asdict(settings))
            command += [name, str(cell.folder / f"{name}.json")]
    written.note_log(cell.folder / "output.log")
    return Task(cell.folder.name, tuple(command), cell.folder / "output.log", threads)


@contextmanager
def _closed_at_once(outcomes: Iterator[Outcome]) -> Iterator[Iterator[Outcome]]:
    """Context that ends an engine, which stops its processes, before anything else is said or done."""
    try:
        yield outcomes
    finally:
        if isinstance(outcomes, Generator):
            outcomes.close()


def _prepare(output: Path, config: SweepConfig) -> None:
    """Make the sweep's directory; one that holds something else is left alone.

    Raises:
        UserError: if it does, or a table in it was changed by somebody else.
    """
    found = read_json(output / SETTINGS)
    is_sweep = isinstance(found, dict) and {"vary", "set", "evaluate"} <= found.keys()
    if not is_sweep and not is_left_over(output):
        raise UserError(f"--output '{output}' holds something else than a sweep; name another directory.")
    check_unchanged(output, (RESULTS, TABLE))
    open_list(output, "sweep", new=not is_sweep)
    write_json(output / SETTINGS, asdict(config))


def _last_line(log: Path) -> str:
    """What a run said last."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it printed nothing"
    return lines[-1].strip() if lines else "it printed nothing"
