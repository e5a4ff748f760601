"""A Ray cluster, local or remote."""

from __future__ import annotations

__all__ = ["ray"]

import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

from grun.core.errors import UserError
from grun.jobs.engines import EngineSettings, Outcome, Task, engines

logger = logging.getLogger("grun")


@engines.register("ray")
def ray(tasks: Sequence[Task], settings: EngineSettings) -> Iterator[Outcome]:
    """A Ray cluster (`pip install 'grun-llm[ray]'`), with paths that all its machines share.

    Raises:
        UserError: if Ray is not installed, the cluster cannot be reached, or no machine of it has the threads of a run.
    """
    try:
        import ray as library
    except ImportError as error:
        raise UserError("--engine is ray, but Ray is not installed: pip install 'grun-llm[ray]'.") from error
    local: dict[str, Any] = {} if settings.address else {"num_cpus": os.cpu_count(), "include_dashboard": False}
    try:
        library.init(settings.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--address '{settings.address}': the cluster cannot be reached: {error}") from error
    try:
        run = library.remote(_run)
        largest = _largest_machine(library.nodes())
        budget = _budget(settings, largest)
        for task in tasks:
            if task.threads > largest["CPU"]:  # Ray would wait for such a machine for ever
                raise UserError(
                    f"--jobs is {settings.jobs}, for which every run takes {task.threads} threads, but the largest machine of "
                    f"the cluster has {largest['CPU']:g} CPUs; raise --jobs."
                )
        gpus = min(1.0, library.cluster_resources().get("GPU", 0.0) / settings.jobs)
        started = {
            run.options(num_cpus=task.threads, num_gpus=gpus, memory=budget, max_retries=2).remote(task): task
            for task in tasks
        }
        while started:
            ended, _ = library.wait(list(started), num_returns=1)
            yield Outcome(started.pop(ended[0]), library.get(ended[0]))
    finally:
        library.shutdown()


def _largest_machine(nodes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The most CPUs and the most memory in bytes that one machine of the cluster offers."""
    offered = [node["Resources"] for node in nodes if node["Alive"]]
    return {name: max((one.get(name, 0.0) for one in offered), default=0.0) for name in ("CPU", "memory")}


def _budget(settings: EngineSettings, largest: dict[str, float]) -> int:
    """Memory of a run in bytes: its part of the budget, and no more than a machine offers, for which Ray would wait."""
    asked, most = settings.memory_gib * 2**30 / settings.jobs, largest["memory"]
    if asked > most:
        logger.info("A run is given %.1f GiB: no machine of the cluster offers more.", most / 2**30)
    return int(min(asked, most))


def _run(task: Task) -> int:
    """Exit code of a task, which runs on a machine of the cluster."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    with task.log.open("ab") as log:
        pipe = subprocess.PIPE  # the task ends when the pipe closes, so the pipe is held open until then
        with subprocess.Popen(task.command, stdin=pipe, stdout=log, stderr=log, env=environment) as process:
            return process.wait()
