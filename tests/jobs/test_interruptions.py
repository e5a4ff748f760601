"""Real processes, killed or interrupted at any moment: the same command resumes to the same result, byte for byte."""

from __future__ import annotations

import json
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


def unlearn(material: Material, output: Path, *more: str) -> list[str]:
    paths = {"model": material.model, "forget": material.forget, "retain": material.retain, "output": output}
    flags = [part for name, value in paths.items() for part in (f"--{name}", str(value))]
    settings = ["--steps", str(STEPS), "--evaluate-every", "5", "--batch-size", "4", "--device", "cpu"]
    return ["unlearn", *flags, *settings, *(more or ("--layers", "1,3", "--objective", "idk", "--topic-layer", "none"))]


def interrupt(process: subprocess.Popen[str], run: Path, how: int, checkpoint: int, pause: float = 0.0) -> str:
    """Send a signal once a checkpoint was begun (and some seconds later); returns what the process said."""
    deadline = time.monotonic() + 90
    while not (run / "checkpoints" / f"checkpoint-{checkpoint}").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(pause)
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


def test_what_callbacks_remember_survives_a_kill(material: Material, tmp_path: Path) -> None:
    """The dual variable and the count of validations without a better state; killed between two checkpoints."""
    settings = ["--objective", "pdu", "--adapt", "lora", "--retain-bound", "1", "--dual-warmup", "0", "--patience", "7"]
    finish(unlearn(material, tmp_path / "whole", *settings))
    process = start(unlearn(material, tmp_path / "killed", *settings))
    interrupt(process, tmp_path / "killed", signal.SIGKILL, 15, pause=0.03)
    finish(unlearn(material, tmp_path / "killed", *settings))
    runs = [tmp_path / name for name in ("whole", "killed")]
    one, two = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs)
    assert one == two
    logs = [json.loads((run / "log.json").read_text()) for run in runs]
    weights = [[entry["loss_retain_weight"] for entry in log if "loss_retain_weight" in entry] for log in logs]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) > 3


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


def test_a_killed_target_model_resumes_to_the_same_weights(material: Material, tmp_path: Path) -> None:
    def finetune(output: Path) -> list[str]:
        sizes = ["--hidden-size", "32", "--layers", "2", "--heads", "2", "--vocab-size", "300", "--epochs", "8"]
        data = ["--data", str(material.retain), "--output", str(output), "--batch-size", "4", "--save-every", "5"]
        return ["finetune", *sizes, *data, "--device", "cpu"]

    finish(finetune(tmp_path / "whole"))
    process = start(finetune(tmp_path / "killed"))
    interrupt(process, tmp_path / "killed", signal.SIGKILL, 10)
    finish(finetune(tmp_path / "killed"))
    whole, resumed = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed"))
    assert whole == resumed
