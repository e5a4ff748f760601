"""A full disk is one line, and the same command goes on once there is room; every command that writes, at several points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from grun.cli.main import main
from grun.core.storage.directories import disk
from grun.core.storage.run_directory import RunDirectory
from jobs.test_import_reference import LAYERS, name, state
from support.material import Material
from support.small_disks import limited

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"
TOO_LARGE = 10**9
LIMITS = (0, 3000, 120_000)  # bytes of a file: before the list, after the records, after an adapter
Usage = namedtuple("Usage", "total used free")


def command(job: str, material: Material, folder: Path) -> list[str]:
    model, rows = str(material.model), [f"--forget={material.forget}", f"--retain={material.retain}"]
    few = ["--steps=4", "--evaluate-every=2", "--batch-size=4", "--objective=gd"]
    sizes = ["--hidden-size=32", "--layers=2", "--heads=2", "--vocab-size=300", "--epochs=1", "--save-every=1"]
    earlier = [
        f"--model={EARLIER / 'model'}",
        f"--adapter={EARLIER / 'unlearned'}",
        f"--normal={EARLIER / 'normal.jsonl'}",
    ]
    found = {
        "unlearn": [f"--model={model}", *rows, *few, "--adapt=lora"],
        "full": [f"--model={model}", *rows, *few, "--adapt=full"],
        "finetune": [f"--data={material.retain}", *sizes, "--batch-size=8"],
        "evaluate": [
            f"--model={model}",
            f"--data=forget={material.forget}",
            "--max-new-tokens=2",
            "--metrics=probability",
        ],
        "calibrate": [*earlier, "--alpha=0.2", "--delta=0.3"],
        "import": [f"--model={model}", f"--checkpoint={folder / 'checkpoint'}"],
        "expand": [f"--model={model}", "--topic=Lund", "--force-topic"],
        "compare": [str(EARLIER / "evaluation"), str(EARLIER / "evaluation_first")],
    }[job]
    return [{"full": "unlearn"}.get(job, job), *found, *([] if job == "compare" else ["--device=cpu"])]


def write_checkpoint(folder: Path) -> None:
    folder.mkdir()
    for layer in LAYERS:
        torch.save(state(32, "linear", torch.Generator().manual_seed(layer)), folder / name(layer))


JOBS = ("unlearn", "full", "finetune", "evaluate", "calibrate", "import", "expand", "compare")


@pytest.mark.parametrize("job", JOBS)
def test_every_command_says_so_in_one_line_and_goes_on(material: Material, tmp_path: Path, job: str) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    refused = 0
    output = tmp_path / "run"
    for limit in LIMITS:
        code, said = limited([*command(job, material, tmp_path), "--output", str(output)], limit)
        assert "Traceback" not in said, said
        assert code in (0, 1), said
        if code == 0:
            break
        refused += 1
        assert (
            said.strip().splitlines()[-1].startswith(f"grun: --output '{output}' cannot be written: File too large")
        ), said
        assert "free" in said
        assert [file for file in output.rglob("*.tmp")] == []
    assert refused >= 2
    code, said = limited([*command(job, material, tmp_path), "--output", str(output)], None)
    assert code == 0, said


def test_a_checkpoint_that_does_not_fit_is_removed(material: Material, tmp_path: Path) -> None:
    job = [*command("full", material, tmp_path), "--output", str(tmp_path / "run")]
    code, said = limited(job, 300_000)  # enough for the weights, and not for the states of the optimiser
    assert code == 1, said
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert limited(job, None)[0] == 0


@pytest.mark.parametrize("limit", [0, 3000])
def test_a_ledger_stays_as_it_was(tmp_path: Path, limit: int) -> None:
    shutil.copytree(EARLIER / "ledger", tmp_path / "ledger")
    record = (tmp_path / "ledger" / "ledger.json").read_bytes()
    ledger = ["--ledger", str(tmp_path / "ledger")]
    calibrate = [
        "--model",
        str(EARLIER / "model"),
        "--normal",
        str(EARLIER / "normal.jsonl"),
        "--alpha",
        "0.2",
        "--delta",
        "0.3",
    ]
    for arguments in (
        ["suspend", "r0001"],
        ["withdraw", "r0002"],
        ["export", str(tmp_path / "out")],
        ["calibrate", *calibrate, "--device", "cpu"],
    ):
        code, said = limited(["request", *arguments, *ledger], limit)
        assert "Traceback" not in said, said
        if code == 0:
            shutil.copyfile(EARLIER / "ledger" / "ledger.json", tmp_path / "ledger" / "ledger.json")
            continue
        assert code == 1, said
        assert "cannot be written: File too large" in said.strip().splitlines()[-1]
        assert (tmp_path / "ledger" / "ledger.json").read_bytes() == record
        assert not [file for file in tmp_path.rglob("*") if file.suffix == ".tmp" or file.name.startswith(".out")]
    assert main(["request", "list", *ledger]) == 0


def test_too_little_room_is_found_before_the_work(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 5000, 5000))
    for job in ("unlearn", "full", "finetune"):
        output = tmp_path / job
        assert main([*command(job, material, tmp_path), "--output", str(output)]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "4.9 KiB free" in said
        assert "the run writes about" in said
        assert not output.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded"),
        (OSError(27, "File too large"), "File too large"),
        (OSError(30, "Read-only file system", "RUN/log.json"), "Read-only file system"),
        (PermissionError(13, "Permission denied", "RUN/checkpoints/checkpoint-2/optimizer.pt"), "Permission denied"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"), "No space left"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "No space left"),
        (ValueError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "No space left on device"),
    ],
)
def test_errors_of_all_libraries_are_recognised(tmp_path: Path, error: Exception, said: str) -> None:
    if getattr(error, "filename", None):
        error.filename = str(error.filename).replace("RUN", str(tmp_path))  # type: ignore[attr-defined]
    assert said in str(disk.reason_of(error, tmp_path))
    outer = RuntimeError("training failed")
    outer.__cause__ = error
    assert said in str(disk.reason_of(outer, tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        FileNotFoundError(2, "No such file or directory", "x"),
        PermissionError(13, "Permission denied", "/elsewhere/model.safetensors"),
        RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ],
)
def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path, error: Exception) -> None:
    assert disk.reason_of(error, tmp_path) is None


@pytest.fixture
def small_disk(tmp_path: Path) -> list[str]:
    """A command line before which `tmp_path/disk` is a file system of 300 KiB."""
    (tmp_path / "disk").mkdir()
    mount = f"mount -t tmpfs -o size=300k tmpfs '{tmp_path / 'disk'}' && exec \"$@\""
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine permits no small file system (unshare, mount)")
    return prefix


def test_a_small_file_system(small_disk: list[str], material: Material, tmp_path: Path) -> None:
    job = [*command("evaluate", material, tmp_path), "--output", str(tmp_path / "disk" / "run")]
    fill = f'head -c 290000 /dev/zero > {tmp_path / "disk" / "full"}; exec "$@"'
    done = subprocess.run(
        [*small_disk, "sh", "-c", fill, "sh", sys.executable, "-m", "grun", *job],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_room_counts_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path, {}, {})
    (tmp_path / "checkpoint").write_bytes(bytes(4000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6, 1000))
    disk.check_room(run.path, 4900)
    with pytest.raises(ValueError, match="the run writes about"):
        disk.check_room(run.path, 5100)
