"""The contract of every engine: each task is run and reported once, with its exit code; what was stopped goes on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from grun.jobs.engines import EngineSettings, Outcome, Task, engines

LIBRARIES = {"ray": "ray"}  # that an engine needs besides grun's own
SETTINGS = EngineSettings(jobs=2, memory_gib=2.0)
COUNTS = 4
# Counts to COUNTS in a file, a number at a time, and ends with the process that started it, as the runs of a sweep do.
RESUMABLE = """
import json, os, pathlib, sys, threading, time

threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
file = pathlib.Path(sys.argv[1])
counted = json.loads(file.read_text()) if file.exists() else []
while len(counted) < int(sys.argv[2]):
    counted.append(os.getpid())
    time.sleep(0.3)
    file.with_suffix(".new").write_text(json.dumps(counted))
    file.with_suffix(".new").replace(file)
"""


@pytest.fixture(params=engines.names())
def engine(request: pytest.FixtureRequest) -> Any:
    library = LIBRARIES.get(request.param)
    if library is not None:
        pytest.importorskip(library, reason=f"engine '{request.param}' needs {library}, which is not installed")
    return engines.get(request.param).target


def task(folder: Path, name: str, code: str, *arguments: str, threads: int = 1) -> Task:
    return Task(name, (sys.executable, "-c", code, *arguments), folder / f"{name}.log", threads)


def codes(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {one.task.name: one.code for one in outcomes}


def test_every_task_is_reported_once_with_its_exit_code_and_its_output(engine: Any, tmp_path: Path) -> None:
    say = "import os, sys; print('said', os.environ['OMP_NUM_THREADS']); sys.exit('wrong' if {0} == 1 else {0})"
    tasks = [task(tmp_path, f"t{i}", say.format(code), threads=1 + i % 2) for i, code in enumerate((0, 3, 0, 1))]
    outcomes = list(engine(tasks, SETTINGS))
    assert len(outcomes) == len(tasks)
    assert codes(outcomes) == {"t0": 0, "t1": 3, "t2": 0, "t3": 1}
    assert {one.task for one in outcomes} == set(tasks)
    said = {one.name: sorted(one.log.read_text().split()) for one in tasks}
    assert said == {"t0": ["1", "said"], "t1": ["2", "said"], "t2": ["1", "said"], "t3": ["2", "said", "wrong"]}


def test_what_a_task_says_is_added_to_its_log(engine: Any, tmp_path: Path) -> None:
    first = task(tmp_path, "one", "print('first')")
    first.log.write_text("before\n")
    assert codes(list(engine([first], SETTINGS))) == {"one": 0}
    assert first.log.read_text().split() == ["before", "first"]


def test_nothing_to_do_is_done(engine: Any) -> None:
    assert list(engine([], SETTINGS)) == []


def test_what_was_stopped_goes_on_when_it_is_started_again(engine: Any, tmp_path: Path) -> None:
    """The first task is short; when it is reported the sweep is given up, while others are under way."""
    files = {name: tmp_path / f"{name}.json" for name in ("short", "long", "longer")}
    tasks = [
        task(tmp_path, name, RESUMABLE, str(file), str(COUNTS * (1 + 3 * (name != "short"))))
        for name, file in files.items()
    ]
    outcomes = iter(engine(tasks, SETTINGS))
    assert codes([next(outcomes)]) == {"short": 0}
    outcomes.close()
    before = {name: json.loads(file.read_text()) if file.exists() else [] for name, file in files.items()}
    assert any(len(before[name]) < 4 * COUNTS for name in ("long", "longer"))
    assert codes(list(engine(tasks, SETTINGS))) == dict.fromkeys(files, 0)
    after = {name: json.loads(file.read_text()) for name, file in files.items()}
    assert {name: len(counted) for name, counted in after.items()} == {"short": 4, "long": 16, "longer": 16}
    assert all(after[name][: len(counted)] == counted for name, counted in before.items()), "something was done twice"


@pytest.mark.parametrize("name", engines.names())
def test_every_engine_says_what_it_is(name: str) -> None:
    entry = engines.get(name)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert entry.target.__name__ == name
    assert re.match(r"[A-Z].*\.$", entry.summary)


def test_a_run_is_given_no_more_memory_than_a_machine_has(engine: Any, tmp_path: Path) -> None:
    tasks = [task(tmp_path, "t", "pass")]
    assert codes(list(engine(tasks, EngineSettings(jobs=1, memory_gib=2.0**20)))) == {"t": 0}
