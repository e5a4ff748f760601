"""One small registry for objectives, benchmarks, metrics and everything else that is added as one new file.

A leaf registers itself with a decorator. The registry finds leaves by importing every module of its package, and those of
other distributions through the entry-point group of the same name. So a new leaf needs no edit of a list.
"""

from __future__ import annotations

__all__ = ["Registry", "Entry"]

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic, TypeVar

from grun.core.choices import flag_of_kind
from grun.core.errors import UserError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered leaf: its name, the object, and the facts that it declared about itself."""

    name: str
    target: T
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """`file:line` of the definition."""
        target: Any = self.target
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.target) or "").partition("\n")[0]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Keyword-only parameters of a registered function: its configuration, by name."""
        signature = inspect.signature(self.target)  # type: ignore[arg-type]
        return {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


class Registry(Generic[T]):
    """Named leaves of one kind.

    Args:
        kind: singular name of an entry, for messages ("objective").
        package: the package whose modules are imported to find entries ("grun.training.objectives"). Other distributions
            bring theirs through the entry-point group with its last name ("grun.objectives").
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry[T]] = {}
        self._scanned = False

    def register(self, name: str, **info: Any) -> Callable[[T], T]:
        """Decorator that adds a leaf under `name`.

        Raises:
            ValueError: if the name is taken by another definition.
        """

        def add(target: T) -> T:
            entry = Entry(name, target, info)
            if name in self._entries and self._entries[name].where != entry.where:
                taken = self._entries[name].where
                raise ValueError(f"{self.kind} '{name}' is defined twice: {taken} and {entry.where}")
            self._entries[name] = entry
            return target

        return add

    @contextmanager
    def having(self, entry: Entry[T]) -> Iterator[None]:
        """Inside, a leaf is registered that is not there before and after."""
        self._scan()
        self._entries[entry.name] = entry
        try:
            yield
        finally:
            del self._entries[entry.name]

    def get(self, name: str) -> Entry[T]:
        """The entry called `name`.

        Raises:
            UserError: if there is none; the message suggests the nearest name, lists all of them, and names the flag.
        """
        self._scan()
        if name not in self._entries:
            flag = flag_of_kind(self.kind)
            expected = f"{flag} expects one of" if flag else "Expected one of"
            choices = ", ".join(self.names())
            raise UserError(f"unknown {self.kind} '{name}'.{nearest(name, self._entries)} {expected} {choices}.")
        return self._entries[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._scan()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter([self._entries[name] for name in self.names()])

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        for point in metadata.entry_points(group=f"grun.{self.package.rpartition('.')[2]}"):
            point.load()
