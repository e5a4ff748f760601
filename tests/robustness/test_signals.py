"""Ctrl-C, SIGTERM and a closed terminal at any time: a line, an exit code that names the signal, and the state kept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import Interrupted
from grun.core.process.stop_signals import STOPPING
from grun.jobs.unlearn import unlearn
from grun.training.interruption import StopCleanly
from support.forked import Ended, Forks, described
from support.job_commands import COMMANDS, Places, flags
from support.material import Material, small_unlearning

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def assert_stopped(ended: Ended, code: int) -> None:
    assert ended.code == code, described(ended)
    assert "Traceback" not in ended.said, described(ended)
    assert "Exception ignored" not in ended.said, described(ended)
    last = ended.said.replace("\r", "\n").strip().splitlines()[-1]
    assert "grun: stopped" in last, described(ended)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_time_is_answered_with_a_line(forks: Forks, places: Places, name: str) -> None:
    """And the same command ends well afterwards."""
    command = COMMANDS[name]
    whole = forks.run(command(places, "whole"), log=places.log)
    assert whole.code == 0, described(whole)
    draw = random.Random(f"signals {name}")
    for number, code in draw.sample(sorted(SIGNALS.items()), 1):
        event = draw.randint(1, max(whole.events - 1, 1))
        arguments = command(places, f"stopped-{number}")
        ended = forks.run(arguments, log=places.log, send=number, event=event)
        if ended.code == 0:  # only the last words were still to be said
            continue
        assert_stopped(ended, code)
        again = forks.run(arguments, log=places.log)
        done_already = again.code == 2 and "--id 'one' is taken: it is active" in again.said
        assert again.code == 0 or done_already, described(again)


@pytest.mark.parametrize("again", [(0.0,), (0.05,), (0.0, 0.0), (0.1, 0.02)], ids=str)
def test_more_signals_are_answered_with_a_line_too(forks: Forks, places: Places, again: tuple[float, ...]) -> None:
    arguments = COMMANDS["unlearn"](places, "run")
    draw = random.Random(f"more {again}")
    for _ in range(2):
        ended = forks.run(arguments, log=places.log, send=signal.SIGINT, seconds=draw.uniform(0.1, 1.2), again=again)
        if ended.code:
            assert_stopped(ended, 130)
    ended = forks.run(arguments, log=places.log)
    assert ended.code == 0, described(ended)


def test_an_evaluation_that_is_stopped_keeps_what_was_measured(forks: Forks, places: Places) -> None:
    arguments, evidence = COMMANDS["evaluate"](places, "run"), places.folder / "run" / "evidence"
    caches = [{"GRUN_CACHE_DIR": str(places.folder / name)} for name in ("one", "two")]
    whole = forks.run(COMMANDS["evaluate"](places, "whole"), log=places.log, environment=caches[0])
    stored = len(list((places.folder / "whole" / "evidence").rglob("*.jsonl")))
    kept = 0
    for event in range(whole.events // 4, whole.events):  # what the first signals leave is little or nothing
        ended = forks.run(arguments, log=places.log, send=signal.SIGTERM, event=event, environment=caches[1])
        kept = len(list(evidence.rglob("*.jsonl")))
        if kept:
            break
    assert_stopped(ended, 143)
    assert f"stopped; the splits that are measured are kept in {places.folder / 'run'}. Run the same" in ended.said
    assert 0 < kept < stored
    assert forks.run(arguments, log=places.log, environment=caches[1]).code == 0
    assert len(list(evidence.rglob("*.jsonl"))) == stored


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "grun", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def listens(process: subprocess.Popen[str]) -> bool:
    """True once a process has a handler for Ctrl-C, which Python itself has not for SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.5])
def test_a_signal_while_libraries_are_imported(places: Places, seconds: float) -> None:
    process = start(COMMANDS["unlearn"](places, "run"))
    wait_until(lambda: listens(process))
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert_stopped(Ended(process.returncode, 0.0, 0, said), 130)
    assert said.count("\n") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.3])
def test_with_json_it_is_a_document_from_the_first_moment(places: Places, seconds: float) -> None:
    process = start([*COMMANDS["unlearn"](places, "run"), "--json"])
    wait_until(lambda: listens(process))
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    written, said = process.communicate(timeout=60)
    error = json.loads(written)["error"]
    assert (process.returncode, error["exit_code"], error["kind"]) == (143, 143, "interrupted")
    assert said == f"grun: {error['message']}\n"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("times", [1, 2])
def test_a_sweep_that_is_stopped_takes_its_processes_with_it(places: Places, times: int) -> None:
    """At the first signal they save their state, at the second they end at once."""
    shared: dict[str, object] = {
        "forget": places.material.forget,
        "retain": places.material.retain,
        "model": places.material.model,
    }
    shared |= {"steps": 2000, "evaluate_every": 20, "batch_size": 4, "device": "cpu"}
    settings = [part for name, value in shared.items() for part in ("--set", f"{name}={value}")]
    output = places.folder / "sweep"
    process = start(["sweep", *flags(output=output, vary="adapt=lora", evaluate="metrics=probability"), *settings])
    checkpoints = output / "runs" / "adapt=lora" / "unlearn" / "checkpoints"
    wait_until(lambda: any(checkpoints.glob("checkpoint-*")) or process.poll() is not None, 120)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert_stopped(Ended(process.returncode, 0.0, 0, said), 130)
    assert "waiting until 1 processes have saved their state" in said
    assert not psutil.wait_procs(workers, timeout=5)[1], "runs went on without their sweep"
    if times == 1:
        assert "grun: stopped after step" in (output / "runs" / "adapt=lora" / "output.log").read_text()


def test_a_closed_terminal_does_not_stop_what_was_started_with_nohup(places: Places) -> None:
    command = ["bash", "-c", 'trap "" HUP; exec "$@"', "bash", sys.executable, "-m", "grun"]
    process = subprocess.Popen([*command, *COMMANDS["unlearn"](places, "run")], env=ENVIRONMENT, stderr=subprocess.PIPE)
    wait_until(lambda: (places.folder / "run" / "run.json").exists())
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture
def config(material: Material, tmp_path: Path) -> UnlearnConfig:
    return small_unlearning(material, tmp_path / "run", layers="1,3", topic_layer="none", steps=6)


def test_in_python_the_handlers_from_before_are_back_afterwards(
    config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    own, sent = StopCleanly.on_step_end, [0]

    def twice(self: StopCleanly, *args: object, **more: object) -> None:
        sent[0] += 1
        signal.raise_signal(signal.SIGINT)
        if sent[0] < 2:
            own(self, *args, **more)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StopCleanly, "on_step_end", twice)
    with pytest.raises(KeyboardInterrupt, match=f"stopped; what is done is kept in {config.output}"):
        unlearn(config)
    assert [signal.getsignal(number) for number in STOPPING] == before
    monkeypatch.setattr(StopCleanly, "on_step_end", own)
    unlearn(config)
    assert [signal.getsignal(number) for number in STOPPING] == before


def test_in_another_thread_no_handler_is_set(config: UnlearnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = [signal.getsignal(number) for number in STOPPING], []
    own = StopCleanly.on_step_end

    def look(self: StopCleanly, *args: object, **more: object) -> None:
        seen.append([signal.getsignal(number) for number in STOPPING])
        own(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(StopCleanly, "on_step_end", look)
    thread = threading.Thread(target=unlearn, args=(config,))
    thread.start()
    thread.join()
    assert seen == [before] * 6
    assert (Path(config.output) / "adapter").is_dir()


def test_a_command_in_a_process_of_others_restores_what_was_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(number) for number in STOPPING], sys.unraisablehook, sys.stdout
    monkeypatch.setattr("grun.cli.main.leaves_document", interrupted)
    assert main(["list"]) == 143
    assert capsys.readouterr().err == "grun: stopped.\n"
    assert ([signal.getsignal(number) for number in STOPPING], sys.unraisablehook, sys.stdout) == before


def test_the_error_keeps_the_signal_and_its_own_message() -> None:
    first = Interrupted.saying(KeyboardInterrupt(), "kept in x")
    assert (first.number, str(first)) == (signal.SIGINT, "kept in x")
    assert Interrupted.saying(first, "kept in y") is first
    assert Interrupted.saying(Interrupted(number=15), "kept in z").number == 15
