"""Engines that carry out the runs of a sweep: processes of this machine, or a cluster.

An engine is a function `(tasks, settings) -> iterator of outcomes`, registered under its name. A task is a command line and a
file for its output. The commands save their state, so an engine may stop a task at any time and start it again later.
"""

from __future__ import annotations

__all__ = ["Engine", "EngineSettings", "Outcome", "Task", "engines"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from grun.core.registry import Registry


@dataclass(frozen=True)
class Task:
    """One process to run.

    Attributes:
        name: unique within the sweep.
        command: program and arguments.
        log: file for its output.
        threads: processor threads that it may use.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    threads: int


@dataclass(frozen=True)
class Outcome:
    """The end of a task.

    Attributes:
        task: the task that ended.
        code: its exit code; 0 for success.
    """

    task: Task
    code: int


@dataclass(frozen=True)
class EngineSettings:
    """Limits on the tasks that run at the same time.

    Attributes:
        jobs: largest number of tasks at a time.
        memory_gib: budget of resident memory of all tasks together, in GiB.
        address: address of a cluster, in the engine's own form; None for a local one.
    """

    jobs: int
    memory_gib: float
    address: str | None = None


Engine = Callable[[Sequence[Task], EngineSettings], Iterator[Outcome]]
engines: Registry[Engine] = Registry("engine", "grun.jobs.engines")
