"""Commands that only read names and records start without torch; a real process shows what was imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LEDGER = Path(__file__).parents[1] / "golden" / "earlier" / "ledger"
HEAVY = ("torch", "transformers", "peft", "numpy", "scipy", "datasets", "pyarrow", "huggingface_hub")
RUN = """
import json, sys
from grun.cli.main import main
code = main(json.loads(sys.argv[1]))
loaded = sorted(set(json.loads(sys.argv[2])) & sys.modules.keys())
sys.exit(f"{loaded} were imported" if loaded else code)
"""


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, json.dumps(arguments), json.dumps(HEAVY)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LEDGER, tmp_path / "ledger"))


def first_id(ledger: Path) -> str:
    return str(json.loads((ledger / "ledger.json").read_text())["requests"][0]["id"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("list",), 0),
        (("list", "--json"), 0),
        (("list", "--verbose"), 0),
        (("unlearn", "--help"), 0),
        (("request", "--help"), 0),
        (("unlearn", "--objectiv", "npo"), 2),
        (("unlearn", "--steps", "many"), 2),
        (("unlearn", "--config", "absent.yaml"), 2),
        (("lst",), 2),
        (("request", "list", "--ledger", "absent"), 2),
        (("request", "export", "out"), 2),
    ],
)
def test_names_pages_and_wrong_flags_do_not_wait_for_torch(arguments: tuple[str, ...], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("command", ["list", "show ID", "suspend ID", "withdraw ID", "show nobody", "suspend nobody"])
def test_ledgers_are_read_and_changed_without_torch(command: str, ledger: Path) -> None:
    arguments = [first_id(ledger) if word == "ID" else word for word in command.split()]
    done = run("request", *arguments, "--ledger", str(ledger), "--json")
    assert done.returncode == (2 if "nobody" in command else 0), done.stderr


def test_completion_does_not_wait_for_torch() -> None:
    done = run(_GRUN_COMPLETE="complete_bash", COMP_WORDS="grun unlearn --objective n", COMP_CWORD="3")
    assert (done.returncode, done.stdout.split()) == (0, ["npo"])


def test_an_objective_of_another_distribution_is_listed_without_its_parents(tmp_path: Path) -> None:
    package = tmp_path / "brought"
    package.mkdir()
    (package / "__init__.py").write_text("import torch\n")
    (package / "leaf.py").write_text(
        'import torch\n@objectives.register("margin", needs=())\ndef margin(signals):\n    """Keep a distance."""\n'
    )
    described = tmp_path / "brought-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[grun.objectives]\nmargin = brought.leaf\n")
    done = run("list", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert done.returncode == 0, done.stderr
    assert "Keep a distance." in done.stdout
