"""The shape of the package: who may import whom, how long a file may be, what may not be in it."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import grun

ROOT = Path(grun.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the ground up: the modules of a package import their own package and those above it in this list.
ORDER = (
    "core.process",
    "core",
    "core.records",
    "core.config",
    "core.storage.directories",
    "core.storage",
    "data",
    "data.benchmarks",
    "models.encoding",
    "models.tuner.call",
    "models.tuner.readers",
    "models.tuner",
    "models.adaptations",
    "models",
    "models.loading",
    "models.gates.text",
    "models.gates.topics",
    "models.gates",
    "training.objectives",
    "training.loss",
    "training.forward_engines.prefix",
    "training.forward_engines",
    "training.answers",
    "training",
    "evaluation.attacks",
    "evaluation.attacks.wording",
    "evaluation.attacks.conversation",
    "evaluation.attacks.damage",
    "evaluation.attacks.recognition",
    "evaluation.attacks.weights",
    "evaluation.metrics",
    "evaluation.measuring",
    "evaluation",
    "evaluation.report",
    "jobs.engines",
    "jobs.inputs",
    "jobs.inputs.expansion",
    "jobs",
    "jobs.attacks",
    "jobs.demos",
    "requests",
    "api",
    "cli.process",
    "cli",
)
ENTRIES = 12  # of a folder, at most
LONGEST, MEDIAN = 64, 10  # lines of a function with its docstring; they go down only
LEAVES = (
    "training.objectives",
    "evaluation.metrics",
    "data.benchmarks",
    "evaluation.attacks.wording",
    "evaluation.attacks.conversation",
    "evaluation.attacks.damage",
    "evaluation.attacks.recognition",
    "evaluation.attacks.weights",
    "models.adaptations",
    "jobs.engines",
)


def package_of(module: str) -> str:
    """The package that a dotted name (without `grun.`) lies in, whatever follows it; empty for the root."""
    parts = module.split(".")
    while parts and not (ROOT / Path(*parts)).is_dir():
        parts.pop()
    return ".".join(parts)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imports(file: Path) -> set[str]:
    """Dotted names (without `grun.`) that a file imports from the package, also for type checkers only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "grun":
            found |= {f"{node.module}.{alias.name}".removeprefix("grun.") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("grun.") for alias in node.names if alias.name.startswith("grun.")}
    return found


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_files_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 320


def test_functions_are_short() -> None:
    lengths = {
        f"{name(file)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {where: length for where, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


def test_every_package_has_its_place_in_the_order() -> None:
    assert {module_of(file.parent / "__init__.py") for file in FILES if file.parent != ROOT} <= {
        *ORDER,
        *(name.rpartition(".")[0] for name in ORDER),
    }


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != ROOT], ids=name)
def test_packages_import_only_what_is_below_them(file: Path) -> None:
    own = ORDER.index(package_of(module_of(file)))
    for imported in imports(file):
        package = package_of(imported)
        if package:
            assert ORDER.index(package) <= own, f"{name(file)} imports {imported}, which is above it"


def test_no_file_imports_itself_by_any_way() -> None:
    modules = {module_of(file) for file in FILES}
    graph = {}
    for file in FILES:
        named = {i if i in modules else i.rpartition(".")[0] for i in imports(file)}
        graph[module_of(file)] = named & modules - {module_of(file)}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("file", [f for f in FILES if package_of(module_of(f)) in LEAVES], ids=name)
def test_leaves_never_import_each_other(file: Path) -> None:
    package = package_of(module_of(file))
    siblings = {f.stem for f in file.parent.glob("*.py") if not f.stem.startswith("_") and f != file}
    others = {i.split(".")[package.count(".") + 1] for i in imports(file) if i.startswith(f"{package}.")}
    assert not others & siblings


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES}), ids=name)
def test_folders_can_be_taken_in_at_a_glance(folder: Path) -> None:
    assert len([p for p in folder.iterdir() if p.name != "__pycache__"]) <= ENTRIES


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_bare_except_and_no_print(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_public_names_are_listed_and_documented(file: Path) -> None:
    tree = ast.parse(file.read_text())
    listed: list[str] = next(
        (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _is_all(n)), []
    )
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
