"""Python objects in the place of names: jobs know rows and models by name, and a caller in Python has the thing itself.

Every function that resolves a name looks here first, so any job that reads a file or loads a model takes an object as well.
"""

from __future__ import annotations

__all__ = ["PIPES", "PREFIX", "is_pipe", "python_object", "standing_for"]

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

PREFIX = "python:"  # of names that mean nothing outside the process
PIPES = r"-|/dev/stdin|/dev/fd/\d+|/proc/(?:self|\d+)/fd/\d+"  # nor do these: standard input, `<(command)` in a shell
_objects: ContextVar[Mapping[str, Any]] = ContextVar("objects", default=MappingProxyType({}))


@contextmanager
def standing_for(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside, in this thread, names stand for objects."""
    token = _objects.set({**_objects.get(), **objects})
    try:
        yield
    finally:
        _objects.reset(token)


def python_object(name: str) -> Any | None:
    """The object that a name stands for; None for an ordinary name."""
    return _objects.get().get(name)


def is_pipe(name: str) -> bool:
    """True for standard input and what a shell passes as `<(command)`."""
    return re.fullmatch(PIPES, name) is not None
