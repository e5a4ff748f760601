"""Progress of long work: a bar on a terminal or in a notebook, a plain line about once a minute anywhere else."""

from __future__ import annotations

__all__ = ["Progress", "can_draw_bars", "silence", "tracked"]

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from grun.core.process.environment import is_first_process

logger = logging.getLogger("grun")
T = TypeVar("T")
EVERY = 60.0  # seconds between two lines
DELAY = 2.0  # seconds before a bar of `tracked` is drawn
_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silence() -> Iterator[None]:
    """Inside, progress is not shown."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


class Progress:
    """The progress of one piece of long work; a context that ends it.

    A bar is drawn on standard error if that is a terminal, or in a notebook. A file or a pipe gets a line about once a minute,
    as a message of the logger `grun`, and nothing about work that takes less.

    Args:
        what: the work ("unlearn").
        total: number of units.
        unit: singular, with a regular plural ("step").
        initial: units that are done already.
        shown: False shows nothing; several processes on one job have one progress.
        delay: seconds before a bar is drawn.
    """

    def __init__(
        self, what: str, total: int, unit: str, *, initial: int = 0, shown: bool = True, delay: float = 0.0
    ) -> None:
        self.what, self.total, self.unit, self.initial = what, total, unit, initial
        self.done = initial
        self._facts: dict[str, str] = {}
        self._shown = shown and not _silent.get()
        self._started = time.monotonic()
        self._next = self._started + EVERY
        self._bar = _bar(self, delay) if self._shown else None

    def update(self, count: int = 1) -> None:
        """More units are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            logger.info("%s", self.line())

    def note(self, **facts: str) -> None:
        """Facts to show beside the numbers, by name; newer ones replace older ones."""
        self._facts |= facts
        if self._bar is not None:
            self._bar.set_postfix(self._facts)

    def line(self) -> str:
        """All that is known, in words: `unlearn: step 50/200, loss 0.123, 12 steps/s, about 3 min left`."""
        seconds = time.monotonic() - self._started
        rate = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        parts = [f"{self.unit} {self.done}/{self.total}", *(f"{name} {fact}" for name, fact in self._facts.items())]
        if rate > 0:
            left = _duration((self.total - self.done) / rate)
            parts += [f"{rate:.2g} {self.unit}s/s" if rate < 10 else f"{rate:.0f} {self.unit}s/s", f"about {left} left"]
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        """End the bar; say how long it took where more is asked for."""
        if self._bar is not None:
            self._bar.close()
        if self._shown:
            took = _duration(time.monotonic() - self._started)
            logger.debug("%s: %d of %d %ss in %s", self.what, self.done, self.total, self.unit, took)
        self._shown, self._bar = False, None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tracked(parts: Iterable[T], what: str, total: int, unit: str, size: Callable[[T], int]) -> Iterator[T]:
    """Parts of a piece of work one after the other, with its progress, which short work does not show.

    Args:
        parts: the parts.
        what, total, unit: as of `Progress`.
        size: number of units of a part.
    """
    with Progress(what, total, unit, shown=is_first_process(), delay=DELAY) as progress:
        for part in parts:
            yield part
            progress.update(size(part))


def can_draw_bars() -> bool:
    """True in a notebook, and if standard error is a terminal that can move its cursor."""
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    try:
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stream, or a closed one
        is_terminal = False
    return is_terminal or type(running).__name__ == "ZMQInteractiveShell"


def _bar(progress: Progress, delay: float) -> Any | None:
    """A bar where one can be drawn; None elsewhere."""
    if not can_draw_bars():
        return None
    from tqdm.auto import tqdm

    return tqdm(
        total=progress.total,
        initial=progress.initial,
        desc=progress.what,
        unit=progress.unit,
        delay=delay,
        **_size(),
        disable=False,
    )


def _size() -> dict[str, Any]:
    """Size of the terminal for a bar: its own at any time, or a usual one where it says that it has none."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # a notebook, or another stream in place of the terminal
        return {"dynamic_ncols": True}
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
