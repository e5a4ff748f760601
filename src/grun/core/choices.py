"""Names of everything that registers itself, read from source files without importing them.

Help texts and `grun list` name every objective, metric and so on, but importing these takes seconds because of torch. So the
decorators are read instead. A leaf declares its name as a literal, in the decorator itself,

    @objectives.register("npo", ...)

or in a decorator that its file defines, which registers under its first argument or under an f-string of it:

    @_attack("mia_loss", ...)

Other distributions bring leaves through entry points. The modules that these name are read in the same way; of one that
cannot be read, only the name of the entry point is known.
"""

from __future__ import annotations

__all__ = ["KINDS", "Kind", "declared", "flag_of_kind"]

import ast
import importlib.util
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from grun.core import CODE

REGISTER = "register"
DOC = "__doc__"
Found = tuple[str, str, str]  # registry, name, first line of the docstring


@dataclass(frozen=True)
class Kind:
    """One kind of leaves.

    Attributes:
        name: singular, as in the messages of its registry.
        title: plural.
        package: dotted name of the package whose modules are the leaves.
        flag: command-line flag of the setting that takes a name.
    """

    name: str
    title: str
    package: str
    flag: str

    @property
    def group(self) -> str:
        """The entry-point group of other distributions ("grun.objectives")."""
        return f"grun.{self.package.rpartition('.')[2]}"


# By the name of the registry, an attribute of the package.
KINDS = {
    "objectives": Kind("objective", "objectives", "grun.training.objectives", "--objective"),
    "retain_losses": Kind("retain loss", "retain losses", "grun.training.objectives", "--retain-loss"),
    "adaptations": Kind("adaptation", "adaptations", "grun.models.adaptations", "--adapt"),
    "benchmarks": Kind("benchmark", "benchmarks", "grun.data.benchmarks", "--benchmark"),
    "metrics": Kind("metric", "metrics", "grun.evaluation.metrics", "--metrics"),
    "attacks": Kind("attack", "attacks", "grun.evaluation.attacks", "--attacks"),
    "engines": Kind("engine", "engines", "grun.jobs.engines", "--engine"),
}


def declared(registry: str) -> dict[str, str]:
    """Names of all leaves of a registry ("objectives"), sorted, with the first lines of their docstrings.

    An entry point of another distribution whose module shows no registration counts for the registry that its group is named
    after; its docstring is unknown and empty.
    """
    kind = KINDS[registry]
    brought = [one for point in _extensions(kind.group) for one in _brought_by(*point, kind.group)]
    found = {name: summary for where, name, summary in [*brought, *_declarations(kind.package)] if where == registry}
    return dict(sorted(found.items()))


def flag_of_kind(name: str) -> str | None:
    """The flag of the setting whose values are leaves of a kind, given in the singular; None for an unknown kind."""
    return next((kind.flag for kind in KINDS.values() if kind.name == name), None)


@cache
def _extensions(group: str) -> tuple[tuple[str, str], ...]:
    """Names and modules of the entry points of a group."""
    return tuple((point.name, point.module) for point in metadata.entry_points(group=group))


@cache
def _brought_by(name: str, module: str, group: str) -> tuple[Found, ...]:
    """All registrations in the module of an entry point, or its name alone if its source shows none."""
    return _declared_in(_files_of(module)) or ((group.rpartition(".")[2], name, ""),)


def _files_of(module: str) -> list[Path]:
    """The source of a module, and of all modules directly in it if it is a package; no code of it runs."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a module below it, this would import the package
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if not spec.submodule_search_locations:
        return [Path(spec.origin)] if spec.origin and not rest else []
    for folder in (Path(place).joinpath(*rest) for place in spec.submodule_search_locations):
        if folder.is_dir():
            return list(folder.glob("*.py"))
        if (file := folder.with_suffix(".py")).is_file():
            return [file]
    return []


@cache
def _declarations(package: str) -> tuple[Found, ...]:
    """All registrations in the modules of a package and of the packages in it, with any registry."""
    folder = CODE.joinpath(*package.split(".")[1:])
    return _declared_in(file for file in folder.rglob("*.py") if file != folder / "__init__.py")


def _declared_in(files: Iterable[Path]) -> tuple[Found, ...]:
    found: list[Found] = []
    for file in sorted(files):
        try:
            source = file.read_text(encoding="utf-8")
            if f".{REGISTER}(" in source:
                found += _registrations(ast.parse(source))
        except (
            OSError,
            ValueError,
            SyntaxError,
        ):  # a file of another distribution, which an import will complain about
            continue
    return tuple(found)


def _registrations(module: ast.Module) -> Iterator[Found]:
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    for node in (node for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))):
        for decorator in node.decorator_list:
            if not isinstance(decorator, ast.Call) or not decorator.args:
                continue
            name, doc = _text(decorator.args[0]), ast.get_docstring(node, clean=False) or ""
            registry = _registry(decorator)
            if registry and name is not None:
                yield registry, name, _first_line(doc)
            elif isinstance(decorator.func, ast.Name) and decorator.func.id in functions and name is not None:
                yield from _registered_by(functions[decorator.func.id], name, doc)


def _registered_by(factory: ast.FunctionDef, argument: str, doc: str) -> Iterator[Found]:
    """Registrations by a decorator that the file defines: `registry.register(name, ...)(function)`.

    Args:
        factory: function that makes the decorator.
        argument: its first argument.
        doc: docstring of the decorated function.
    """
    names = {factory.args.args[0].arg: argument}
    docs: dict[str, str] = {}
    for node in ast.walk(factory):
        if isinstance(node, ast.FunctionDef):
            docs.setdefault(node.name, ast.get_docstring(node, clean=False) or "")
        elif isinstance(node, ast.Assign) and (function := _documented(node.targets[0])):
            docs[function] = _text(node.value, names, doc) or ""
    for node in ast.walk(factory):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Call) and isinstance(node.args[0], ast.Name):
            registry, name = _registry(node.func), _text(node.func.args[0], names)
            if registry and name is not None:
                yield registry, name, _first_line(docs[node.args[0].id])


def _registry(call: ast.Call) -> str | None:
    """The registry of a call `registry.register(...)`; None for any other call."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == REGISTER and isinstance(function.value, ast.Name):
        return function.value.id
    return None


def _documented(target: ast.expr) -> str | None:
    """The function of a target `function.__doc__`; None for any other."""
    if isinstance(target, ast.Attribute) and target.attr == DOC and isinstance(target.value, ast.Name):
        return target.value.id
    return None


def _text(node: ast.expr, names: dict[str, str] | None = None, doc: str | None = None) -> str | None:
    """The text that an expression stands for: a literal, a known name, the docstring, or an f-string of these."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return (names or {}).get(node.id)
    if isinstance(node, ast.Attribute) and node.attr == DOC:
        return doc
    if isinstance(node, ast.JoinedStr):
        parts = [_text(v.value if isinstance(v, ast.FormattedValue) else v, names, doc) for v in node.values]
        return None if None in parts else "".join(part or "" for part in parts)
    return None


def _first_line(doc: str) -> str:
    return inspect.cleandoc(doc).partition("\n")[0]
