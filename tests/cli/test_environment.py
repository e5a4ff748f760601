"""Environment variables: each is declared, shown, and read by the commands; threads follow the model and the environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grun
from grun.cli.help_pages import EXIT_CODES
from grun.cli.main import main
from grun.core.config.jobs import EvaluateConfig, SweepConfig, UnlearnConfig
from grun.core.process.environment import DATA_FOLDERS, VARIABLES, with_default_data
from grun.data.benchmarks import benchmarks
from grun.jobs.inputs.sweep_grid import cells_of
from support.material import Material

ROOT = Path(grun.__file__).parent
GUIDE = (ROOT.parents[1] / "docs" / "guide.md").read_text(encoding="utf-8")
NAMES = {variable.name for variable in VARIABLES}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def test_every_variable_of_grun_in_the_source_is_declared() -> None:
    found = {name for file in ROOT.rglob("*.py") for name in re.findall(r"\bGRUN_[A-Z_]+\b", file.read_text())}
    assert found == {name for name in NAMES if name.startswith("GRUN_")}


def test_the_help_and_the_guide_name_every_variable_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"^  {name} ", page, re.MULTILINE)
        assert f"`{name}`" in GUIDE
    for code in EXIT_CODES:
        assert re.search(rf"^  {code} ", page, re.MULTILINE)
        assert f"| {code} |" in GUIDE


@pytest.mark.parametrize(
    ("command", "named", "unnamed"),
    [
        ("unlearn", {"GRUN_TOFU_DIR", "GRUN_CACHE_DIR", "OMP_NUM_THREADS"}, {"NO_COLOR"}),
        ("evaluate", {"GRUN_WMDP_DIR", "HF_HOME"}, set()),
        ("chat", {"GRUN_CACHE_DIR", "OMP_WAIT_POLICY"}, {"GRUN_TOFU_DIR"}),
    ],
)
def test_pages_name_the_variables_of_their_settings(
    command: str, named: set[str], unnamed: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = set(re.findall(r"^  ([A-Z_]{4,})  ", capsys.readouterr().out, re.MULTILINE))
    assert named <= shown
    assert not unnamed & shown


@pytest.mark.parametrize("benchmark", DATA_FOLDERS)
def test_folders_of_benchmarks_are_the_default_of_data_dir(
    benchmark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "data_dir" in benchmarks.get(benchmark).parameters
    folder, other = tmp_path / "named", tmp_path / "given"
    for one in (folder, other):
        one.mkdir()
    monkeypatch.setenv(DATA_FOLDERS[benchmark], str(folder))
    for command in ("unlearn", "evaluate", "finetune"):
        asked = [
            command,
            "--model",
            str(tmp_path / "absent"),
            "--benchmark",
            benchmark,
            "--output",
            str(tmp_path / "o"),
        ]
        assert main(asked) == 2
        assert str(folder) in capsys.readouterr().err
        assert main([*asked, "--data-dir", str(other)]) == 2
        assert str(other) in capsys.readouterr().err
    sweep = SweepConfig(vary={"objective": "npo"}, set={"benchmark": benchmark, "model": "m"})
    assert all(cell.evaluate.data_dir == str(folder) for cell in cells_of(sweep, tmp_path))
    job = with_default_data(UnlearnConfig(benchmark=benchmark))
    assert job.data_dir == str(folder)
    assert with_default_data(EvaluateConfig(benchmark=benchmark, data_dir="x")).data_dir == "x"
    assert with_default_data(EvaluateConfig()).data_dir is None
    monkeypatch.setenv(DATA_FOLDERS[benchmark], "")
    assert with_default_data(UnlearnConfig(benchmark=benchmark)).data_dir is None


TRAIN = """
import json, sys
from grun.cli.main import main
assert main(json.loads(sys.argv[1])) == 0
"""


def train(arguments: list[str], output: Path, **environment: str) -> dict:
    """The machine in the record of a run in a real process."""
    clean = {name: value for name, value in os.environ.items() if name not in THREADS}
    clean["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", TRAIN, json.dumps([*arguments, "--output", str(output)])]
    subprocess.run(command, env=clean | environment, check=True, capture_output=True, timeout=120)
    return json.loads((output / "run.json").read_text())["machine"]


def test_a_small_model_has_one_thread_that_waits_passively_unless_told_otherwise(
    material: Material, tmp_path: Path
) -> None:
    small = ["--vocab-size", "300", "--hidden-size", "16", "--layers", "1", "--heads", "2", "--epochs", "1"]
    arguments = ["finetune", "--data", str(material.forget), *small]
    own = train(arguments, tmp_path / "own")
    assert (own["threads"], own["wait_policy"]) == (1, "passive")
    told = train(arguments, tmp_path / "told", OMP_NUM_THREADS="2", OMP_WAIT_POLICY="active")
    assert (told["threads"], told["wait_policy"]) == (2, "active")
    again = train(arguments, tmp_path / "again")
    assert again == own
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("own", "again")]
    assert weights[0] == weights[1]
