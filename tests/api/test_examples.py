"""Every example runs as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.material import Material

# Few prompts ship, so that a model is asked about them quickly; the example is the file as it stands.
RUN = """
import runpy, sys
from support.few_prompts import ship_few
ship_few()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_runs(example: Path, memorised: Material, tmp_path: Path) -> None:
    given = [str(memorised.model), str(memorised.forget), str(memorised.retain)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, str(example), *given]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "forget probability after" in done.stdout


def test_the_first_example_is_short() -> None:
    code = EXAMPLES[-1].read_text().partition('"""\n\n')[2]
    assert EXAMPLES[-1].name == "unlearn_loaded_model.py"
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
