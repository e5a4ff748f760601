"""Names that settings may take: what the source files declare is what they register, and help texts know all of it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import sys
from importlib import metadata
from typing import Any

import pytest

from grun.core import choices
from grun.core.choices import KINDS, declared
from grun.core.config import attacking, jobs, requests
from grun.core.config.schema import GROUPS, flag, option
from grun.core.errors import UserError

CONFIGS = [getattr(module, name) for module in (attacking, jobs, requests) for name in module.__all__]


def registry_of(name: str):
    return getattr(importlib.import_module(KINDS[name].package), name)


@pytest.mark.parametrize("registry", KINDS)
def test_what_is_declared_is_what_is_registered(registry: str) -> None:
    entries = registry_of(registry)
    assert declared(registry) == {entry.name: entry.summary for entry in entries}
    assert list(declared(registry)) == entries.names()
    assert KINDS[registry].name == entries.kind
    assert KINDS[registry].package == entries.package
    assert all(declared(registry).values()), "a leaf has no docstring"


@pytest.mark.parametrize("registry", KINDS)
def test_an_unknown_name_is_refused_with_the_flag_the_nearest_and_all_names(registry: str) -> None:
    name = min(declared(registry), key=len)
    with pytest.raises(UserError) as caught:
        registry_of(registry).get(f"{name}x")
    said = str(caught.value)
    assert said.startswith(f"unknown {KINDS[registry].name} '{name}x'. Did you mean '{name}'? ")
    assert said.endswith(f" {KINDS[registry].flag} expects one of {', '.join(declared(registry))}.")


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch):
    """Another distribution with an objective."""
    found = {"grun.objectives": (metadata.EntryPoint("margin", "absent.module", "grun.objectives"),)}
    monkeypatch.setattr(metadata, "entry_points", lambda group: found.get(group, ()))
    choices._extensions.cache_clear()
    yield
    choices._extensions.cache_clear()


@pytest.mark.usefixtures("extension")
def test_entry_points_are_named_without_being_imported() -> None:
    assert declared("objectives")["margin"] == ""
    assert "margin" not in declared("retain_losses")
    assert "margin" not in declared("metrics")


def test_the_module_of_an_entry_point_is_read_without_running_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "brought"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('a package was imported')\n")
    (package / "inner" / "__init__.py").write_text("raise SystemExit('a package was imported')\n")
    leaf = '@{}.register("{}")\ndef leaf(signals):\n    """{}"""\nraise SystemExit("a module was imported")\n'
    (package / "one.py").write_text(leaf.format("objectives", "margin", "Keep a distance."))
    (package / "inner" / "two.py").write_text(leaf.format("retain_losses", "hinge", "Bend."))
    (package / "broken.py").write_text("def (.register(\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"first": "brought.one", "folder": "brought.inner", "odd": "brought.broken", "gone": "absent.module:leaf"}
    points = tuple(metadata.EntryPoint(name, module, "grun.objectives") for name, module in named.items())
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "grun.objectives" else ())
    choices._extensions.cache_clear()
    try:
        objectives, losses = declared("objectives"), declared("retain_losses")
        assert objectives["margin"] == "Keep a distance."
        assert losses["hinge"] == "Bend."
        assert objectives["gone"] == objectives["odd"] == ""
        assert not {"first", "folder"} & objectives.keys()
        assert "brought" not in sys.modules
    finally:
        choices._extensions.cache_clear()


def test_names_are_read_from_every_form_of_declaration() -> None:
    module = '''
def both(name, label):
    def register(function):
        def first(x):
            """Unused."""
        def second(x):
            """Of its own.

            More.
            """
        first.__doc__ = f"Of {function.__doc__}"
        first.label = label
        things.register(name, label=label)(first)
        things.register(f"{name}_2")(second)
        return first
    return register

@both("pair", "p")
def pair(x):
    """A pair.

    More.
    """

@things.register("class")
class Thing:
    """A class."""

@things.register(computed())
def unknown(): ...

@others.register("other")
@cache
def other(): ...

@cache
def neither(): ...
'''
    assert list(choices._registrations(ast.parse(module))) == [
        ("things", "pair", "Of A pair."),
        ("things", "pair_2", "Of its own."),
        ("things", "class", "A class."),
        ("others", "other", ""),
    ]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_settings_name_the_registry_of_their_flag(config_class: Any) -> None:
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    for name, field in fields.items():
        registry = field.metadata["choices_from"]
        assert registry is None or KINDS[registry].flag == flag(name)
        assert (
            registry is None
            or field.default is None
            or field.default in declared(registry)
            or name in ("metrics", "attacks")
        )
    assert set(config_class.MAIN) <= fields.keys()
    assert len(config_class.MAIN) <= 5


def test_every_registry_is_the_choice_of_a_setting_and_every_group_has_settings() -> None:
    fields = [field for config_class in CONFIGS for field in dataclasses.fields(config_class)]
    assert {field.metadata["choices_from"] for field in fields} - {None} == set(KINDS)
    assert {field.metadata["group"] for field in fields} == set(GROUPS)


def test_a_setting_needs_a_group_and_a_registry_that_exist() -> None:
    with pytest.raises(AssertionError, match="'gates' is none of"):
        option(0, "A number.", group="gates")
    with pytest.raises(AssertionError, match="'objective' is no registry"):
        option("", "A name.", group="method", choices_from="objective")
