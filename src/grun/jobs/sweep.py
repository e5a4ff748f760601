"""`grun sweep`: a grid of unlearning runs, carried out in parallel, resumable, with one table at the end."""

from __future__ import annotations

__all__ = ["sweep"]

import logging
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

from grun.core.config.jobs import SweepConfig
from grun.core.errors import Interrupted, RunsFailed, UserError
from grun.core.process.progress import Progress
from grun.core.storage.atomic_files import read_json, remove_leftovers, write_json, write_text
from grun.core.storage.claims import claimed
from grun.core.storage.directories import written
from grun.core.storage.replacing import check_unchanged, open_list
from grun.core.storage.run_directory import is_left_over
from grun.evaluation.report.sweep_table import sweep_table
from grun.evaluation.report.table import show_whole
from grun.jobs.engines import EngineSettings, Outcome, Task, engines
from grun.jobs.inputs.sweep_grid import Cell, cells_of

logger = logging.getLogger("grun")
MEMORY_SHARE = 0.8  # of the machine's memory, where no budget was given
SETTINGS, RESULTS, TABLE = "sweep.json", "results.json", "table.md"
ANOTHER_DIRECTORY = "name another directory with --output."


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
