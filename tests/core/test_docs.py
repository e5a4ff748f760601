"""The documents say what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

import grun

ROOT = Path(__file__).parents[2]
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_the_objective_in_the_document_works_as_it_stands(tmp_path: Path) -> None:
    code = re.search(r"```python\n(# src/grun/training/objectives/margin.py\n.*?)```", EXTENDING, re.DOTALL)
    assert code is not None
    check = """
import torch
from grun.core.records import SideSignals

quantities = {"logps": torch.tensor([-1.0, -2.0]), "ref_logps": torch.zeros(2)}
signals = Signals({"forget": SideSignals(torch.ones(1, 2).bool(), quantities)})
assert objectives.get("margin").target(signals).item() == 0.0
assert objectives.get("margin").target(signals, width=5.0).item() == 2.0
"""
    (tmp_path / "margin.py").write_text(code[1] + check)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, str(tmp_path / "margin.py")], check=True, env=environment)


def test_the_citation_and_the_policy_name_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == grun.__version__
    major, minor, _ = grun.__version__.split(".")
    assert f"| {major}.{minor}.x | yes |" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
