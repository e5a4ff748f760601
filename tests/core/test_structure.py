"""The shape of the package: who may import whom, how long a file may be, what may not be in it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import grun

ROOT = Path(grun.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LEAVES = {"objectives", "metrics", "benchmarks"}
SPINE_OF_LEAVES = {"records", "registry", "errors"}
MAY_PRINT = {"cli.py", "chat.py", "demo.py", "evaluation.py"}


def imports(file: Path) -> set[str]:
    """Modules of the package that a file imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "grun":
            found.add(node.module.removeprefix("grun").lstrip("."))
    return found


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 320


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name in ("objectives", "metrics")], ids=name)
def test_leaves_import_records_and_never_each_other(file: Path) -> None:
    kind = file.parent.name
    assert imports(file) <= SPINE_OF_LEAVES | {kind, "refusals"}


@pytest.mark.parametrize("file", [f for f in FILES if f.parent.name == "adapters"], ids=name)
def test_adapters_know_nothing_of_jobs(file: Path) -> None:
    allowed = {"errors", "registry", "config", "settings", "prompt_position", "records"}
    assert {i for i in imports(file) if not i.startswith("adapters")} <= allowed


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_bare_except_and_no_print(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_public_names_are_listed_and_documented(file: Path) -> None:
    tree = ast.parse(file.read_text())
    listed = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _is_all(n)), [])
    defined = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    for public in listed:
        if public in defined:
            assert ast.get_docstring(defined[public]), f"{public} has no docstring"


def _is_all(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)


def test_importing_the_package_waits_for_nothing() -> None:
    code = "import sys, grun; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("order", ["import grun, peft", "import peft, grun"])
def test_peft_knows_grun_whatever_is_imported_first(order: str) -> None:
    code = f"{order}; from peft import PeftConfig; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as m; m['GRUN']"
    subprocess.run([sys.executable, "-c", code], check=True)
