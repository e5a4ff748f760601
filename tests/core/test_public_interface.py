"""Public names stay: `public_interface.json` lists those of the last release (docs/versioning.md)."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer

import grun
from grun.cli.main import app
from grun.core.choices import KINDS

RELEASED: dict[str, Any] = json.loads(Path(__file__).with_name("public_interface.json").read_text(encoding="utf-8"))


def commands(command: Any, name: str = "grun") -> dict[str, list[str]]:
    """Flags and arguments of every command, by its full name."""
    if hasattr(command, "commands"):
        return {k: v for n, one in command.commands.items() for k, v in commands(one, f"{name} {n}").items()}
    return {name: sorted(flag for p in command.params for flag in (*p.opts, *p.secondary_opts))}


def test_exported_names_stay() -> None:
    assert set(RELEASED["exports"]) <= set(grun.__all__)
    assert all(hasattr(grun, name) for name in grun.__all__)


@pytest.mark.parametrize("command", RELEASED["commands"])
def test_commands_and_flags_stay(command: str) -> None:
    assert set(RELEASED["commands"][command]) <= set(commands(typer.main.get_command(app))[command])


@pytest.mark.parametrize("kind", RELEASED["registered"])
def test_registered_names_stay(kind: str) -> None:
    assert set(RELEASED["registered"][kind]) <= set(getattr(importlib.import_module(KINDS[kind].package), kind).names())


def test_settings_of_adapters_stay() -> None:
    assert set(RELEASED["adapter_settings"]) <= {field.name for field in dataclasses.fields(grun.GrunConfig)}
