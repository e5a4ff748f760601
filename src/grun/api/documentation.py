"""Signatures and documentation of functions that take every setting of a job as a keyword argument."""

from __future__ import annotations

__all__ = ["with_settings"]

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

F = TypeVar("F", bound=Callable[..., Any])


def with_settings(config_class: type) -> Callable[[F], F]:
    """Decorator: the settings of a configuration stand in the signature and below the docstring, for `help` and editors.

    The configuration stays the only list of settings; the function takes them as `**settings`.
    """

    def document(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        hints = get_type_hints(config_class)
        others = [f for f in dataclasses.fields(config_class) if f.name not in signature.parameters]
        parameters = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=hints[f.name])
            for f in others
        ]
        documented: Any = function
        documented.__signature__ = signature.replace(parameters=[*own, *parameters])
        lines = "\n".join(f"        {f.name}: {f.metadata['help']}" for f in others)
        documented.__doc__ = f"{function.__doc__}\n    Settings:\n{lines}\n"
        return function

    return document


def _default(field: dataclasses.Field[Any]) -> Any:
    return None if field.default is dataclasses.MISSING else field.default
