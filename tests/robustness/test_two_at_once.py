"""Two processes never write to one directory at once, and a refused command leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from grun.cli.main import main
from grun.core.config.jobs import UnlearnConfig
from grun.core.errors import UserError
from grun.core.storage.claims import claimed, claims_output
from grun.core.storage.directories.layout import LOCK
from grun.core.storage.run_directory import RunDirectory
from support.material import Material

HOLD = """
import sys, time
from grun.core.storage.claims import claimed, claims_output
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """Another process that has claimed a directory."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], env=environment, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def commands(material: Material, output: Path) -> dict[str, list[str]]:
    """One correct command of every job that writes to a directory, up to where the lock is taken."""
    model, rows = str(material.model), str(material.forget)
    return {
        "unlearn": ["--model", model, "--forget", rows, "--retain", str(material.retain)],
        "finetune": ["--data", rows],
        "evaluate": ["--model", model, "--data", f"forget={rows}"],
        "calibrate": ["--model", model, "--adapter", model, "--normal", rows],
        "import": ["--model", model, "--checkpoint", model],
        "expand": ["--topic", "Lund", "--model", model],
        "demo": ["--model", model],
        "sweep": ["--vary", "seed=0,1", "--set", f"model={model}", "--set", f"forget={rows}"],
    }


@pytest.mark.parametrize("there", [True, False], ids=["there", "new"])
def test_the_second_command_fails_at_once(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    output = tmp_path / "run"
    if there:
        output.mkdir()
    process = holding(output)
    try:
        evaluations = [str(Path(__file__).parents[1] / "golden" / "earlier" / "evaluation")] * 2
        for name, settings in [*commands(material, output).items(), ("compare", evaluations)]:
            started = time.monotonic()
            assert main([name, *settings, "--output", str(output)]) == 2, name
            said = capsys.readouterr().err.strip().splitlines()[-1]
            assert said.startswith(f"grun: another process ({process.pid}) is writing in --output"), said
            assert str(output) in said
            assert time.monotonic() - started < 20
        assert [file.name for file in output.iterdir()] == [LOCK]
    finally:
        ended(process)
    with claimed(output):  # a killed holder is no obstacle
        pass
    assert not (output / LOCK).exists()


def test_two_different_runs_at_once(material: Material, tmp_path: Path) -> None:
    """Real processes of two different runs: one of them makes the whole directory, the other is refused."""
    output = tmp_path / "run"
    files = ["--model", str(material.model), "--forget", str(material.forget), "--retain", str(material.retain)]
    small = ["--adapt", "lora", "--steps", "1", "--batch-size", "4", "--device", "cpu", "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "grun", "unlearn", *files, *small, "--objective", objective],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for objective in ("gd", "npo")
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2], said
    winner = ("gd", "npo")[[process.returncode for process in both].index(0)]
    assert f'"objective": "{winner}"' in (output / "settings.json").read_text()
    assert "Traceback" not in "".join(said)
    assert not (output / LOCK).exists()


def test_threads_of_one_process_count_as_two(tmp_path: Path) -> None:
    found: list[BaseException] = []

    def other() -> None:
        try:
            with claimed(tmp_path / "run"):
                pass
        except UserError as error:
            found.append(error)

    with claimed(tmp_path / "run"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
    assert str(os.getpid()) in str(found[0])


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), UserError("theirs"), SystemExit(1)])
def test_an_error_releases_the_directory_and_leaves_no_empty_one(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), claimed(tmp_path / "a" / "b" / "run"):
        raise error
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(type(error)), claimed(tmp_path / "there"):
        raise error
    assert list((tmp_path / "there").iterdir()) == []


def test_other_processes_of_a_distributed_launch_do_not_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed(tmp_path / "run"):
        monkeypatch.setenv("RANK", "1")
        with claimed(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / LOCK).exists()


def test_the_lock_of_a_killed_process_is_no_content(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("1 elsewhere\n")
    RunDirectory.open(tmp_path, UnlearnConfig(), "unlearn").start()


def test_what_is_refused_late_leaves_nothing_and_does_not_block(tmp_path: Path) -> None:
    """A refusal after the run was begun: nothing is left of a new run, everything of an earlier one."""
    output = tmp_path / "run"

    @claims_output
    def refused_late(config: UnlearnConfig) -> None:
        run = RunDirectory.open(config.output, config, "unlearn")
        run.start()
        if config.seed == 0:
            run.write_json("gates.json", {})
        raise UserError("too late")

    with pytest.raises(UserError):
        refused_late(UnlearnConfig(output=str(output)))
    assert not output.exists()
    with claimed(output):
        RunDirectory.open(output, UnlearnConfig(seed=1), "unlearn").start()
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    with pytest.raises(UserError):
        refused_late(UnlearnConfig(seed=1, output=str(output)))
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_exports_at_once_are_refused(tmp_path: Path) -> None:
    from grun.requests.exports import exported

    with exported(tmp_path / "out") as folder:
        (folder / "adapter_config.json").write_text("{}")
        with (
            pytest.raises(UserError, match=f"another process \\({os.getpid()}\\) is writing"),
            exported(tmp_path / "out"),
        ):
            pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]
