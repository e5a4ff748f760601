"""A new leaf of any kind is one file: a copy of the package with a dummy of each finds, lists and uses them all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import grun
from grun.core.choices import KINDS
from support.material import Material

OBJECTIVE = '''
from grun.training.objectives import objectives

@objectives.register("dummy", paper="none", needs=("forget.logps",), retain="kl")
def dummy(signals, *, scale: float = 1.0):
    """Do nothing in particular."""
    return scale * signals.forget.mean_nll
'''
RETAIN_LOSS = '''
from grun.training.objectives import retain_losses

@retain_losses.register("dummy_retain", needs=("logps",))
def dummy_retain(retain):
    """A dummy retain loss."""
    return 0.0 * retain.mean_nll + 0.25
'''
ADAPTATION = '''
from peft import IA3Config, get_peft_model

from grun.models.adaptations import adaptations

PRESET = {"steps": 2, "learning_rate": 1e-2, "evaluate_every": 2}
NO_GATE = {"fit_gate_first": False, "calibrate": False, "gate_weight": 0.0}

@adaptations.register("dummy", settings=(), presets={"default": PRESET | NO_GATE})
def dummy(model, config):
    """A dummy adaptation."""
    return get_peft_model(model, IA3Config(task_type="CAUSAL_LM", base_model_name_or_path=config.model))
'''
BENCHMARK = '''
from grun.core.records import Benchmark, Example
from grun.data.benchmarks import benchmarks

@benchmarks.register("dummy")
def dummy(*, count: int = 6) -> Benchmark:
    """A dummy benchmark."""
    splits = {
        name: tuple(Example(f"What is {name} {i}?", f"It is {i}.", source=f"dummy, row {i}") for i in range(count))
        for name in ("forget", "retain")
    }
    return Benchmark("dummy", splits, "forget", "retain", tuple(splits), tuple(splits), utility={"retain": False})
'''
METRIC = '''
from grun.evaluation.metrics import mean_score, metrics

@metrics.register("dummy", label="dummy", range=(0.0, 1.0), forget="lower", normal="higher", needs=("generated",))
def dummy(evidence):
    """A dummy metric."""
    return mean_score([0.5 for _ in evidence.rows])
'''
SUMMARY = '''
from grun.core.records import Score
from grun.evaluation.metrics import summaries

@summaries.register("dummy_summary", label="dummy summary", range=(0.0, 9.0), needs=("generated",))
def dummy_summary(splits, *, utility):
    """A dummy summary."""
    return Score(float(len(splits)), len(splits))
'''
ATTACK = '''
from grun.evaluation.attacks import attacks
from grun.evaluation.attacks.asking import asked_otherwise

@attacks.register("dummy", measures="leak", source="none", needs=())
def dummy(material, *, more: str = "!"):
    """A dummy attack."""
    return asked_otherwise(material, lambda prompt, name, draw: {"": prompt + more})
'''
ENGINE = '''
import subprocess

from grun.jobs.engines import Outcome, engines

@engines.register("dummy")
def dummy(tasks, settings):
    """A dummy engine."""
    for task in tasks:
        with task.log.open("ab") as log:
            log.write(b"begun by the dummy engine\\n")
            log.flush()
            process = subprocess.Popen(task.command, stdin=subprocess.PIPE, stdout=log, stderr=log)
            yield Outcome(task, process.wait())
'''
LEAVES = {
    "training/objectives/dummy.py": OBJECTIVE,
    "training/objectives/dummy_retain.py": RETAIN_LOSS,
    "models/adaptations/dummy.py": ADAPTATION,
    "data/benchmarks/dummy.py": BENCHMARK,
    "evaluation/metrics/dummy.py": METRIC,
    "evaluation/metrics/dummy_summary.py": SUMMARY,
    "evaluation/attacks/wording/dummy.py": ATTACK,
    "jobs/engines/dummy.py": ENGINE,
}


@dataclass(frozen=True)
class Copy:
    """A copy of the package with one more file per kind of leaf.

    Attributes:
        folder: holds the package, and what its commands write.
    """

    folder: Path

    def grun(self, *arguments: str) -> str:
        """Run a command, and give what it said."""
        command = [sys.executable, "-m", "grun", *arguments]
        environment = {"PYTHONPATH": str(self.folder), "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"GRUN_CACHE_DIR": str(self.folder / "cache")}
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def read(self, name: str) -> Any:
        """A JSON file that a command wrote."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(grun.__file__).parent, folder / "grun", ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in LEAVES.items():
        file = folder / "grun" / name
        assert not file.exists()
        file.write_text(f'"""A leaf."""\n{code}')
    return Copy(folder)


def test_there_is_a_dummy_of_every_kind() -> None:
    folders = {kind.package.removeprefix("grun.").replace(".", "/") for kind in KINDS.values()}
    assert folders == {folder for name in LEAVES for folder in folders if name.startswith(f"{folder}/")}


def test_new_leaves_are_listed_and_named_in_help(copy: Copy) -> None:
    listed = copy.grun("list")
    assert "dummy  " in listed
    assert "Do nothing in particular." in listed
    for kind in KINDS.values():
        _, _, entries = listed.partition(f"{kind.title} (")
        entries = entries.partition(":\n")[2].partition(" (--")[0]
        summary = "Do nothing in particular." if kind.name == "objective" else f"A dummy {kind.name}."
        assert re.search(rf"^  dummy\w* +{re.escape(summary)}$", entries, re.MULTILINE), f"no {kind.name}"
    assert "dummy" in copy.grun("unlearn", "--help")


def test_a_new_objective_is_one_file(copy: Copy, material: Material) -> None:
    paths = ("--model", str(material.model), "--forget", str(material.forget), "--retain", str(material.retain))
    small = ("--layers", "1,3", "--topic-layer", "none", "--steps", "2", "--batch-size", "4", "--device", "cpu")
    options = ("--objective", "dummy", "--objective-options", "scale=2", "--output", "run")
    assert "The result is in" in copy.grun("unlearn", *paths, *small, *options)
    assert copy.read("run/settings.json")["objective"] == "dummy"


@pytest.fixture(scope="module")
def sweep(copy: Copy, material: Material) -> Path:
    """A sweep with all of them: the model itself and one unlearned, each measured. The directory of the latter's runs."""
    chosen = {"model": str(material.model), "benchmark": "dummy", "adapt": "dummy", "retain_loss": "dummy_retain"}
    chosen |= {"benchmark_options": "count=8", "device": "cpu", "batch_size": "4", "trainer": "logging_steps=1"}
    settings = [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
    measured = ["--evaluate", "max_new_tokens=3", "--evaluate", "figures=false"]
    varied = ["--vary", "objective=dummy"]
    copy.grun("sweep", "--engine", "dummy", "--output", "sweep", *varied, *settings, *measured)
    return Path("sweep") / "runs" / "objective=dummy"


def test_a_new_retain_loss_adaptation_and_benchmark_are_one_file_each(copy: Copy, sweep: Path) -> None:
    used = copy.read(f"{sweep}/unlearn/settings.json")
    assert (used["adapt"], used["benchmark"], used["retain_loss"]) == ("dummy", "dummy", "dummy_retain")
    first = copy.read(f"{sweep}/unlearn/log.json")[0]
    assert first["loss_retain"] == 0.25
    facts = copy.read(f"{sweep}/unlearn/metrics.json")
    assert facts["rows"]["forget"] == 8
    assert copy.read(f"{sweep}/unlearn/adapter/adapter_config.json")["peft_type"] == "IA3"


def test_a_new_metric_and_a_new_summary_are_one_file_each(copy: Copy, sweep: Path) -> None:
    found = copy.read(f"{sweep}/evaluation/metrics.json")
    assert {split: own["metrics"]["dummy"]["after"]["value"] for split, own in found["splits"].items()} == {
        "forget": 0.5,
        "retain": 0.5,
    }
    assert found["summaries"]["dummy_summary"]["after"]["value"] == 2.0
    assert "dummy" in (copy.folder / sweep / "evaluation" / "table.md").read_text()


def test_a_new_engine_is_one_file(copy: Copy, sweep: Path) -> None:
    logs = sorted((copy.folder / "sweep" / "runs").glob("*/output.log"))
    assert len(logs) == 2
    assert all(log.read_text().startswith("begun by the dummy engine\n") for log in logs)
    assert len(copy.read("sweep/results.json")) == 2
