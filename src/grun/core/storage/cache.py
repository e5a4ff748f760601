"""The user's cache: results that later runs need not compute again. A cache that cannot be used costs time, nothing else."""

from __future__ import annotations

__all__ = ["keep", "read_kept", "say_unusable"]

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from grun.core.process.environment import cache_directory
from grun.core.storage.atomic_files import atomic_file

T = TypeVar("T")
logger = logging.getLogger("grun")
_said: set[Path] = set()  # caches that a warning has named
UNREADABLE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


def keep(file: Path, write: Callable[[Path], object], cache: Path | None = None) -> None:
    """Keep a file in a cache, all of it or nothing. If that is not possible, one warning names the cache.

    Args:
        file: its place.
        write: writes it under the temporary name that is passed.
        cache: directory of the cache; None for the user's.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            write(temporary)
    except (OSError, SafetensorError) as error:
        say_unusable(cache_directory() if cache is None else cache, error)


def read_kept(file: Path, read: Callable[[Path], T]) -> T | None:
    """What a file of a cache holds; None if it is missing, damaged or cannot be read: it counts as absent.

    Args:
        file: its place.
        read: reads it, and raises an error if its content is not as it should be.
    """
    try:
        return read(file)
    except UNREADABLE:
        return None


def say_unusable(cache: Path, error: Exception) -> None:
    """Warn that a cache cannot be written; once for each cache."""
    if cache not in _said:
        _said.add(cache)
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        logger.warning("The cache %s cannot be written (%s): nothing is kept there for later runs.", cache, reason)
