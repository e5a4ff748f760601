"""Everything that decides, and everything that is logged, belongs to the checkpoint.

A run that was killed or stopped and then resumed ends at the same step as an uninterrupted one, with the same weights,
byte for byte, the same log, and the same record of what it found.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from grun.core.storage.directories.written import LIST
from support.forked import Forks, described
from support.material import Material

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "seconds", "peak_memory_mib")
TINY = ["--hidden-size", "32", "--layers", "2", "--heads", "2", "--vocab-size", "300", "--epochs", "8"]
GRUN = ["--layers", "1,3", "--topic-layer", "none"]
LORA = ["--adapt", "lora"]
# What is trained until which rule ends it: settings, and the steps at which the run is killed; 24 rows in batches of 4.
FINETUNE = {
    "all epochs": (TINY, (10, 13)),
    "part of an epoch": ([*TINY, "--epochs", "2.5"], (8,)),
    "stop loss": ([*TINY, "--epochs", "20", "--stop-loss", "4.6"], (7, 15)),
    "stop loss at a checkpoint": ([*TINY, "--epochs", "20", "--stop-loss", "4.6", "--save-every", "6"], (9,)),
    "accumulation": ([*TINY, "--trainer", "gradient_accumulation_steps=3", "--trainer", "logging_steps=3"], (7,)),
    "a given model": (["--epochs", "3", "--learning-rate", "1e-3", "--trainer", "logging_steps=4"], (6, 13)),
}
UNLEARN = {
    "steps": ([*GRUN, "--objective", "idk", "--steps", "18"], (7, 13)),
    "steps, not aligned": ([*GRUN, "--objective", "npo", "--steps", "17", "--evaluate-every", "7"], (9, 15)),
    "epochs": ([*LORA, "--objective", "gd", "--epochs", "7"], (11,)),
    "patience": ([*GRUN, "--objective", "idk", "--patience", "2"], (13, 21)),
    "patience of a score": (
        [*LORA, "--objective", "gd", "--patience", "1", "--trainer", "metric_for_best_model=eval_score"],
        (7,),
    ),
    "dual variable": (
        [*LORA, "--objective", "pdu", "--retain-bound", "1", "--dual-warmup", "0", "--steps", "18"],
        (8,),
    ),
    "bounded": ([*GRUN, "--objective", "npo", "--retain-bound", "1", "--patience", "3"], (12,)),
    "accumulation": (
        [*GRUN, "--objective", "rmu", "--steps", "12", "--trainer", "gradient_accumulation_steps=2"],
        (8,),
    ),
    "it gets worse": ([*LORA, "--objective", "gd", "--steps", "30", "--learning-rate", "0.3"], (25,)),
    "all weights": (["--adapt", "full", "--objective", "npo", "--steps", "12", "--learning-rate", "1e-4"], (7,)),
}


def flags(**values: object) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def finetune(material: Material, output: Path, more: list[str]) -> list[str]:
    given = {} if "--hidden-size" in more else {"model": material.model}
    shared = flags(data=material.retain, output=output, batch_size=4, save_every=5, device="cpu", **given)
    return ["finetune", *shared, *more]


def unlearn(material: Material, output: Path, more: list[str]) -> list[str]:
    shared = flags(model=material.model, forget=material.forget, retain=material.retain, output=output)
    return ["unlearn", *shared, *flags(batch_size=4, evaluate_every=5, device="cpu"), *more]


COMMANDS = {"finetune": finetune, "unlearn": unlearn}
CASES = {
    f"{job}: {name}": (job, *case)
    for job, cases in (("finetune", FINETUNE), ("unlearn", UNLEARN))
    for name, case in cases.items()
}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def result(run: Path) -> dict[str, Any]:
    """Everything that a run leaves behind, but for times."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if name in ("run.json", "settings.json", LIST):
            continue  # the times and the names of directories
        is_json = file.suffix == ".json" and name.count("/") == 0
        found[name] = without_times(json.loads(file.read_text())) if is_json else file.read_bytes()
    return found


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, content in one.items():
        assert two[name] == content, name


def assert_resumes(forks: Forks, arguments: list[str], expected: dict[str, Any], run: Path) -> None:
    """The same command again ends as if nothing had disturbed it."""
    resumed = forks.run(arguments, log=run.parent / "log")
    assert resumed.code == 0, described(resumed)
    assert_same(expected, result(run))


@pytest.fixture(scope="module")
def uninterrupted(
    forks: Forks, material: Material, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What a case finds when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("uninterrupted")

    @cache
    def found(name: str) -> dict[str, Any]:
        job, settings, _ = CASES[name]
        run = folder / name.replace(":", "").replace(" ", "-")
        ended = forks.run(COMMANDS[job](material, run, settings), log=folder / "log")
        assert ended.code == 0, described(ended)
        return result(run)

    return found


Found = Callable[[str], dict[str, Any]]


def last_step(found: dict[str, Any]) -> int:
    return int(found["log.json"][-1]["step"])


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_logs_decides_and_learns_the_same(
    forks: Forks, material: Material, uninterrupted: Found, tmp_path: Path, name: str
) -> None:
    job, settings, steps = CASES[name]
    expected = uninterrupted(name)
    assert max(steps) < last_step(expected)
    arguments = COMMANDS[job](material, tmp_path / "killed", settings)
    for step in steps:
        killed = forks.run(arguments, log=tmp_path / "log", step=step)
        assert killed.code == -signal.SIGKILL, described(killed)
    assert_resumes(forks, arguments, expected, tmp_path / "killed")


@pytest.mark.parametrize("name", ["unlearn: patience", "finetune: stop loss at a checkpoint", "unlearn: steps"])
def test_a_run_that_was_killed_after_its_last_checkpoint_trains_no_further(
    forks: Forks, material: Material, uninterrupted: Found, tmp_path: Path, name: str
) -> None:
    job, settings, _ = CASES[name]
    expected = uninterrupted(name)
    arguments = COMMANDS[job](material, tmp_path / "killed", settings)
    killed = forks.run(arguments, log=tmp_path / "log", saved=last_step(expected))
    assert killed.code == -signal.SIGKILL, described(killed)
    assert_resumes(forks, arguments, expected, tmp_path / "killed")


@pytest.mark.parametrize("name", ["unlearn: patience", "finetune: stop loss at a checkpoint", "unlearn: bounded"])
def test_a_run_that_was_stopped_at_any_step_ends_the_same(
    forks: Forks, material: Material, uninterrupted: Found, tmp_path: Path, name: str
) -> None:
    """Also between checkpoints, and at the step at which it would have ended."""
    job, settings, steps = CASES[name]
    expected = uninterrupted(name)
    arguments = COMMANDS[job](material, tmp_path / "stopped", settings)
    for step in (steps[0], last_step(expected)):
        stopped = forks.run(arguments, log=tmp_path / "log", step=step, send=signal.SIGTERM)
        assert stopped.code == 143, described(stopped)
        assert f"grun: stopped after step {step};" in stopped.said
    assert_resumes(forks, arguments, expected, tmp_path / "stopped")


def test_a_run_that_was_moved_still_finds_its_best_checkpoint(
    forks: Forks, material: Material, uninterrupted: Found, tmp_path: Path
) -> None:
    name = "unlearn: it gets worse"
    expected = uninterrupted(name)
    scores = {entry["step"]: entry["eval_score"] for entry in expected["log.json"] if "eval_score" in entry}
    assert max(scores, key=lambda step: scores[step]) < 20
    _, settings, (saved,) = CASES[name]
    arguments = unlearn(material, tmp_path / "killed", settings)
    assert forks.run(arguments, log=tmp_path / "log", saved=saved).code == -signal.SIGKILL
    shutil.move(tmp_path / "killed", tmp_path / "moved")
    assert_resumes(forks, unlearn(material, tmp_path / "moved", settings), expected, tmp_path / "moved")


def test_names_of_modules_are_written_in_one_order(uninterrupted: Found) -> None:
    """Processes have different orders of sets."""
    written = json.loads(uninterrupted("unlearn: it gets worse")["adapter/adapter_config.json"])["target_modules"]
    assert written == sorted(written)
