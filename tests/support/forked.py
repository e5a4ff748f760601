"""Commands in processes that take no time to start: a server that has imported everything forks one for each.

python -m support.forked reads an order per line (see `Forks.run`) and answers it with the exit code and more, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 120.0  # seconds of a command
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.copytree")


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; minus the number of the signal that killed it.
        seconds: that it took.
        events: number of changes of files and folders (see `_count_changes`), where it was not killed.
        said: standard output and error.
    """

    code: int
    seconds: float
    events: int
    said: str


class Forks:
    """The server, from the side of a test."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        command = [sys.executable, "-m", "support.forked"]
        self._server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        send: int = signal.SIGKILL,
        step: int | None = None,
        saved: int | None = None,
        event: int | None = None,
        seconds: float | None = None,
        again: Sequence[float] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run `grun` with arguments; a signal is sent at one of these moments, if one is given.

        Args:
            arguments: of the command line.
            log: file for what it says.
            send: the signal.
            step: at the end of this step of training, before anything is saved.
            saved: once the checkpoint of this step is there.
            event: before this change of a file or folder.
            seconds: after this time.
            again: seconds from one signal to the next, where several are sent after `seconds`.
            environment: more variables.
        """
        order = {
            "arguments": list(arguments),
            "log": str(log),
            "send": int(send),
            "step": step,
            "saved": saved,
            "event": event,
            "seconds": seconds,
            "again": list(again),
            "environment": dict(environment or {}),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(**answer, said=log.read_text(errors="replace"))

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def _serve() -> None:
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401

    import grun.api.jobs
    import grun.api.ledger
    import grun.cli.main
    import grun.cli.process.program
    import grun.evaluation.report.figures
    import grun.jobs.attacks.attack
    import grun.jobs.calibrate
    import grun.jobs.compare
    import grun.jobs.demos.demo
    import grun.jobs.evaluate
    import grun.jobs.finetune
    import grun.jobs.import_reference
    import grun.jobs.inputs.expansion.expand
    import grun.jobs.sweep
    import grun.jobs.unlearn
    import grun.requests.operations
    import grun.requests.verification  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        started = time.monotonic()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _work(order, writer)
        os.close(writer)
        code = _wait(child, order, started)
        with os.fdopen(reader) as counted:
            events = int(counted.read() or 0)
        answer = {"code": code, "seconds": time.monotonic() - started, "events": events}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(child: int, order: Mapping[str, Any], started: float) -> int:
    """The exit code of a process, which is sent a signal after a time if that is wanted, and killed if it hangs."""
    moments = [] if order["seconds"] is None else [order["seconds"], *order["again"]]
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - started
        if moments and passed > moments[0]:
            os.kill(child, order["send"])
            moments = [passed + moments[1], *moments[2:]] if len(moments) > 1 else []
        if passed > LONGEST:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def _work(order: Mapping[str, Any], writer: int) -> None:
    """The command in the forked process."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order["environment"])
    _at_steps(order)
    changes = _count_changes(order)
    from grun.cli.main import main
    from grun.cli.process.program import process

    try:
        code = process(lambda: main(order["arguments"]))
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stderr.flush()
    os.write(writer, str(changes[0]).encode())
    os._exit(code)


def _at_steps(order: Mapping[str, Any]) -> None:
    """Send this process a signal at the end of a step, or after a checkpoint."""
    from grun.training.interruption import StopCleanly

    for name, at in (("on_step_end", order["step"]), ("on_save", order["saved"])):
        if at is None:
            continue
        own = getattr(StopCleanly, name)

        def then(self: Any, args: Any, state: Any, control: Any, own: Any = own, at: int = at, **more: Any) -> None:
            if state.global_step == at:
                os.kill(os.getpid(), order["send"])
            own(self, args, state, control, **more)

        setattr(StopCleanly, name, then)


def _count_changes(order: Mapping[str, Any]) -> list[int]:
    """Count what this process changes in the file system, and send it a signal before one of these changes."""
    counted = [0]

    def hook(event: str, arguments: Any) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = any(letter in (mode or "") for letter in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            writes = event in WRITES
        if writes:
            counted[0] += 1
            if counted[0] == order["event"]:
                os.kill(os.getpid(), order["send"])

    sys.addaudithook(hook)
    return counted


def described(ended: Ended) -> str:
    """For a failed assertion."""
    return f"exit code {ended.code} after {ended.seconds:.2f} s and {ended.events} changes of files; it said:\n{ended.said}"


if __name__ == "__main__":
    _serve()
