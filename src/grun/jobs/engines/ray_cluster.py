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


@engines.register("ray")
def ray(tasks: Sequence[Task], settings: EngineSettings) -> Iterator[Outcome]:
    """A Ray cluster (`pip install 'grun-llm[ray]'`), with paths that all its machines share.

    Raises:
        UserError: if Ray is not installed, or the cluster cannot be reached.
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
        budget = int(settings.memory_gib * 2**30 / settings.jobs)
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


def _run(task: Task) -> int:
    """Exit code of a task, which runs on a machine of the cluster."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    with task.log.open("ab") as log:
        pipe = subprocess.PIPE  # the task ends when the pipe closes, so the pipe is held open until then
        with subprocess.Popen(task.command, stdin=pipe, stdout=log, stderr=log, env=environment) as process:
            return process.wait()
