"""Threads on the processor: one for small models, and none that keeps a core busy while it waits for the others.

Threads of OpenMP spin while they wait. Beside another busy process, two of them wait for each other most of the time. The
number of threads may change results in their last bits, so that records name it and a resumed run keeps it.
"""

from __future__ import annotations

__all__ = ["automatic_threads", "fit_threads", "keep_threads_of", "threads_in_use", "wait_passively"]

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("grun")
SMALL = 4_000_000  # parameters; the steps of larger models are long enough to share
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of GNU's and Intel's OpenMP


class _Choice:
    """What is chosen for this process.

    Attributes:
        automatic: the number of threads is chosen by the size of the model.
        kept: number that a run was started with; None for a new run.
        all: number of threads before the first choice; None as long as torch is not imported.
    """

    automatic = False
    kept: int | None = None
    all: int | None = None


def wait_passively() -> None:
    """Have waiting threads sleep, unless the environment says how they wait; it is read when torch is imported."""
    if "torch" not in sys.modules and not any(os.environ.get(name) for name in WAITING):
        os.environ.update({"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"})


@contextmanager
def automatic_threads() -> Iterator[None]:
    """Inside, `fit_threads` chooses the number of threads, unless the environment names one."""
    torch: Any = sys.modules.get("torch")
    before = _Choice.all = None if torch is None else torch.get_num_threads()
    _Choice.automatic = not any(os.environ.get(name) for name in COUNTS)
    try:
        yield
    finally:
        _Choice.automatic, _Choice.kept, _Choice.all = False, None, None
        if before is not None and torch.get_num_threads() != before:
            torch.set_num_threads(before)


def fit_threads(parameters: int, device: str) -> None:
    """Take one thread for a small model on the processor, or as many as the run that is resumed had.

    Args:
        parameters: of the model.
        device: type of its device.
    """
    import torch

    if device != "cpu":
        return
    now, kept = torch.get_num_threads(), _Choice.kept
    if _Choice.automatic:
        _Choice.all = _Choice.all or now
        wanted = kept or (1 if parameters < SMALL else _Choice.all)
        if wanted != now:
            torch.set_num_threads(wanted)
        logger.debug("%d threads for %d parameters", wanted, parameters)
    elif kept not in (None, now):
        logger.info(
            "The run was started with %d threads and goes on with %d: numbers may differ in their last digits.",
            kept,
            now,
        )


def keep_threads_of(record: Mapping[str, Any]) -> None:
    """Remember the number of threads of a run that is resumed, for the next `fit_threads`; an empty record forgets it."""
    machine = record.get("machine")
    kept = machine.get("threads") if isinstance(machine, dict) else None
    _Choice.kept = kept if isinstance(kept, int) and kept > 0 else None


def threads_in_use() -> dict[str, Any]:
    """Number of threads and how they wait, for records; nothing as long as torch is not imported."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return {}
    return {"threads": torch.get_num_threads(), "wait_policy": os.environ.get(WAITING[0], "default").lower()}
