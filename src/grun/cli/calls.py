"""Calls of the functions for Python with what a command line says: a command does what its function does."""

from __future__ import annotations

__all__ = ["called", "given_settings"]

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any


def given_settings(config: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """Keyword arguments for a function from a configuration: everything that is not empty, and what it cannot do without.

    An empty list is None there: nothing was given, and the job says what is missing.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    values = {name: None if value in ([], {}) else value for name, value in values.items()}
    needed = {n for n, p in inspect.signature(function).parameters.items() if p.default is inspect.Parameter.empty}
    return {name: value for name, value in values.items() if name in needed or value is not None}


def called(name: str, config: Any, **more: Any) -> Any:
    """The result of a function of `grun.api.jobs`, whose errors name flags; imported now, so that `--help` need not wait."""
    function = getattr(importlib.import_module("grun.api.jobs"), name)
    naming_flags = importlib.import_module("grun.api.settings").naming_flags
    with naming_flags():
        return function(**given_settings(config, function), **more)
