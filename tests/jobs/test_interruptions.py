"""Real processes, killed or interrupted at any moment: the same command resumes to the same result, byte for byte.

Every stopping rule, signal and job: tests/robustness.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.material import Material

STEPS = 60


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "grun", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(arguments: list[str]) -> None:
    process = start(arguments)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def unlearn(material: Material, output: Path) -> list[str]:
    paths = {"model": material.model, "forget": material.forget, "retain": material.retain, "output": output}
    flags = [part for name, value in paths.items() for part in (f"--{name}", str(value))]
    settings = ["--steps", str(STEPS), "--evaluate-every", "5", "--batch-size", "4", "--device", "cpu"]
    return ["unlearn", *flags, *settings, "--layers", "1,3", "--objective", "idk", "--topic-layer", "none"]


def interrupt(process: subprocess.Popen[str], run: Path, how: int, checkpoint: int) -> str:
    """Send a signal once a checkpoint was begun; returns what the process said."""
    deadline = time.monotonic() + 90
    while not (run / "checkpoints" / f"checkpoint-{checkpoint}").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


@pytest.fixture(scope="module")
def uninterrupted(material: Material, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(unlearn(material, run))
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_killed_run_resumes_to_the_same_adapter(material: Material, uninterrupted: bytes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for checkpoint in (5, 25):
        process = start(unlearn(material, run))
        interrupt(process, run, signal.SIGKILL, checkpoint)
        assert process.returncode == -signal.SIGKILL
        assert not (run / "adapter").exists()
    finish(unlearn(material, run))
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == uninterrupted
    assert not (run / "checkpoints").exists()


def test_control_c_keeps_the_state_and_says_how_to_resume(
    material: Material, uninterrupted: bytes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(unlearn(material, run))
    said = interrupt(process, run, signal.SIGINT, 10)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("grun: stopped after step ")
    assert str(run) in last
    assert "Run the same command to resume" in last
    finish(unlearn(material, run))
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == uninterrupted
