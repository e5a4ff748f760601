"""The drawings and paragraphs of docs/architecture.md are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from core.test_structure import FILES, ORDER, ROOT, imports, module_of

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES, WAY = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
ROOMS = re.findall(r"^### (\S+)\n\n(.+?)\n(?=\n|\Z)", PAGE, re.DOTALL | re.MULTILINE)


def arrows(drawing: str) -> list[tuple[str, str]]:
    return re.findall(r"^ +(\w+) --> (\w+)$", drawing, re.MULTILINE)


def test_every_arrow_between_packages_is_an_import_and_every_import_an_arrow() -> None:
    found = {
        (module_of(file).partition(".")[0], imported.partition(".")[0])
        for file in FILES
        if file.parent != ROOT
        for imported in imports(file)
    }
    assert sorted(arrows(PACKAGES)) == sorted({(a, b) for a, b in found if a != b})


def test_every_package_has_its_paragraph_in_the_order() -> None:
    assert [name for name, _ in ROOMS] == list(ORDER)
    assert all(len(text.split()) >= 8 for _, text in ROOMS)


@pytest.mark.parametrize("name", dict.fromkeys(name for arrow in arrows(WAY) for name in arrow))
def test_everything_on_the_way_of_the_data_is_a_class_of_the_package(name: str) -> None:
    trees = [ast.parse(file.read_text()) for file in FILES]
    assert any(isinstance(node, ast.ClassDef) and node.name == name for tree in trees for node in tree.body)
    assert f"`{name}`" in PAGE
