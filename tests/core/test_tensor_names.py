"""Tensor names end in letters of the one legend, and the legend has no letter that no name ends in."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import grun
import grun.core.records

ROOT = Path(grun.__file__).parent
LEGEND = re.findall(r"^    ([A-Z])  \S", grun.core.records.__doc__ or "", re.MULTILINE)
SUFFIX = re.compile(r"_([A-Z]+[0-9A-Z]*)$")


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that the code gives or uses: variables, arguments, attributes, keywords, functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def dimensions() -> dict[str, set[str]]:
    """Where each letter is a dimension: `file: name`. Constants are in capitals as a whole."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for file in ROOT.rglob("*.py"):
        for name in names(ast.parse(file.read_text())):
            match = None if name.isupper() else SUFFIX.search(name)
            for letter in match[1] if match else "":
                if letter.isalpha():
                    found[letter].add(f"{file.relative_to(ROOT)}: {name}")
    return found


def test_every_letter_is_in_the_legend_once_and_no_other() -> None:
    used = dimensions()
    assert sorted(set(LEGEND)) == LEGEND, "in alphabetical order, each once"
    unknown = {letter: sorted(where)[:3] for letter, where in used.items() if letter not in LEGEND}
    assert not unknown, f"core/records/__init__.py does not say what these stand for: {unknown}"
    assert not set(LEGEND) - used.keys(), "no name ends in these"


def test_names_are_found_wherever_they_stand() -> None:
    code = "def f(a_B, *, b_BT): c_ND = a_B.d_V; return g(e_UD=c_ND, _f_XTK=MAX_STEPS)"
    found = [match[1] for name in names(ast.parse(code)) if (match := SUFFIX.search(name)) and not name.isupper()]
    assert sorted(set(found)) == ["B", "BT", "ND", "UD", "V", "XTK"]
