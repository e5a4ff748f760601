"""The contract of every leaf with its readers: the documents and `grun list` say what it is."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grun.core.registry import Entry
from grun.data.benchmarks import benchmarks
from grun.evaluation.attacks import attacks
from grun.evaluation.metrics import metrics, summaries
from grun.models.adaptations import adaptations
from grun.training.objectives import objectives, retain_losses

ROOT = Path(__file__).parents[2]
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", [*objectives, *retain_losses], ids=lambda entry: entry.name)
def test_every_objective_is_in_the_table_with_its_paper_and_defaults(entry: Entry[Any]) -> None:
    line = next(line for line in METHOD.splitlines() if line.startswith(f"| `{entry.name}` |"))
    for number in re.findall(r"arXiv (\d{4}\.\d{5})", entry.info.get("paper", "") if "retain" in entry.info else ""):
        assert number in line
    for parameter in entry.parameters.values():
        assert f"{parameter.default:g}" in line
    if entry.info.get("forget_weight"):
        assert f"weight {entry.info['forget_weight']:g}" in line


def tables() -> ModuleType:
    """`docs/tables.py`, which writes the tables."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", ["method.md", "metrics.md", "attacks.md"])
def test_tables_are_as_what_is_registered(document: str) -> None:
    script = tables()
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert script.updated(text, script.DOCUMENTS[document]) == text, (
        f"docs/{document} is stale; write its tables anew: python docs/tables.py"
    )


def test_a_table_has_one_place_and_its_cells_are_escaped() -> None:
    script = tables()
    with pytest.raises(ValueError, match="expected one <!-- metrics: written by docs/tables.py -->"):
        script.updated("no place", ["metrics"])
    rows = [("name", "source"), ("`|x|`", "arXiv 2401.06121")]
    linked = "arXiv [2401.06121](https://arxiv.org/abs/2401.06121)"
    assert script.markdown(rows) == f"| name | source |\n| --- | --- |\n| `\\|x\\|` | {linked} |\n"


@pytest.mark.parametrize("entry", [*metrics, *summaries], ids=lambda entry: entry.name)
def test_every_metric_names_its_blind_spot(entry: Entry[Any]) -> None:
    assert any(text.startswith("Blind spot: ") for text in tables().paragraphs(entry))


@pytest.mark.parametrize("entry", [*benchmarks], ids=lambda entry: entry.name)
def test_every_option_of_a_benchmark_is_described(entry: Entry[Any]) -> None:
    assert tables().arguments(entry).keys() == entry.parameters.keys()


@pytest.mark.parametrize("entry", [*metrics, *summaries, *benchmarks], ids=lambda entry: entry.name)
def test_every_metric_and_benchmark_is_explained(entry: Entry[Any]) -> None:
    assert re.search(rf"^\|[^|]*`{entry.name}`[^|]*\|", METRICS, re.MULTILINE), (
        f"{entry.name} is not in docs/metrics.md"
    )
    for paper in re.findall(r"arXiv (\d{4}\.\d{5})", entry.target.__doc__ or ""):
        assert paper in METRICS


def test_adaptations_are_listed_for_a_stranger() -> None:
    command = [sys.executable, "-m", "grun", "list"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    for entry in (*objectives, *retain_losses, *adaptations, *metrics, *benchmarks, *attacks):
        assert re.search(rf"^  {entry.name} +\S", shown, re.MULTILINE), f"{entry.name} has no line with a summary"
