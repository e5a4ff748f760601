"""SIGKILL at any moment of every job: run again, it ends with the same bytes as an uninterrupted run.

Moments are drawn at random, each in its own part of the run: before a change of a file or folder, or at a time. Everything is
tried with GRUN_KILLS=50; by default there are fewer kills, of other jobs each.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from grun.core.storage.directories.layout import LOCK
from grun.core.storage.directories.written import LIST
from support.forked import Ended, Forks, described
from support.job_commands import CHANGES, COMMANDS, SLOW, Places

KILLS = int(os.environ.get("GRUN_KILLS", "13"))
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "seconds", "peak_memory_mib", "when")


JOBS = COMMANDS | CHANGES | (SLOW if KILLS >= 50 else {})


def shares() -> list[tuple[str, int]]:
    """Jobs with their number of kills: as equal as can be, and the first ones first."""
    names = list(JOBS)
    return [(name, (KILLS - i + len(names) - 1) // len(names)) for i, name in enumerate(names)]


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in (*TIMES, "output")}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, Any]:
    """Every file that a command leaves, by its name; times left out."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = str(file.relative_to(folder)), file.read_bytes().replace(str(folder).encode(), b"HERE")
        if file.name in (".lock", LOCK, "output.log"):
            continue  # the latter tells every attempt of a sweep's run
        if file.name == LIST:  # times, the order of writing, and checkpoints that are gone are in it, too
            listed = {json.loads(line)["file"] for line in data.splitlines()}
            found[name] = {one for one in listed if (file.parent / one).exists()}
        elif file.suffix == ".json":
            found[name] = without_times(json.loads(data))
        elif file.suffix == ".md":
            found[name] = re.sub(rb"[^|]*\|[^|]*\|\s*$", b"", data, flags=re.MULTILINE)  # a sweep's seconds and memory
        else:
            found[name] = data
    return found


def differences(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Files that are not the same, with the beginnings of both."""
    names = sorted(name for name in {*one, *two} if one.get(name, "absent") != two.get(name, "absent"))
    return {name: (str(one.get(name, "absent"))[:200], str(two.get(name, "absent"))[:200]) for name in names}


@pytest.mark.parametrize(("name", "kills"), [(name, kills) for name, kills in shares() if kills])
def test_a_killed_job_ends_with_the_same_bytes(forks: Forks, places: Places, name: str, kills: int) -> None:
    command, run = JOBS[name], places.folder / "run"
    if name in CHANGES:
        added = forks.run(COMMANDS["request add"](places, "run"), log=places.log)
        assert added.code == 0, described(added)
    fresh = {"GRUN_CACHE_DIR": str(places.folder / "cache")}
    begun = places.folder / "begun"
    if run.exists():
        shutil.copytree(run, begun)

    def again(**how: Any) -> Ended:
        return forks.run(command(places, "run"), log=places.log, environment=fresh, **how)

    def clear() -> None:
        for folder in (run, places.folder / "cache"):
            shutil.rmtree(folder, ignore_errors=True)
        if begun.exists():
            shutil.copytree(begun, run)

    whole = again()
    assert whole.code == 0, described(whole)
    expected = content(run)
    draw = random.Random(f"kills {name}")
    for i in range(kills):
        clear()
        part = (i + draw.random()) / kills
        by_event = draw.random() < 0.6
        moment: dict[str, Any] = (
            {"event": 1 + int(part * whole.events)} if by_event else {"seconds": part * whole.seconds}
        )
        killed = again(**moment)
        assert killed.code in (0, -signal.SIGKILL), described(killed)
        ended = again()
        if ended.code == 2 and killed.code:  # done, but for its last words
            assert re.search("is taken: it is active|so there is nothing to", ended.said), described(ended)
        else:
            assert ended.code == 0 or killed.code == 0, (moment, described(ended))
        assert differences(expected, content(run)) == {}, moment
