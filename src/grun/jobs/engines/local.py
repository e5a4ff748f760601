"""Processes of this machine, as many at a time as the memory budget allows."""

from __future__ import annotations

__all__ = ["processes"]

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from grun.jobs.engines import EngineSettings, Outcome, Task, engines

logger = logging.getLogger("grun")
LOOK_EVERY = 0.2  # seconds
GRACE = 60.0  # seconds that a process has to save its state
GIB = 2**30


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    peak: int = 0

    def memory(self) -> int:
        """Resident bytes of the process and of those that it started."""
        total = 0
        with suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            for part in (root, *root.children(recursive=True)):
                with suppress(psutil.Error):
                    total += part.memory_info().rss
        self.peak = max(self.peak, total)
        return total

    def ask_to_stop(self) -> None:
        """Ask the process to save its state and end."""
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Wait for the end, kill the process after the grace period, and return the exit code."""
        try:
            return self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            assert self.process.stdin is not None
            self.process.stdin.close()


@engines.register("processes")
def processes(tasks: Sequence[Task], settings: EngineSettings) -> Iterator[Outcome]:
    """Processes of this machine, as many at a time as the memory budget allows.

    A further task is started only if the budget has room for as much memory as the largest task so far has used. Until the
    first task has ended, its size is unknown and it runs alone. If the running tasks together exceed the budget, the youngest
    is stopped and started again later.
    """
    waiting, running = deque(tasks), list[_Running]()
    largest, known = 0, False
    try:
        while waiting or running:
            while waiting and _has_room(running, settings, largest, known):
                running.append(_start(waiting.popleft()))
            time.sleep(LOOK_EVERY)
            used = sum(one.memory() for one in running)
            largest = max([largest, *(one.peak for one in running)])
            if used > settings.memory_gib * GIB and len(running) > 1:
                youngest = running.pop()
                youngest.ask_to_stop()
                youngest.end()
                waiting.appendleft(youngest.task)
            for ended in [one for one in running if one.process.poll() is not None]:
                running.remove(ended)
                known = True
                yield Outcome(ended.task, ended.end())
    finally:
        _stop(running)


def _stop(running: Sequence[_Running]) -> None:
    """Ask processes to save their state and end, and wait for it; a second Ctrl-C kills them instead."""
    alive = [one for one in running if one.process.poll() is None]
    if alive:
        logger.info(
            "Stopping: waiting until %d processes have saved their state; once more ends them at once.", len(alive)
        )
    try:
        for one in alive:
            one.ask_to_stop()
        for one in running:
            one.end()
    except KeyboardInterrupt:
        for one in alive:
            one.process.kill()
        for one in alive:
            one.process.wait()
        raise


def _has_room(running: Sequence[_Running], settings: EngineSettings, largest: int, known: bool) -> bool:
    if not running:
        return True
    if len(running) >= settings.jobs or not known:
        return False
    expected = sum(max(one.peak, largest) for one in running) + largest
    return expected <= settings.memory_gib * GIB


def _start(task: Task) -> _Running:
    """A process that ends with this one: it reads a pipe that only this process holds open."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads)}
    with task.log.open("ab") as log:
        process = subprocess.Popen(
            task.command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it once, as the signal sent by this process
        )
    return _Running(task, process)
